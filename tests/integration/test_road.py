"""The whole road on a real Ray cluster with DeepSpeed: log, store, encoder, task, scores, report."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.buckets import iter_buckets, read_manifest
from data_io.config import SyntheticSettings
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from data_io.synthetic import generate_events
from ray_jobs import build_sequences, evaluate, finetune, pretrain, score_users
from ray_jobs.config import Settings

NUM_USERS = 120


@pytest.fixture(scope="module")
def events() -> pa.Table:
    size = SyntheticSettings(num_users=NUM_USERS, num_items=60, num_days=60, mean_events_per_user=25, seed=3)
    return generate_events(size)


def make_settings(run_dir: str, **sections: object) -> Settings:
    training = {"num_epochs": 2, "global_batch_size": 32, "micro_batch_size": 16, "zero_stage": 2}
    content = {
        "run_dir": run_dir,
        "store": {"num_buckets": 3},
        "encoder": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 16, "dropout": 0.1},
        "pretrain": {"softmax": {"kind": "full"}, "training": training},
        "finetune": {
            "name": "active_5d",
            "task": {"kind": "outcome", "horizon_days": 5, "num_cutoffs": 3},
            "trainable": {"kind": "frozen"},
            "training": training | {"zero_stage": 1},
        },
        "scoring": {"k": 10, "exclude_seen": True},
        "evaluation": {"num_resamples": 20},
    }
    return Settings.model_validate(content | sections)


def write_log(url: str, events: pa.Table, num_files: int = 3) -> None:
    for part, rows in enumerate(np.array_split(np.arange(events.num_rows), num_files)):
        storage.write_parquet(storage.join(url, f"part-{part}.parquet"), events.take(pa.array(rows)))


def check_scores(settings: Settings, num_users: int) -> None:
    scores = pa.concat_tables(iter_buckets(storage.absolute(settings.place("scores"))))
    users = scores.column("user_id").to_pylist()
    assert len(users) == len(set(users)) == num_users
    lengths = {len(items) for items in scores.column("item_ids").to_pylist()}
    assert max(lengths) == settings.scoring.k
    embeddings = np.array(scores.column("embedding").to_pylist())
    assert embeddings.shape == (num_users, settings.encoder.hidden_size)
    assert np.isfinite(embeddings).all()
    probabilities = scores.column("score_active_5d").to_numpy()
    assert ((probabilities > 0) & (probabilities < 1)).all()


def run_road(settings: Settings) -> dict[str, object]:
    store = build_sequences.run(settings)
    pretrain.run(settings)
    finetune.run(settings)
    score_users.run(settings)
    report_url = evaluate.run(settings)
    check_scores(settings, store.num_users)
    page = storage.read_bytes(storage.join(report_url, "index.html")).decode()
    assert "<svg" in page
    assert "popularity" in page
    return storage.read_json(storage.join(report_url, "report.json"))


def seen_items(settings: Settings) -> dict[str, set[str]]:
    store = SequenceStore.open(storage.absolute(settings.store_url))
    seen: dict[str, set[str]] = {}
    for bucket in range(store.num_buckets):
        sequences = store.read_sequences(bucket)
        for user, first, last in zip(sequences.user_id.to_pylist(), sequences.starts, sequences.ends, strict=True):
            items = store.vocabulary.decode(sequences.item_index[first:last]).to_pylist()
            seen[user] = {item for item in items if item is not None}
    return seen


@pytest.mark.usefixtures("ray_cluster")
def test_road_on_local_disk(tmp_path: Path, events: pa.Table, capfd: pytest.CaptureFixture[str]) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    report = run_road(settings)
    assert {"encoder", "popularity", "own_history"} <= set(report["next_item"]["rankers"])
    assert 0 <= report["outcomes"]["active_5d"]["auc"]["value"] <= 1
    quality = json.loads((tmp_path / "run/store/quality_report.json").read_text())
    assert quality["num_rows"] == events.num_rows

    seen = seen_items(settings)
    for table in iter_buckets(str(tmp_path / "run/scores")):
        for user, items in zip(table.column("user_id").to_pylist(), table.column("item_ids").to_pylist(), strict=True):
            assert not seen[user] & set(items)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    capfd.readouterr()
    for job in (build_sequences, pretrain, finetune, score_users):
        job.run(settings)
    assert capfd.readouterr().out.count("already") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}

    (tmp_path / "run/scores/_MANIFEST.json").unlink()
    (tmp_path / "run/scores/_buckets/00001.json").unlink()
    score_users.run(settings)
    check_scores(settings, NUM_USERS)
    again = set((tmp_path / "run/scores").rglob("*.parquet")) - set(before)
    assert [path.parent.name for path in again] == ["bucket=00001"], "only the missing bucket is scored again"


@pytest.mark.usefixtures("ray_cluster")
def test_partly_built_store_is_finished_and_equal(tmp_path: Path, events: pa.Table) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    build_sequences.run(settings)
    whole = read_manifest(str(tmp_path / "run/store"))
    (tmp_path / "run/store/_MANIFEST.json").unlink()
    (tmp_path / "run/store/_buckets/00000.json").unlink()
    build_sequences.run(settings)
    again = read_manifest(str(tmp_path / "run/store"))
    hashes = [{bucket: file["sha256"] for bucket, file in m["buckets"].items()} for m in (whole, again)]
    assert hashes[0] == hashes[1]
    assert whole["buckets"]["1"] == again["buckets"]["1"]
    assert whole["buckets"]["0"]["name"] != again["buckets"]["0"]["name"]


@pytest.mark.usefixtures("ray_cluster")
def test_bad_rows_go_to_quarantine_and_are_counted(tmp_path: Path, events: pa.Table) -> None:
    users = events.column("user_id").to_pylist()
    users[0], users[1], users[2] = None, " NaN ", ""
    dirty = events.set_column(events.column_names.index("user_id"), "user_id", pa.array(users, pa.large_string()))
    write_log(str(tmp_path / "log"), pa.concat_tables([dirty, dirty.slice(10, 5)]))
    log = {"path": str(tmp_path / "log"), "max_bad_share": 0.5}
    settings = make_settings(str(tmp_path / "run"), events=log)
    store = build_sequences.run(settings)
    assert store.manifest["num_quarantined"] == 3
    assert store.manifest["num_duplicates"] == 5
    assert store.manifest["num_events"] == events.num_rows - 3
    quarantine = pq.read_table(tmp_path / "run/store/quarantine")
    assert quarantine.column("reason").to_pylist() == ["empty_user_id"] * 3
    assert sorted(quarantine.column("source_row").to_pylist()) == [0, 1, 2]


@pytest.mark.usefixtures("ray_cluster")
def test_a_refused_build_may_be_repeated_with_another_share_or_a_mended_log(tmp_path: Path, events: pa.Table) -> None:
    users = events.column("user_id").to_pylist()
    dirty = events.set_column(0, "user_id", pa.array([None] * 40 + users[40:], pa.large_string()))
    write_log(str(tmp_path / "log"), dirty)
    log = {"path": str(tmp_path / "log"), "max_bad_share": 0.001}
    with pytest.raises(DataContractError, match=r"more than events\.max_bad_share"):
        build_sequences.run(make_settings(str(tmp_path / "run"), events=log))
    assert pq.read_table(tmp_path / "run/store/quarantine").num_rows == 40, "for a person to look at"
    write_log(str(tmp_path / "log"), events)
    store = build_sequences.run(make_settings(str(tmp_path / "run"), events=log))
    assert store.manifest["num_quarantined"] == 0
    assert not (tmp_path / "run/store/quarantine").exists()


@pytest.mark.usefixtures("ray_cluster", "s3_endpoint")
def test_road_with_every_path_on_s3(events: pa.Table) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("clickformer-test")
    write_log("s3://clickformer-test/log", events)
    log = {"path": "s3://clickformer-test/log/*.parquet"}
    sampled = {"kind": "sampled", "num_uniform": 16, "num_in_batch": 8}
    masked = {"objective": {"kind": "masked_item"}, "softmax": sampled}
    base = make_settings("s3://clickformer-test/run", events=log)
    pretraining = base.pretrain.model_dump() | masked
    run_road(make_settings("s3://clickformer-test/run", events=log, pretrain=pretraining))
