"""Scoring a million users over a million items: users a second and memory of a share of the users, through Ray.

The store has all users, the model all items; the buckets of a share are scored, each actor taking one after the other,
so its memory is that of any number of buckets. Memory is the peak of all processes above what Ray took idle. Shared
memory, which holds the model once for all actors, is counted in each of them that has read it.
Usage: python -m tests.benchmarks.score_million [--quick]
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.config import ClusterSettings
from cluster.session import ray_session
from data_io.storage import write_parquet
from model.checkpoint import load_model
from model.sharing import pack_model
from ray_jobs import build_sequences
from ray_jobs.bucket_map import map_actors
from ray_jobs.rules import plan_rules
from ray_jobs.scorer import Scorer, ScoreRun
from tests.benchmarks.harness import PeakMemory, finish, is_quick
from tests.benchmarks.score_all import SCORING, make_run, make_settings, publish_encoder

EVENTS_PER_USER, NUM_BUCKETS = 20, 128
ENCODER = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "sequence_length": 50, "dropout": 0.0}
_USERS_A_FILE = 250_000
_MOST_GB = 8.0


def main() -> None:
    num_users, num_items, num_scored = (100_000, 100_000, 2) if is_quick() else (1_000_000, 1_000_000, 4)
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name, ray_session(ClusterSettings()):
        folder = Path(name)
        write_log(folder, num_users, num_items)
        settings = make_settings(folder, NUM_BUCKETS, ENCODER)
        with PeakMemory() as idle:
            time.sleep(1)
        store = build_sequences.run(settings)
        publish_encoder(settings, store)
        plain = make_run(settings, store, "share")
        run = ScoreRun(
            store=store,
            recommender=ray.put(pack_model(load_model(settings.model_url("encoder")))),
            tasks={},
            writer=plain.writer,
            scoring=SCORING,
            rules=ray.put(plan_rules(SCORING, store)),
            popularity=None,
            model_version="f",
        )
        began = time.perf_counter()
        with PeakMemory() as memory:
            spans = [[bucket] for bucket in range(num_scored)]
            marks = [mark for found in map_actors(Scorer, run, spans, settings.cluster) for mark in found]
        seconds = time.perf_counter() - began
        scored = sum(mark["num_users"] for mark in marks)
        peak_gb = (memory.peak_bytes - idle.peak_bytes) / 1e9
        print(f"{scored:,} of {store.num_users:,} users over {store.vocabulary.size - 2:,} items in {seconds:.0f} s")
        print(f"with the start of the actors {scored / seconds:,.0f} users/s; peak {peak_gb:.1f} GB above idle")
        figures = {"users_per_s": scored / seconds, "peak_gb": peak_gb}
    finish("score_million", figures, _MOST_GB, ok=peak_gb <= _MOST_GB)


def write_log(folder: Path, num_users: int, num_items: int) -> None:
    """Twenty events of each user; every item comes up."""
    rng = np.random.default_rng(0)
    for part, first in enumerate(range(0, num_users, _USERS_A_FILE)):
        users = np.arange(first, min(first + _USERS_A_FILE, num_users))
        row = np.repeat(users, EVENTS_PER_USER)
        items = rng.integers(0, num_items, len(row))
        items[: num_items if part == 0 else 0] = np.arange(num_items if part == 0 else 0)
        moments = np.datetime64("2026-01-01", "us") + rng.integers(0, 60 * 86_400, len(row)).astype("timedelta64[s]")
        actions = pa.array(np.full(len(row), "view")).dictionary_encode().cast(pa.string())
        table = pa.table({"user_id": row, "item_id": items, "event_time": moments, "action": actions})
        write_parquet(str(folder / f"log/{part}.parquet"), table)


if __name__ == "__main__":
    main()
