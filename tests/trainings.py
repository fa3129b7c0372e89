"""A small training with a ledger of who was trained on in which step."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from data_io import storage
from data_io.batch import ITEM_INDEX, Batch
from data_io.buckets import bucket_of
from data_io.config import SyntheticSettings
from data_io.examples import Examples
from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from data_io.sequences import Sequences
from data_io.synthetic import generate_events
from model.engine import StepResult
from model.flops import StepSize
from ray_jobs import build_sequences
from ray_jobs.config import Settings
from ray_jobs.tasks import pretraining
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.training import count_store, identity_of, make_run, open_store
from ray_jobs.watch import Watch

USER = "user"
"""[B, T] number of the user of each place, in batches of a ledger."""
SECTIONS: dict[str, Any] = {
    "store": {"num_buckets": 6},
    "encoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "dropout": 0.2},
    "pretrain": {
        "windows_per_user": 1,
        "softmax": {"kind": "sampled", "num_uniform": 16, "num_in_batch": 8},
        "optimizer": {"warmup_steps": 4, "average_decay": 0.9},
        "training": {"num_epochs": 2, "global_batch_size": 16, "micro_batch_size": 4, "checkpoint_every_steps": 2},
    },
}


def write_log(folder: Path, num_users: int = 150, largest_bucket: int = 1) -> None:
    """A synthetic log; one bucket has so many times the users of the others."""
    shape = SyntheticSettings(num_users=num_users, num_items=80, num_days=40, mean_events_per_user=20)
    events = generate_events(shape)
    buckets = bucket_of(events["user_id"].combine_chunks(), SECTIONS["store"]["num_buckets"])
    numbers = pc.utf8_ltrim(events["user_id"], "u").cast(pa.int64()).to_numpy()
    kept = (buckets == 0) | (numbers % largest_bucket == 0)
    storage.write_parquet(str(folder / "part-0.parquet"), events.filter(pa.array(kept)))


def make_settings(folder: Path, **training: Any) -> Settings:
    """Settings of a run in a folder, on the log below it."""
    sections = json.loads(json.dumps(SECTIONS))
    sections["pretrain"]["training"] |= training
    return Settings.model_validate({"run_dir": str(folder / "run"), "events": {"path": str(folder / "log")}} | sections)


def make_training(folder: Path, num_users: int = 150, largest_bucket: int = 1, **training: Any) -> TrainRun:
    """A run on a log of its own, counted; in a Ray session."""
    write_log(folder / "log", num_users, largest_bucket)
    settings = make_settings(folder, **training)
    build_sequences.run(settings)
    store, split = open_store(settings)
    learning = LedgerLearning(pretraining(settings, store, split))
    identity = identity_of(settings, settings.pretrain, {"store": store.fingerprint})
    index = count_store(learning)
    return make_run("pretrain", settings, settings.pretrain, learning, index, str(folder / "work"), identity)


class LedgerLearning:
    """A task whose training batches say whose they are."""

    def __init__(self, learning: Any) -> None:
        self.learning = learning

    def __getattr__(self, name: str) -> Any:
        if name == "learning":  # asked for while a pickle is opened
            raise AttributeError(name)
        return getattr(self.learning, name)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        batch = self.learning.make_batch(sequences, examples)
        users = np.array(numbers_of(sequences, examples), np.int64)
        return batch | {USER: np.broadcast_to(users[:, None], batch[ITEM_INDEX].shape).copy()}

    def empty_batch(self) -> Batch:
        batch = self.learning.empty_batch()
        return batch | {USER: np.zeros_like(batch[ITEM_INDEX])}


def numbers_of(sequences: Sequences, examples: Examples) -> list[int]:
    """The number in each user's id, counted from 1."""
    return [int(str(user).lstrip("u")) + 1 for user in sequences.user_id.take(examples.row).to_pylist()]


class StopHereError(Exception):
    """A test stops a training after a step."""


class LedgerTrainer(Trainer):
    """Writes down users and loss of each step; a step that is taken again is written over."""

    def __init__(self, run: TrainRun, ledger: Path, stop_after: int | None = None) -> None:
        super().__init__(run, torch.device("cpu"), Watch(600, run.work_url, 0))
        self.ledger, self.stop_after = ledger, stop_after
        ledger.mkdir(parents=True, exist_ok=True)

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        result = super()._step(loaded, size, global_step, order)
        for lane, batch in zip(self.place.lanes, loaded.batches, strict=False):
            users = batch[USER][:, 0][batch["padding_mask"][:, 0]].tolist()
            entry = {"epoch": global_step // order.num_steps, "users": users, "loss": result.loss}
            (self.ledger / f"{global_step:06d}-{lane:03d}.json").write_text(json.dumps(entry))
        if global_step == self.stop_after:
            self.checkpoints.wait()
            torch.distributed.barrier()
            raise StopHereError
        return result


def read_ledger(ledger: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """By step and micro-batch."""
    found = {}
    for path in sorted(ledger.glob("*.json")):
        step, lane = path.stem.split("-")
        found[int(step), int(lane)] = json.loads(path.read_text())
    return found


def check_each_user_once_an_epoch(ledger: Path, num_users: int, num_epochs: int) -> None:
    """Fail where a user of an epoch was trained on twice or never."""
    for epoch in range(num_epochs):
        counts = Counter(
            user for entry in read_ledger(ledger).values() if entry["epoch"] == epoch for user in entry["users"]
        )
        assert len(counts) == num_users, f"epoch {epoch}: {len(counts)} of {num_users} users"
        assert set(counts.values()) == {1}, f"epoch {epoch}: {counts.most_common(3)}"


def losses_of(ledger: Path) -> dict[int, float]:
    """Loss of each step."""
    return {step: entry["loss"] for (step, _), entry in read_ledger(ledger).items()}


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone().numpy() for name, parameter in module.named_parameters()}
