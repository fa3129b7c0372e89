"""Users who are far larger than the rest (T17): memory stays where it is, and the newest events are the right ones."""

from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.store import SequenceStore
from ray_jobs import build_sequences
from ray_jobs.config import Settings
from tests.store_jobs import start_job
from tests.undisturbed import content_of

pytestmark = pytest.mark.usefixtures("joined")

GIANT = 7
"""The user who is large."""
NUM_FILES, ROWS_PER_FILE = 12, 100_000
SECONDS = 30 * 86_400


def write_log(folder: Path, num_files: int, rows_per_file: int, giant_share: float, num_users: int) -> None:
    """A log in no order of time, of which the giant has a share; whole seconds, so that many events are tied."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for part in range(num_files):
        user = generator.integers(10, 10 + num_users, rows_per_file)
        user[generator.random(rows_per_file) < giant_share] = GIANT
        seconds = 1_704_067_200 + generator.integers(0, SECONDS, rows_per_file)
        table = pa.table(
            {
                "user_id": user,
                "item_id": np.arange(rows_per_file) + part * rows_per_file,
                "action": pa.array(["view"] * rows_per_file),
                "event_time": pa.array(seconds * 1_000_000).cast(pa.timestamp("us", "UTC")),
            }
        )
        pq.write_table(table, folder / f"part-{part:02d}.parquet")


def settings_of(folder: Path, name: str, max_events: int, rows_per_run: int) -> Settings:
    store = {"num_buckets": 8, "max_events_per_user": max_events, "rows_per_run": rows_per_run}
    return Settings.model_validate(
        {"run_dir": str(folder / f"run-{name}"), "events": {"path": str(folder / name)}, "store": store}
    )


def newest_events(folder: Path, max_events: int) -> pl.DataFrame:
    """What a reader of the whole log takes for the newest events of each user: by time, then by place in the log."""
    files = sorted(folder.glob("*.parquet"))
    log = pl.concat([pl.read_parquet(file) for file in files]).select("user_id", "item_id", "event_time")
    return (
        log.sort("user_id", "event_time", maintain_order=True).group_by("user_id", maintain_order=True).tail(max_events)
    )


def check_newest(settings: Settings, expected: pl.DataFrame) -> None:
    found = content_of(settings.store_url).select("user_id", "item_id", pl.col("event_time").dt.epoch("us"))
    assert found.equals(expected.with_columns(pl.col("event_time").dt.epoch("us")))
    manifest = SequenceStore.open(settings.store_url).manifest
    assert manifest["num_events"] == expected.height
    assert manifest["num_rows"] == expected.height + manifest["num_truncated"]


@pytest.mark.parametrize("rows_per_run", [3_000, 100_000])
def test_half_of_all_rows_belong_to_one_user(rows_per_run: int, tmp_path: Path) -> None:
    write_log(tmp_path / "log", num_files=6, rows_per_file=3_000, giant_share=0.5, num_users=300)
    settings = settings_of(tmp_path, "log", 40, rows_per_run)
    build_sequences.run(settings)
    check_newest(settings, newest_events(tmp_path / "log", 40))


def peak_of_a_worker(settings: Settings, folder: Path) -> int:
    """Largest memory of its own, in bytes, that a worker of a build had at any time."""
    before, peak = set(psutil.pids()), 0
    job = start_job("build_sequences", settings, folder, in_tasks=True)
    while job.process.is_alive():
        for process in psutil.process_iter():
            if process.pid not in before and process.pid != job.pid:
                peak = max(peak, own_bytes(process))
        job.process.join(0.05)
    assert job.wait() == 0, job.said
    return peak


def own_bytes(process: psutil.Process) -> int:
    """Memory of a worker without what it shares with others; 0 of a process that is none, or gone."""
    try:
        if not process.name().startswith("ray::"):
            return 0
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return memory.rss - memory.shared


@pytest.mark.faults
def test_a_user_of_a_million_events_costs_no_more_memory_than_many_users(tmp_path: Path) -> None:
    peaks = {}
    for name, giant_share in (("giant", 1 / 1.2), ("many", 0.0)):
        write_log(tmp_path / name, NUM_FILES, ROWS_PER_FILE, giant_share, num_users=12_000)
        settings = settings_of(tmp_path, name, 1_000, ROWS_PER_FILE)
        peaks[name] = peak_of_a_worker(settings, tmp_path)
        expected = newest_events(tmp_path / name, 1_000)
        check_newest(settings, expected)
    assert peaks["many"] > 0
    assert peaks["giant"] < 1.5 * peaks["many"], f"{peaks} bytes"
