"""Training on a catalogue of a million items: memory and time of two workers, their item table spread by rows or whole.

The same global batches in turn. Memory of a worker is what its process took of the host at most, above what it had
before it made the network; the store behind it has every item at least once and popular ones by Zipf's law.
Usage: python -m tests.benchmarks.million_items [--quick]
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.config import ClusterSettings
from cluster.session import ray_session
from data_io.storage import write_parquet
from model.checkpoint_form import TrainPosition
from model.memory import NetworkSize, resident_peak, stored_bytes
from model.training_config import TrainingSettings
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.watch import Watch
from tests.benchmarks.harness import finish, is_quick
from tests.benchmarks.training_runs import leave, make_training, measure

NUM_WORKERS, EVENTS_PER_USER = 2, 50
MOST_SHARE = 0.75
"""Of the memory that whole tables take."""
SECTIONS = {
    "encoder": {"hidden_size": 64, "num_layers": 2, "sequence_length": 50},
    "pretrain": {
        "training": {"num_epochs": 1, "global_batch_size": 512, "micro_batch_size": 128, "num_validation_users": 200},
        "softmax": {"kind": "sampled"},
    },
}


def main() -> None:
    num_items = 100_000 if is_quick() else 1_000_000
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name, ray_session(ClusterSettings()):
        make_log(Path(name), num_items)
        run = make_training(Path(name), SECTIONS)
        print(f"{num_items:,} items, {int(run.index.num_examples.sum()):,} windows, {NUM_WORKERS} workers")
        print(f"{'item table':<12} {'stored MB':>10} {'peak MB':>9} {'half-way':>9} {'step s':>8} {'loss':>7}")
        peaks: dict[str, int] = {}
        for side, shard_from in (("rows", 1), ("whole", 10**9)):
            training = run.training.model_copy(update={"shard_items_from": shard_from})
            found = measure(replace(run, training=training), NUM_WORKERS, train)
            peaks[side] = max(worker["peak"] for worker in found)
            first = found[0]
            half = max(worker["half_way"] for worker in found)
            print(
                f"{side:<12} {first['stored'] / 1e6:>10,.0f} {peaks[side] / 1e6:>9,.0f} {half / 1e6:>9,.0f} "
                f"{first['step_s']:>8.3f} {first['loss']:>7.4f}",
                flush=True,
            )
    share = peaks["rows"] / peaks["whole"]
    finish("million_items", {"rows_mb": peaks["rows"] / 1e6, "share": share}, MOST_SHARE, ok=share <= MOST_SHARE)


def make_log(folder: Path, num_items: int) -> None:
    """Two events an item: each item once, and as many drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    items = np.concatenate([np.arange(num_items), rng.zipf(1.1, num_items) % num_items])
    rng.shuffle(items)
    users = np.repeat(np.arange(len(items) // EVENTS_PER_USER), EVENTS_PER_USER)
    moments = np.datetime64("2026-01-01", "us") + rng.integers(0, 60 * 86_400, len(users)).astype("timedelta64[s]")
    columns = {"user_id": users, "item_id": items[: len(users)], "event_time": moments}
    table = pa.table(columns | {"action": pa.array(np.full(len(users), "view"))})
    write_parquet(str(folder / "log/part-0.parquet"), table)


def train(run: TrainRun, device: torch.device, watch: Watch) -> None:
    """An epoch and its validation, as `pretrain` runs them."""
    torch.set_num_threads(1)
    with watch:
        before = resident_peak()
        trainer = MeasuredTrainer(run, device, watch)
        position = TrainPosition()
        trainer._train_epoch(position)
        trainer._validate(position)
        trainer._save(position)
        trainer.checkpoints.wait()
        found: dict[str, Any] = {"peak": resident_peak() - before, "half_way": trainer.half_way - before}
        found |= {"stored": stored(run, run.training), "loss": trainer.losses[-1]}
        leave(trainer, found | {"step_s": statistics.median(trainer.seconds)})


class MeasuredTrainer(Trainer):
    """Notes seconds and losses of its steps, and its memory after half of them."""

    def __init__(self, run: TrainRun, device: torch.device, watch: Watch) -> None:
        super().__init__(run, device, watch)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.half_way = 0

    def _step(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = super()._step(*arguments)
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(result.loss)
        if len(self.losses) == self.order(0).num_steps // 2:
            self.half_way = resident_peak()
        return result


def stored(run: TrainRun, training: TrainingSettings) -> int:
    """Bytes that the plan says a worker keeps."""
    objective = run.learning.build(run.index)
    size = NetworkSize.of(objective, run.learning.model_of(objective), training.shard_items_from)
    return sum(stored_bytes(size, training, run.optimizer, NUM_WORKERS).values())


if __name__ == "__main__":
    main()
