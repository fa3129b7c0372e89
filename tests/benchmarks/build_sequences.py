"""Building sequences: ours on a local Ray cluster against a straightforward Polars program, in turn.

Polars reads, sorts and groups in one process with all cores; it checks nothing and drops no duplicates: it does less.
Each side is a process of its own, timed inside without its start-up (Ray's is printed); memory is the sum over all its
processes, Ray's own included. Ids are integers, the harder case for us: with strings Polars falls further behind.
Usage: python -m tests.benchmarks.build_sequences [--quick] [--large] [--strings]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.harness import compare, finish, is_quick, print_table

_ROWS_PER_FILE = 2_000_000
_NUM_ITEMS = 100_000
_BAR = 1.2
_SPAN_US = 90 * 86_400_000_000


def main() -> None:
    if "--side" in sys.argv:
        place = sys.argv.index("--side")
        side, log, output = sys.argv[place + 1 : place + 4]
        (build_with_polars if side == "polars" else build_with_clickformer)(Path(log), Path(output))
        return
    num_events = 2_000_000 if is_quick() else 20_000_000
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as folder:
        log = Path(folder) / "log"
        generate(log, num_events, strings="--strings" in sys.argv)
        sides = {name: partial(run_side, name, log, Path(folder) / name) for name in ("polars", "clickformer")}
        timings = compare(sides, repetitions=1 if is_quick() else 3)
        print_table(timings, num_events, "events")
        figures = {"speed_over_polars": timings["polars"].median / timings["clickformer"].median}
        flat = True
        if "--large" in sys.argv:
            shutil.rmtree(log)
            generate(log, 5 * num_events, strings="--strings" in sys.argv)
            large = compare({"clickformer": partial(run_side, "clickformer", log, Path(folder) / "large")}, 1)
            print_table(large, 5 * num_events, "events")
            figures["peak_over_fifth"] = large["clickformer"].peak_bytes / timings["clickformer"].peak_bytes
            flat = figures["peak_over_fifth"] <= 1.3
    finish("build_sequences", figures, bar=_BAR, ok=flat and figures["speed_over_polars"] >= _BAR)


def generate(folder: Path, num_events: int, *, strings: bool) -> None:
    """A log in the order of time: a twentieth as many users as events, few of them with most of the events."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    num_users, num_files = num_events // 20, -(-num_events // _ROWS_PER_FILE)
    for file in range(num_files):
        rows = min(_ROWS_PER_FILE, num_events - file * _ROWS_PER_FILE)
        user = pa.array((num_users * generator.random(rows) ** 1.5).astype(np.int64))
        item = pa.array((_NUM_ITEMS * generator.random(rows) ** 3).astype(np.int64))
        time_us = np.sort(generator.integers(file * _SPAN_US // num_files, (file + 1) * _SPAN_US // num_files, rows))
        action = generator.choice(4, rows, p=[0.75, 0.12, 0.08, 0.05])
        table = {
            "user_id": _named("u", user) if strings else user,
            "item_id": _named("i", item) if strings else item,
            "action": pa.array(["view", "cart", "purchase", "remove"]).take(pa.array(action)),
            "event_time": pa.array(time_us + 1_700_000_000_000_000, pa.timestamp("us", tz="UTC")),
        }
        pq.write_table(pa.table(table), folder / f"part-{file:05d}.parquet", compression="zstd")


def _named(prefix: str, numbers: pa.Array) -> pa.Array:
    return (pl.lit(prefix) + pl.Series(numbers).cast(pl.String).str.zfill(9)).pipe(pl.select).to_series().to_arrow()


def run_side(name: str, log: Path, output: Path) -> float:
    """Seconds one side says it took, in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.build_sequences", "--side", name, str(log), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def build_with_polars(log: Path, output: Path) -> None:
    """What one would write without us: items by popularity, events by user and time, one row per user."""
    output.mkdir()
    began = time.perf_counter()
    events = pl.read_parquet(log / "*.parquet")
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
    """The job itself, on a cluster that is up and whose workers have imported what they need."""
    from cluster.config import ClusterSettings
    from cluster.session import ray_session
    from ray_jobs import build_sequences
    from ray_jobs.config import Settings

    output.mkdir()
    with ray_session(ClusterSettings(address="local")):
        began = time.perf_counter()
        first = output / "warm"
        first.mkdir()
        # Several runs of the least size, so that every worker process is up and has imported what it needs.
        some = pq.ParquetFile(log / "part-00000.parquet").read_row_group(0).slice(0, 800_000)
        pq.write_table(some, first / "a.parquet", row_group_size=100_000)
        build_sequences.run(Settings.model_validate({"run_dir": str(output / "warm"), "events": {"path": str(first)}}))
        started = time.perf_counter() - began
        began = time.perf_counter()
        build_sequences.run(Settings.model_validate({"run_dir": str(output), "events": {"path": str(log)}}))
        print(json.dumps({"seconds": time.perf_counter() - began, "warm_up": started}))


if __name__ == "__main__":
    main()
