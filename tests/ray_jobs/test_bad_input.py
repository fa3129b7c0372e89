"""Bad input: one readable message on stderr, exit code 2, and no cluster started for it.

A message names the thing, the rule and the remedy. What needs a cluster to be found out is not tested here.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from data_io.buckets import BucketWriter
from data_io.schema import TIME_TYPE, store_schema
from data_io.store import MINUTE_US, write_time_histogram
from data_io.vocabulary import build_vocabulary, write_vocabulary
from ray_jobs.cli import JOBS, main

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = [START + timedelta(days=day) for day in range(10)]

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach for a cluster, not even for one that another test left open."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a Ray cluster was started before the input was found bad")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture
def refuse_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line that must be refused; returns the one message."""

    def run(*command: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("clickformer: ")
        assert message.count("clickformer: ") == 1
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture
def refuse(tmp_path: Path, refuse_command: Callable[..., str]) -> Callable[..., str]:
    """Runs a job with settings that must be refused, its run folder `tmp_path / "run"`; returns the one message."""

    def run(job: str, *overrides: str, **content: Any) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run")} | content))
        return refuse_command(job, str(path), *overrides)

    return run


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


def write_log(folder: Path, **columns: Any) -> str:
    """A log of one good row, but for the given columns; None leaves a column out."""
    row: dict[str, Any] = {"user_id": ["u"], "item_id": ["i"], "action": ["view"], "event_time": pa.array(DAYS[:1])}
    table = pa.table({name: values for name, values in (row | columns).items() if values is not None})
    folder.mkdir()
    pq.write_table(table, folder / "part-0.parquet")
    return str(folder)


def publish_store(run_dir: Path) -> None:
    """The store of two users who view three items, a day apart."""
    url = str(run_dir / "store")
    lists = {"item_index": [[2, 3, 4, 2, 3] * 2] * 2, "action_index": [[2] * 10] * 2, "event_time": [DAYS] * 2}
    ends = {"num_events": [10] * 2, "first_event_time": DAYS[:1] * 2, "last_event_time": DAYS[-1:] * 2}
    rows = pa.table({"user_id": ["u0", "u1"]} | ends | lists, schema=store_schema("string", {}))
    minutes = [int(day.timestamp() * 1e6) // MINUTE_US for day in DAYS]
    write_time_histogram(url, pl.DataFrame({"minute": minutes, "count": [2] * 10}))
    write_vocabulary(url, build_vocabulary(pl.DataFrame({"item_id": ["a", "b", "c"], "count": [8, 8, 4]}), 1))
    facts = {"num_buckets": 1, "num_users": 2, "actions": ["view"], "last_minute": minutes[-1]}
    writer = BucketWriter(url=url, fingerprint="store")
    writer.publish([writer.commit(0, 1, rows, {"num_users": 2})], facts)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The run folder of `refuse`, with a store in it."""
    publish_store(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("job", JOBS)
def test_no_such_settings_file(refuse_command: Refuse, job: str, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refuse_command(job, str(path)) == f"clickformer: {path}: no such settings file\n"


def test_a_folder_is_no_settings_file(refuse_command: Refuse, tmp_path: Path) -> None:
    assert refuse_command("pretrain", str(tmp_path)) == f"clickformer: {tmp_path}: is a folder; give a YAML file\n"


def test_a_path_below_a_file_is_no_settings_file(refuse_command: Refuse, write_file: Callable[[str], str]) -> None:
    path = write_file("") + "/run.yaml"
    assert path in refuse_command("pretrain", path)


def test_what_is_not_yaml_is_told_with_its_line(refuse_command: Refuse, write_file: Callable[[str], str]) -> None:
    path = write_file("seed: 1\nencoder: {hidden_size: [")
    message = refuse_command("pretrain", path)
    assert message.startswith(f"clickformer: {path}: not valid YAML (")
    assert "line 2" in message


def test_yaml_that_would_run_code_is_refused(
    refuse_command: Refuse, write_file: Callable[[str], str], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    path = write_file(f"seed: !!python/object/apply:os.mkdir ['{trap}']")
    message = refuse_command("pretrain", path)
    assert "not valid YAML" in message
    assert "python/object/apply:os.mkdir" in message
    assert not trap.exists()


def test_no_such_log(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("build_sequences", events={"path": str(tmp_path / "log")})
    assert message == f"clickformer: {tmp_path}/log: no such file or folder; give the Parquet log as events.path\n"


def test_a_pattern_that_matches_nothing(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("build_sequences", events={"path": str(tmp_path / "*.parquet")})
    assert message == f"clickformer: {tmp_path}/*.parquet: no file matches this pattern\n"


def test_an_empty_folder_holds_no_log(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    message = refuse("build_sequences", events={"path": str(tmp_path / "log")})
    assert f"{tmp_path}/log: no Parquet file (*.parquet) in this folder" in message


def test_a_file_that_is_not_parquet_is_named(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/part.parquet").write_text("user_id,item_id\n")
    message = refuse("build_sequences", events={"path": str(tmp_path / "log")})
    assert f"{tmp_path}/log/part.parquet: not a readable Parquet file (" in message
    assert message.endswith("replace or remove it\n")


def test_a_missing_column_is_told_with_those_there_are(refuse: Refuse, tmp_path: Path) -> None:
    url = write_log(tmp_path / "log", item_id=None, sku=["i"])
    message = refuse("build_sequences", events={"path": url})
    assert f"{url}/part-0.parquet: no column item_id for item_id; it has user_id, action, event_time, sku" in message
    assert "--events.columns item_id YOUR_COLUMN" in message


def test_the_remedy_for_a_missing_column_is_one(refuse: Refuse, tmp_path: Path) -> None:
    url = write_log(tmp_path / "log", item_id=None, sku=[1.5])
    message = refuse("build_sequences", "--events.columns", "item_id", "sku", events={"path": url})
    assert "column sku (item_id) has type double, expected string or int" in message


def test_a_column_of_a_wrong_type_is_told_with_the_right_ones(refuse: Refuse, tmp_path: Path) -> None:
    url = write_log(tmp_path / "log", event_time=[1704067200])
    message = refuse("build_sequences", events={"path": url})
    assert "column event_time (event_time) has type int64, expected timestamp; cast it in the log" in message


def test_a_log_without_a_row_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    empty: dict[str, Any] = {name: pa.array([], pa.string()) for name in ("user_id", "item_id", "action")}
    url = write_log(tmp_path / "log", **empty, event_time=pa.array([], TIME_TYPE))
    assert f"{url}: the log has 1 Parquet files and not one row" in refuse("build_sequences", events={"path": url})


@pytest.mark.parametrize("job", ["convert", "pretrain", "score_users"])
def test_heads_must_divide_the_width_whatever_the_job(refuse: Refuse, job: str) -> None:
    message = refuse(job, encoder={"hidden_size": 10, "num_heads": 3})
    assert "run.yaml: encoder: num_heads 3 must divide hidden_size 10 into an even width per head" in message


def test_outcomes_and_leave_one_out_do_not_go_together(refuse: Refuse) -> None:
    message = refuse("finetune", split={"kind": "leave_one_out"})
    assert "finetune.task outcome needs a moment in time" in message
    assert "use split kind time or finetune.task kind next_item" in message


@pytest.mark.parametrize(
    ("split", "rule"),
    [
        ({"validation_share": 0.5, "test_share": 0.5}, "must leave something to train on (sum below 1)"),
        ({"test_cutoff_time": "2024-01-02"}, "give both validation_cutoff_time and test_cutoff_time, or neither"),
        (
            {"validation_cutoff_time": "2024-01-03", "test_cutoff_time": "2024-01-02"},
            "validation_cutoff_time 2024-01-03 00:00:00 must lie before test_cutoff_time 2024-01-02 00:00:00",
        ),
        (
            {"validation_cutoff_time": "2024-01-03T00:00:00Z", "test_cutoff_time": "2024-01-02T00:00:00"},
            "must lie before",
        ),
    ],
    ids=["shares", "one cutoff", "cutoffs in the wrong order", "one of them with a zone"],
)
def test_a_split_that_cannot_be_is_told_with_its_rule(refuse: Refuse, split: dict[str, Any], rule: str) -> None:
    message = refuse("pretrain", split={"kind": "time"} | split)
    assert "run.yaml: split" in message
    assert rule in message


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("job", ["pretrain", "evaluate"])
def test_cutoffs_outside_the_log_are_told_with_its_span(refuse: Refuse, job: str) -> None:
    cutoffs = {"validation_cutoff_time": "2030-01-01", "test_cutoff_time": "2030-02-01"}
    message = refuse(job, split={"kind": "time"} | cutoffs)
    assert "the time split leaves a part without events: log from 2024-01-01T00:00:00+00:00 to 2024-01-10" in message
    assert "set split.validation_cutoff_time and split.test_cutoff_time inside the log" in message


@pytest.mark.usefixtures("store")
def test_every_worker_needs_a_micro_batch(refuse: Refuse) -> None:
    training = {"global_batch_size": 64, "micro_batch_size": 64}
    message = refuse("pretrain", pretrain={"training": training})
    assert "global_batch_size 64 makes 1 micro-batches of 64, too few for 2 workers" in message


@pytest.mark.usefixtures("store")
def test_a_batch_is_checked_with_the_workers_of_the_command_line(refuse: Refuse) -> None:
    assert "2 micro-batches of 32, too few for 3 workers" in refuse("pretrain", "--cluster.num-workers", "3")


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"precision": "bfloat16"}, "pretrain.training.precision bfloat16 is for GPUs, and cluster.device is cpu"),
        ({"offload": "optimizer"}, "pretrain.training.offload optimizer spares the memory of GPUs"),
        ({"offload": "parameters"}, "offload parameters needs zero_stage 3 or more (found 1)"),
        ({"zero_stage": 4}, "pretrain.training.zero_stage"),
        ({"zero_stagee": 3}, "unknown setting pretrain.training.zero_stagee; did you mean zero_stage?"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_once(
    refuse: Refuse, training: dict[str, Any], told: str
) -> None:
    began = time.perf_counter()
    assert told in refuse("pretrain", pretrain={"training": training}, cluster={"device": "cpu"})
    assert time.perf_counter() - began < 2


@pytest.mark.usefixtures("store")
def test_an_action_that_is_not_in_the_log_is_told_with_those_that_are(refuse: Refuse) -> None:
    assert "action buy is not in the log; it has view" in refuse("pretrain", target_actions=["buy"])


@pytest.mark.parametrize("job", ["plan", "pretrain", "finetune", "score_users", "evaluate"])
def test_a_job_without_a_store_says_what_to_run(refuse: Refuse, tmp_path: Path, job: str) -> None:
    message = refuse(job)
    assert f"{tmp_path}/run/store: nothing is published here yet" in message
    assert "first" in message


@pytest.mark.usefixtures("store")
def test_finetuning_without_an_encoder_says_what_to_run(refuse: Refuse, tmp_path: Path) -> None:
    assert f"{tmp_path}/run/encoder: nothing is published here yet" in refuse("finetune")


@pytest.mark.usefixtures("store")
def test_scoring_without_an_encoder_says_what_to_run(refuse: Refuse, tmp_path: Path) -> None:
    assert f"{tmp_path}/run/encoder: nothing is published here yet" in refuse("score_users")


@pytest.mark.usefixtures("store")
def test_evaluating_without_models_says_what_to_run(refuse: Refuse, tmp_path: Path) -> None:
    assert f"{tmp_path}/run/encoder: nothing is published here yet" in refuse("evaluate")


@pytest.mark.usefixtures("store")
def test_a_task_that_was_never_trained_is_named(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("score_users", scoring={"recommender": "next_movie"})
    assert f"{tmp_path}/run/tasks/next_movie: nothing is published here yet" in message


@pytest.mark.parametrize("job", ["convert", "build_sequences", "pretrain", "finetune", "score_users", "evaluate"])
def test_a_run_folder_in_an_unknown_store_is_refused(refuse: Refuse, job: str) -> None:
    source = {"name": "synthetic", "synthetic": {"num_users": 5, "num_items": 10, "num_days": 2}}
    message = refuse(job, run_dir="gs://bucket/run", source=source)
    assert "gs://bucket/run" in message
    assert "only local paths and s3:// URLs are supported" in message


def test_a_log_in_an_unknown_store_is_refused(refuse: Refuse) -> None:
    message = refuse("build_sequences", events={"path": "gs://bucket/log"})
    assert "gs://bucket/log: only local paths and s3:// URLs are supported" in message


def test_a_run_folder_that_cannot_be_written_is_named(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    source = {"name": "synthetic", "synthetic": {"num_users": 5, "num_items": 10, "num_days": 2}}
    message = refuse("convert", run_dir=str(tmp_path / "file/run"), source=source)
    assert f"{tmp_path}/file" in message


def test_converting_nothing_is_answered_with_the_data_sets(refuse: Refuse) -> None:
    message = refuse("convert")
    assert "source.name is not set: name one of movielens, " in message
    assert "give it as events.path" in message


def test_a_data_set_without_its_files_is_told(refuse: Refuse, tmp_path: Path) -> None:
    assert "source.path is not set: movielens needs" in refuse("convert", source={"name": "movielens"})
    missing = {"name": "movielens", "path": str(tmp_path / "ml")}
    assert f"{tmp_path}/ml: no such file or folder; give the data set as source.path" in refuse(
        "convert", source=missing
    )


def test_events_of_another_source_are_not_overwritten(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "run/events").mkdir(parents=True)
    (tmp_path / "run/events/_SOURCE.json").write_text('{"fingerprint": "other"}')
    message = refuse("convert", source={"name": "synthetic"})
    assert f"{tmp_path}/run/events holds events of another source; choose another run_dir or delete it" in message
