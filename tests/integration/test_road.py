"""The whole road on a real Ray cluster with DeepSpeed: log, store, encoder, task, scores, report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_io import storage
from data_io.buckets import WORK, iter_buckets
from data_io.config import SettingsError, SyntheticSettings
from data_io.schema import FIRST_INDEX
from data_io.snapshots import MANIFEST_NAME, SNAPSHOTS, bucket_files
from data_io.store import SequenceStore
from data_io.synthetic import generate_events
from data_io.vocabulary import Vocabulary
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from ray_jobs import (
    append,
    build_sequences,
    compact,
    evaluate,
    export,
    finetune,
    forget,
    lookup,
    pretrain,
    rollback,
    score_users,
)
from ray_jobs.config import Settings
from ray_jobs.models import find_model
from tests.integration.stores import change, check_conservation, kill_before_publishing, known_items_of

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
        "encoder": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "sequence_length": 16,
            "dropout": 0.1,
            "neighbours": 5,
        },
        "pretrain": {
            "softmax": {"kind": "full"},
            "item_vectors": {"kind": "neighbours", "num_neighbours": 8},
            "optimizer": {"average_decay": 0.9},
            "training": training,
        },
        "finetune": {
            "name": "customer",
            "task": {
                "kind": "questions",
                "num_cutoffs": 3,
                "learned_weights": True,
                "questions": {
                    "active": {"kind": "event", "horizon_days": 5},
                    "cart": {"kind": "conversion", "horizon_days": 5, "actions": ["purchase"]},
                    "spend": {"kind": "spend", "horizon_days": 5, "actions": ["purchase"]},
                },
            },
            "training": training | {"zero_stage": 1},
        },
        "scoring": {"k": 10, "exclude_seen": [{}]},
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
    for question in ("active", "cart"):
        probabilities = scores.column(f"score_customer_{question}").to_numpy()
        assert ((probabilities > 0) & (probabilities < 1)).all()
    amounts = scores.column("score_customer_spend").to_numpy()
    assert ((amounts >= 0) & np.isfinite(amounts)).all()


def check_forgotten(settings: Settings, users: list[str], num_left: int) -> None:
    """Forget users after the road was gone, and look for them in what stands below the run folder."""
    file = settings.place("forget.txt")
    storage.write_bytes(storage.absolute(file), "\n".join(users).encode())
    receipt = storage.read_json(forget.run(change(settings, "forget", users=file)))
    assert receipt["num_users_found"] == len(users)
    outputs = [output["url"].removeprefix(f"{storage.absolute(settings.run_dir)}/") for output in receipt["outputs"]]
    exported = ["scores_long"] if storage.exists(settings.place("scores_long")) else []
    answers = [f"report/users/customer_{question}" for question in ("active", "cart", "spend")]
    responses = [place for place in ("report/users/response_buy",) if storage.exists(settings.place(place))]
    assert outputs == ["store", "scores", *exported, *answers, "report/users/next_item", *responses]
    assert all(output["files"] for output in receipt["outputs"][:2])
    for output in receipt["outputs"]:
        left = pa.concat_tables([table.select(["user_id"]) for table in iter_buckets(output["url"])])
        assert not set(users) & set(left.column("user_id").to_pylist())
    check_scores(settings, num_left)


@pytest.mark.usefixtures("ray_cluster")
def test_more_pairs_than_allowed_are_refused_before_training(events: pa.Table, tmp_path: Path) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    build_sequences.run(settings)
    with pytest.raises(SettingsError, match=r"pairs of items together, more than pretrain\.max_pairs 10: raise it, or"):
        pretrain.run(change(settings, "pretrain", max_pairs=10))


def train(settings: Settings) -> SequenceStore:
    store = build_sequences.run(settings)
    pretrain.run(settings)
    finetune.run(settings)
    return store


def finish(settings: Settings, num_users: int) -> dict[str, Any]:
    score_users.run(settings)
    report_url = evaluate.run(settings)
    check_scores(settings, num_users)
    page = storage.read_bytes(storage.join(report_url, "index.html")).decode()
    assert "<svg" in page
    assert "popularity" in page
    return storage.read_json(storage.join(report_url, "report.json"))


def check_responses(settings: Settings) -> None:
    """Train a response task beside the others; its column stands beside the items, its figures in the report."""
    task = {"kind": "response", "horizon_days": 5, "num_cutoffs": 3, "most_candidates": 5}
    finetune.run(change(settings, "finetune", name="buy", task=task))
    score_users.run(settings)
    scores = pa.concat_tables(iter_buckets(settings.place("scores")))
    for items, found in zip(scores["item_ids"].to_pylist(), scores["response_buy"].to_pylist(), strict=True):
        assert len(found) == len(items)
        assert all(0 < probability < 1 for probability in found)
    report_url = evaluate.run(settings)
    figures = storage.read_json(storage.join(report_url, "report.json"))["responses"]["buy"]
    assert 0 < figures["rate"] < 1
    assert figures["num_users"] < figures["num_pairs"] <= 5 * figures["num_users"]
    assert "<h2>Response: buy</h2>" in storage.read_bytes(storage.join(report_url, "index.html")).decode()


def check_rivals(settings: Settings, elsewhere: str) -> None:
    """Train a GRU beside the encoder and hold both against a model of another run, a copy of the encoder."""
    url = settings.model_url("encoder")
    before = storage.read_json(storage.join(url, MANIFEST_NAME))
    gru = change(change(settings, "pretrain", name="gru"), "encoder", block="gru", hidden_size=8, sequence_length=6)
    assert pretrain.run(gru) == settings.place("tasks", "gru")
    assert not storage.exists(settings.place("tasks", "gru.work", "checkpoints"))
    assert storage.read_json(storage.join(url, MANIFEST_NAME)) == before, "the encoder stays as it was"
    shutil.copytree(url, elsewhere)
    models = change(settings, "evaluation", models=("encoder", "gru"), rivals={"last_month": elsewhere})
    report = storage.read_json(storage.join(evaluate.run(models), "report.json"))
    rankers = report["next_item"]["rankers"]
    assert list(rankers)[:4] == ["encoder", "gru", "last_month", "popularity"]
    assert rankers["last_month"]["ndcg_at_10"] == rankers["encoder"]["ndcg_at_10"]
    assert rankers["encoder"]["gain_over"]["last_month"] == {"value": 0, "low": 0, "high": 0}
    assert rankers["encoder"]["gain_over"]["gru"]["value"] != 0
    assert report["models"]["last_month"]["folder"] == elsewhere


def check_what_follows(settings: Settings) -> None:
    """Shorter lists are published, looked at, left again for those before, and these exported."""
    rows = [row for table in iter_buckets(settings.place("scores")) for row in table.to_pylist()]
    user = change(settings, "lookup", user=rows[0]["user_id"])
    shorter = change(user, "scoring", k=3)
    score_users.run(shorter)
    assert lookup.run(shorter)["item_ids"] == rows[0]["item_ids"][:3]
    rollback.run(settings)
    assert lookup.run(user) == rows[0]
    long = pa.concat_tables(iter_buckets(export.run(settings))).to_pylist()
    expected = [(row["user_id"], item) for row in rows for item in row["item_ids"]]
    assert [(row["user_id"], row["item_id"]) for row in long] == expected


def seen_items(settings: Settings) -> dict[str, set[str]]:
    store = SequenceStore.open(storage.absolute(settings.store_url))
    items = known_items_of(store)
    return {user: {item for item in found if item is not None} for user, found in items.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_road_on_local_disk(tmp_path: Path, events: pa.Table, capfd: pytest.CaptureFixture[str]) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    train(settings)
    report = finish(settings, NUM_USERS)
    assert {"encoder", "popularity", "own_history"} <= set(report["next_item"]["rankers"])
    assert 0 <= report["outcomes"]["customer_active"]["auc"]["value"] <= 1
    assert report["answers"]["customer_spend"]["num_users"] > 0
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
    check_responses(settings)
    check_forgotten(settings, sorted(seen)[:2], NUM_USERS - 2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_another_encoder_and_a_rival_of_another_run(tmp_path: Path, events: pa.Table) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    build_sequences.run(settings)
    pretrain.run(settings)
    check_rivals(settings, str(tmp_path / "other/encoder"))


@pytest.mark.usefixtures("ray_cluster")
def test_a_build_killed_between_buckets_is_finished_and_equal(tmp_path: Path, events: pa.Table) -> None:
    write_log(str(tmp_path / "log"), events)
    whole, broken = (
        make_settings(str(tmp_path / name), events={"path": str(tmp_path / "log")}) for name in ("whole", "broken")
    )
    expected = build_sequences.run(whole)
    kill_before_publishing(broken, build_sequences)
    url = str(tmp_path / "broken/store")
    assert not storage.exists(storage.join(url, MANIFEST_NAME)), "readers see nothing of a part"
    (work,) = storage.list_folders(storage.join(url, WORK))
    storage.delete_file(storage.join(url, WORK, work, f"buckets-{broken.store.rows_per_run}/00000.json"))
    written = {path.name for path in Path(url).rglob("bucket=*/*.parquet")}
    again = build_sequences.run(broken)
    assert _hashes(again) == _hashes(expected)
    kept = {path.name for path in Path(url).rglob("bucket=*/*.parquet")} & written
    assert len(kept) == 2, "only the bucket whose mark was missing is made again"
    assert not storage.exists(storage.join(url, WORK))
    build_sequences.run(broken)
    assert [path.name for path in Path(url, SNAPSHOTS).iterdir()] == ["00000000.json"]


def _hashes(store: SequenceStore) -> dict[str, list[str]]:
    return {
        bucket: [file["sha256"] for file in bucket_files(entry)] for bucket, entry in store.manifest["buckets"].items()
    }


@pytest.mark.usefixtures("on_threads")
def test_a_build_killed_right_after_its_snapshot_is_shown_by_the_next(tmp_path: Path, events: pa.Table) -> None:
    write_log(str(tmp_path / "log"), events)
    settings = make_settings(str(tmp_path / "run"), events={"path": str(tmp_path / "log")})
    store = build_sequences.run(settings)
    storage.delete_file(storage.join(store.url, MANIFEST_NAME))
    assert build_sequences.run(settings).manifest == store.manifest
    assert SequenceStore.open(store.url).manifest == store.manifest


@pytest.mark.usefixtures("ray_cluster", "s3_endpoint")
def test_road_with_every_path_on_s3_and_a_store_that_grows_after_training(events: pa.Table) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("clickformer-test")
    write_log("s3://clickformer-test/log", events)
    log = {"path": "s3://clickformer-test/log/*.parquet"}
    sampled = {"kind": "sampled", "num_uniform": 16, "num_in_batch": 8}
    masked = {"objective": {"kind": "masked_item"}, "softmax": sampled}
    base = make_settings("s3://clickformer-test/run", events=log)
    pretraining = base.pretrain.model_dump() | masked
    settings = make_settings("s3://clickformer-test/run", events=log, pretrain=pretraining)
    before = train(settings)

    last_day = events.slice(events.num_rows - 30)
    items = pa.array([f"new-{number % 3}" for number in range(30)], pa.large_string())
    users = pa.array([f"newcomer-{number % 5}" for number in range(30)], pa.large_string())
    newcomers = last_day.set_column(0, "user_id", users).set_column(1, "item_id", items)
    assert newcomers.column_names[:2] == events.column_names[:2] == ["user_id", "item_id"]
    storage.write_parquet("s3://clickformer-test/log/part-late.parquet", newcomers)
    by_ray = change(settings, "store", rows_per_run=20)
    grown = append.run(by_ray)
    assert (grown.num_users, grown.vocabulary.size) == (NUM_USERS + 5, before.vocabulary.size + 3)
    finish(settings, NUM_USERS + 5)
    recommended = {item for table in iter_buckets(settings.place("scores")) for row in table["item_ids"].to_pylist()
                   for item in row}  # fmt: skip
    assert recommended <= set(before.vocabulary.item_ids.to_pylist()), "the model knows no item that came later"
    check_what_follows(settings)
    compacted = compact.run(settings)
    assert all(len(bucket_files(entry)) == 1 for entry in compacted.manifest["buckets"].values())
    check_forgotten(settings, ["newcomer-0", "newcomer-3"], NUM_USERS + 3)
    check_conservation(SequenceStore.open(settings.store_url))


@pytest.mark.usefixtures("on_threads")
def test_a_model_of_another_vocabulary_is_refused_and_one_of_its_beginning_is_not(
    tmp_path: Path, events: pa.Table
) -> None:
    storage.write_parquet(str(tmp_path / "run/events/0.parquet"), events.slice(0, 200))
    settings = make_settings(str(tmp_path / "run"))
    store = build_sequences.run(settings)
    storage.write_parquet(str(tmp_path / "run/events/1.parquet"), events.slice(200))
    grown = append.run(settings)
    assert grown.vocabulary.size > store.vocabulary.size
    publish_untrained(settings, store.vocabulary, len(store.actions))
    assert find_model(settings, grown, "encoder").manifest["vocabulary_size"] == store.vocabulary.size
    assert store.vocabulary.item_ids.equals(load_model(settings.model_url("encoder")).vocabulary.item_ids)
    swapped = store.vocabulary.item_ids.take(pa.array([1, 0, *range(2, len(store.vocabulary.item_ids))]))
    for other in (Vocabulary(swapped), Vocabulary(pa.concat_arrays([grown.vocabulary.item_ids, swapped]))):
        publish_untrained(settings, other, len(store.actions))
        with pytest.raises(
            SettingsError, match=r"was trained on vocabulary \w+, the store \S+ has \w+: train it again"
        ):
            score_users.run(settings)


def publish_untrained(settings: Settings, vocabulary: Vocabulary, num_actions: int) -> None:
    """Publish an encoder that has learned nothing, for a vocabulary."""
    shape: dict[str, Any] = settings.encoder.model_dump(exclude={"inputs"})
    shape |= {"vocabulary_size": vocabulary.size, "num_actions": num_actions + FIRST_INDEX}
    config = ClickformerConfig(**shape)
    facts = {"kind": "next_item", "fingerprint": f"of {vocabulary.size}"}
    save_model(ClickformerEncoder(config), vocabulary, storage.absolute(settings.model_url("encoder")), facts)
