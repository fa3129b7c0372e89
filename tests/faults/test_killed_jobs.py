"""Jobs killed with SIGKILL in the middle: run again, they end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_io import storage
from data_io.buckets import iter_buckets
from data_io.config import SyntheticSettings
from data_io.store import SequenceStore
from data_io.synthetic import generate_events
from model.checkpoint import save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from ray_jobs import build_sequences, pretrain, score_users
from ray_jobs.config import Settings

SECTIONS = {
    "store": {"num_buckets": 6},
    "encoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "dropout": 0.2},
    "pretrain": {
        "softmax": {"kind": "sampled", "num_uniform": 16, "num_in_batch": 8},
        "training": {
            "num_epochs": 2,
            "global_batch_size": 16,
            "micro_batch_size": 8,
            "zero_stage": 1,
            "checkpoint_every_steps": 2,
            "keep_checkpoints": 3,
        },
    },
    "scoring": {"k": 5, "batch_size": 4},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    events = generate_events(SyntheticSettings(num_users=240, num_items=80, num_days=40, mean_events_per_user=20))
    for part in range(6):
        size = -(-events.num_rows // 6)
        storage.write_parquet(str(folder / f"part-{part}.parquet"), events.slice(part * size, size))
    return str(folder)


def make_settings(run_dir: Path, log: str) -> Settings:
    return Settings.model_validate({"run_dir": str(run_dir), "events": {"path": log}} | SECTIONS)


def kill_when(
    job: str, settings: Settings, folder: Path, reached: Callable[[], bool], sign: signal.Signals = signal.SIGKILL
) -> int:
    """Run a job as a user would, in a process group of its own, and send a signal once it has come so far.

    SIGKILL goes to the whole group, any other to the job alone. Returns its exit status.
    """
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "killed.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"ray_jobs.{job}", str(file)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while not reached():
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"{job} ended before it could be killed: {(folder / 'killed.log').read_text()[-2000:]}")
    if sign == signal.SIGKILL:
        os.killpg(process.pid, sign)
    else:
        process.send_signal(sign)
    return process.wait(timeout=120)


def rows_of(url: str) -> list[dict[str, object]]:
    return pa.concat_tables(iter_buckets(url)).to_pylist()


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_build_goes_on_and_equals_the_undisturbed_one(tmp_path: Path, log: str) -> None:
    whole, broken = (make_settings(tmp_path / name, log) for name in ("whole", "broken"))
    build_sequences.run(whole)
    work = tmp_path / "broken/store/_work"
    kill_when("build_sequences", broken, tmp_path, lambda: any(work.glob("*/buckets*/*.json")))
    store = build_sequences.run(broken)
    assert rows_of(store.url) == rows_of(str(tmp_path / "whole/store"))
    assert not work.exists()


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_scoring_job_goes_on_and_scores_each_user_once(tmp_path: Path, log: str) -> None:
    whole, broken = (make_settings(tmp_path / name, log) for name in ("whole", "broken"))
    for settings in (whole, broken):
        store = build_sequences.run(settings)
        _publish_untrained(settings, store)
    score_users.run(whole)
    scores = tmp_path / "broken/scores"
    kill_when("score_users", broken, tmp_path, lambda: any((scores / "_work").glob("*/buckets*/*.json")))
    assert not (scores / "_MANIFEST.json").exists(), "readers see nothing of a part"
    score_users.run(broken)
    expected = rows_of(str(tmp_path / "whole/scores"))
    assert [row["user_id"] for row in rows_of(str(scores))] == [row["user_id"] for row in expected]
    assert [row["item_ids"] for row in rows_of(str(scores))] == [row["item_ids"] for row in expected]
    users = [row["user_id"] for row in expected]
    assert len(users) == len(set(users)) == store.num_users


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_training_that_is_terminated_and_then_killed_goes_on_in_the_middle_of_an_epoch_to_the_same_weights(
    tmp_path: Path, log: str
) -> None:
    whole, broken = (make_settings(tmp_path / name, log) for name in ("whole", "broken"))
    for settings in (whole, broken):
        build_sequences.run(settings)
    pretrain.run(whole)
    work = tmp_path / "broken/encoder.work"

    def written() -> set[str]:
        return {path.parent.name for path in (work / "checkpoints").glob("epoch=*/_MANIFEST.json")}

    assert kill_when("pretrain", broken, tmp_path, lambda: bool(written()), signal.SIGTERM) == 143
    assert json.loads((work / "status.json").read_text())["state"] == "interrupted"
    assert "run the same command again to go on" in (tmp_path / "killed.log").read_text()
    before = written()
    kill_when("pretrain", broken, tmp_path, lambda: bool(written() - before))
    assert json.loads((work / "status.json").read_text())["state"] == "running", "nobody could say more"
    for ray_run in work.glob("ray_train/*"):  # Ray's own record is torn (T9), and ours is what counts
        (ray_run / "checkpoint_manager_snapshot.json").write_text("")
    pretrain.run(broken)
    expected, found = (load_file(tmp_path / name / "encoder/model.safetensors") for name in ("whole", "broken"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), "bit-equal on as many workers"


def _publish_untrained(settings: Settings, store: SequenceStore) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = settings.encoder.model_dump(exclude={"inputs"}) | {
        "vocabulary_size": store.vocabulary.size,
        "num_actions": 10,
    }
    facts = {"kind": "next_item", "fingerprint": "f"}
    save_model(ClickformerEncoder(ClickformerConfig(**config)), store.vocabulary, settings.place("encoder"), facts)
