"""Building sequences: ours on a local Ray cluster against a straightforward Polars program, in turn; then appending.

Polars reads, sorts and groups in one process with all cores; it checks nothing, drops no duplicates, profiles nothing:
it does less. Each side is a process of its own, timed inside without its start-up; memory is the sum over all its
processes, Ray's own included, shared pages counted in each. Ids are integers and strings in turn. To the finished store
one per cent of new events is appended: those of the next day, and as many that come late.
Usage: python -m tests.benchmarks.build_sequences [--quick] [--large]
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.harness import compare, finish, is_quick, print_table

_ROWS_PER_FILE = 2_000_000
_NUM_ITEMS = 100_000
_BAR, _APPEND_BAR, _MEMORY_BAR = 1.2, 0.1, 1.3
_START_US, _DAY_US, _NUM_DAYS = 1_700_000_000_000_000, 86_400_000_000, 90


def main() -> None:
    if "--side" in sys.argv:
        place = sys.argv.index("--side")
        side, log, output = sys.argv[place + 1 : place + 4]
        (build_with_polars if side == "polars" else build_with_clickformer)(Path(log), Path(output))
        return
    num_events = 2_000_000 if is_quick() else 20_000_000
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as folder:
        for kind in ("integers", "strings"):
            figures |= compare_sides(Path(folder), num_events, kind)
        if "--large" in sys.argv:
            figures["peak_over_fifth"] = compare_sizes(Path(folder), num_events)
    speeds = [value for name, value in figures.items() if name.startswith("speed")]
    appends = [value for name, value in figures.items() if name.startswith("day")]
    flat = figures.get("peak_over_fifth", 0.0) <= _MEMORY_BAR
    finish("build_sequences", figures, _BAR, ok=min(speeds) >= _BAR and max(appends) < _APPEND_BAR and flat)


def compare_sides(folder: Path, num_events: int, kind: str) -> dict[str, float]:
    """Both sides in turn on a log with ids of one kind."""
    log = folder / kind
    write_logs(log, num_events, strings=kind == "strings")
    appends: list[dict[str, float]] = []
    sides = {name: partial(run_side, name, log, folder / name, appends) for name in ("polars", "clickformer")}
    print(f"{num_events:,} events, ids are {kind}")
    timings = compare(sides, repetitions=1 if is_quick() else 3)
    print_table(timings, num_events, "events")
    build = timings["clickformer"].median
    shares = {name: statistics.median(found[name] for found in appends[1:]) / build for name in ("day", "late")}
    print(f"appending 1 % takes {shares['day']:.1%} of a build for the next day, {shares['late']:.1%} for late events")
    shutil.rmtree(log)
    return {
        f"speed_{kind}": timings["polars"].median / build,
        f"day_{kind}": shares["day"],
        f"late_{kind}": shares["late"],
    }


def compare_sizes(folder: Path, num_events: int) -> float:
    """Peak memory of ours on five times the events over that on them."""
    peaks = []
    for factor in (1, 5):
        log = folder / f"times-{factor}"
        write_logs(log, factor * num_events, strings=False)
        timings = compare({"clickformer": partial(run_side, "clickformer", log, folder / "large", [])}, 0)
        peaks.append(timings["clickformer"].peak_bytes)
        print(f"{factor * num_events:,} events: peak {peaks[-1] / 1e6:,.0f} MB")
        shutil.rmtree(log)
    return peaks[1] / peaks[0]


def write_logs(folder: Path, num_events: int, *, strings: bool) -> None:
    """The log, and one per cent of new events that are of the next day, or late."""
    share = num_events // 100
    generate(folder / "log", num_events, num_events // 20, 0, _NUM_DAYS, strings=strings)
    generate(folder / "day", share, num_events // 20, _NUM_DAYS, 1, strings=strings)
    generate(folder / "late", share, num_events // 20, _NUM_DAYS // 2, 1, strings=strings)


def generate(folder: Path, num_events: int, num_users: int, first_day: int, num_days: int, *, strings: bool) -> None:
    """Events in the order of time, few users and items with most of them."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(first_day)
    num_files = -(-num_events // _ROWS_PER_FILE)
    for file in range(num_files):
        rows = min(_ROWS_PER_FILE, num_events - file * _ROWS_PER_FILE)
        user = pa.array((num_users * generator.random(rows) ** 1.5).astype(np.int64))
        item = pa.array((_NUM_ITEMS * generator.random(rows) ** 3).astype(np.int64))
        span = num_days * _DAY_US
        time_us = np.sort(generator.integers(file * span // num_files, (file + 1) * span // num_files, rows))
        action = generator.choice(4, rows, p=[0.75, 0.12, 0.08, 0.05])
        table = {
            "user_id": _named("u", user) if strings else user,
            "item_id": _named("i", item) if strings else item,
            "action": pa.array(["view", "cart", "purchase", "remove"]).take(pa.array(action)),
            "event_time": pa.array(time_us + _START_US + first_day * _DAY_US, pa.timestamp("us", tz="UTC")),
        }
        pq.write_table(pa.table(table), folder / f"part-{file:05d}.parquet", compression="zstd")


def _named(prefix: str, numbers: pa.Array) -> pa.Array:
    return (pl.lit(prefix) + pl.Series(numbers).cast(pl.String).str.zfill(9)).pipe(pl.select).to_series().to_arrow()


def run_side(name: str, log: Path, output: Path, appends: list[dict[str, float]]) -> float:
    """Seconds one side says it took, in a process of its own; what it says of appending is put beside."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.build_sequences", "--side", name, str(log), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    said = json.loads(done.stdout.splitlines()[-1])
    if "day" in said:
        appends.append(said)
    return float(said["seconds"])


def build_with_polars(log: Path, output: Path) -> None:
    """What one would write without us: items by popularity, events by user and time, one row per user."""
    output.mkdir()
    began = time.perf_counter()
    events = pl.read_parquet(log / "log" / "*.parquet")
    items = events["item_id"].value_counts(sort=True, name="count").with_row_index("item_index", offset=2)
    items.write_parquet(output / "vocabulary.parquet")
    actions = pl.Enum(["view", "cart", "purchase", "remove"])
    encoded = events.join(items.drop("count"), on="item_id", how="left", maintain_order="left").select(
        "user_id", pl.col("item_index").cast(pl.Int32), pl.col("action").cast(actions).to_physical(), "event_time"
    )
    del events
    ordered = encoded.sort("user_id", "event_time", maintain_order=True)
    del encoded
    ordered.group_by("user_id", maintain_order=True).agg(pl.all()).write_parquet(output / "sequences.parquet")
    print(json.dumps({"seconds": time.perf_counter() - began}))


def build_with_clickformer(log: Path, output: Path) -> None:
    """The job itself, on a cluster that is up and whose workers have imported what they need; then the appends."""
    from cluster.config import ClusterSettings
    from cluster.session import ray_session
    from ray_jobs import append, build_sequences

    output.mkdir()
    with ray_session(ClusterSettings(address="local")):
        first = output / "warm"
        first.mkdir()
        # Several runs of the least size, so that every worker process is up and has imported what it needs.
        some = pq.ParquetFile(log / "log" / "part-00000.parquet").read_row_group(0).slice(0, 800_000)
        pq.write_table(some, first / "a.parquet", row_group_size=100_000)
        _seconds(build_sequences.run, first, output / "warm")
        said = {"seconds": _seconds(build_sequences.run, log / "log", output)}
        for name in ("day", "late"):
            said[name] = _seconds(append.run, log / name, output)
        print(json.dumps(said))


def _seconds(job: Callable[[Any], object], log: Path, output: Path) -> float:
    from ray_jobs.config import Settings

    settings = Settings.model_validate({"run_dir": str(output), "events": {"path": str(log)}})
    began = time.perf_counter()
    job(settings)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
