"""Training on a catalogue of a million items: memory and time of two workers, their item table spread by rows or whole.

The same global batches in turn. Memory of a worker is what its process took of the host at most, above what it had
before it made the network: by half of the epoch, by its end, after validation, and after a checkpoint. The log has each
item once, and as many events again by Zipf's law.
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
COLUMNS = dict.fromkeys(("stored", "half_way", "trained", "validated", "peak"), "{:>10.2e}")
COLUMNS |= dict.fromkeys(("step_s", "stall_s", "write_s", "loss"), "{:>10.3f}")
"""What is printed: bytes that the plan says are stored, bytes taken by then, seconds, and the last loss."""
MOST_SHARE = 0.6
"""Of the memory that training with whole tables takes."""
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
        print(f"{'item table':<11} {' '.join(f'{name:>10}' for name in COLUMNS)}")
        trained: dict[str, float] = {}
        for side, shard_from in (("rows", 1), ("whole", 10**9)):
            training = run.training.model_copy(update={"shard_items_from": shard_from})
            workers = measure(replace(run, training=training), NUM_WORKERS, train)
            most = {name: max(worker[name] for worker in workers) for name in COLUMNS}
            trained[side] = most["trained"]
            print(f"{side:<11} {' '.join(COLUMNS[name].format(value) for name, value in most.items())}", flush=True)
    share = trained["rows"] / trained["whole"]
    finish("million_items", {"rows_mb": trained["rows"] / 1e6, "share": share}, MOST_SHARE, ok=share <= MOST_SHARE)


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
        found: dict[str, Any] = {"half_way": trainer.half_way - before, "trained": resident_peak() - before}
        trainer._validate(position)
        found["validated"] = resident_peak() - before
        began = time.perf_counter()
        trainer._save(position)
        found["stall_s"] = time.perf_counter() - began
        trainer.checkpoints.wait()
        found |= {"write_s": time.perf_counter() - began - found["stall_s"], "peak": resident_peak() - before}
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
