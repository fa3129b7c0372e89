"""The training loop each worker runs, under Ray Train or under a test.

Resumes by looking at storage, so it does not matter whether a worker, a node or the driver was lost. Invariant: all
ranks take the same steps and call every collective the same number of times.
"""

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from data_io import storage
from data_io.loader import BatchLoader, RankPlace
from data_io.order import EpochOrder
from model.checkpoint import TrainPosition, resume, save_checkpoint, save_model
from model.config import OptimizerSettings, TrainingSettings
from model.engine import TrainEngine, accumulation_steps
from model.objectives import ItemObjective
from ray_jobs.learning import Learning, StoreIndex, rank_buckets, sample_validation
from ray_jobs.progress import Progress, say

BEST = "best"
_STEPS_PER_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Everything a worker needs; it travels by pickle from the driver."""

    name: str
    learning: Learning
    index: StoreIndex
    training: TrainingSettings
    optimizer: OptimizerSettings
    seed: int
    work_url: str
    """Folder of checkpoints and of the best model so far."""
    fingerprint: str
    manifest: dict[str, Any]
    """What the published model's manifest will say."""


def train_loop(run: TrainRun, device: torch.device) -> None:
    """Train until the epochs are over or validation stops getting better; leaves the best model under work_url."""
    Trainer(run, device).train()


class Trainer:
    """The loop's state on one worker."""

    def __init__(self, run: TrainRun, device: torch.device) -> None:
        torch.manual_seed(run.seed)
        self.run = run
        objective = run.learning.build(run.index)
        self._plain = copy.deepcopy(run.learning.model_of(objective)).eval()
        torch.nn.Module.to(self._plain, device)
        self.engine = TrainEngine(objective, run.training, run.optimizer, device)
        self.loader = BatchLoader(
            run.learning.store, run.learning.make_examples, run.learning.make_batch, run.learning.empty_batch()
        )
        world_size = dist.get_world_size()
        self.place = RankPlace(
            rank=dist.get_rank(),
            world_size=world_size,
            micro_batch_size=run.training.micro_batch_size,
            accumulation=accumulation_steps(run.training, world_size),
        )

    def train(self) -> None:
        """Epoch after epoch from wherever the newest checkpoint stands."""
        checkpoints = storage.join(self.run.work_url, "checkpoints")
        position = resume(self.engine, checkpoints, self.run.fingerprint)
        if position != TrainPosition():
            self._say(f"resuming in epoch {position.epoch + 1} after step {position.step}")
        while position.epoch < self.run.training.num_epochs and not self._is_stuck(position):
            self._train_epoch(position, checkpoints)
            position = self._validate(position)
            save_checkpoint(
                self.engine, position, checkpoints, self.run.fingerprint, self.run.training.keep_checkpoints
            )

    def _is_stuck(self, position: TrainPosition) -> bool:
        return position.epochs_without_gain >= self.run.training.patience

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.run.index.num_examples, self.run.seed, epoch, self.run.training.global_batch_size)

    def _train_epoch(self, position: TrainPosition, checkpoints: str) -> None:
        order = self._order(position.epoch)
        every = self.run.training.checkpoint_every_steps
        num_steps = order.num_steps * self.run.training.num_epochs
        progress = Progress(f"{self.run.name}: epoch {position.epoch + 1}", order.num_steps - position.step, "steps")
        num_events, num_targets, loss_sum, num_done = 0, 0, 0.0, 0
        for step, batches in enumerate(self.loader.steps(order, self.place, position.step), start=position.step):
            global_step = position.epoch * order.num_steps + step
            weight = sum(self.run.learning.num_targets(batch) for batch in batches)
            seed = self.run.seed * _STEPS_PER_SEED + global_step * self.place.accumulation
            result = self.engine.step(batches, weight, seed, global_step, num_steps)
            num_events += sum(int(batch["padding_mask"].sum()) for batch in batches)
            num_targets, loss_sum, num_done = num_targets + weight, loss_sum + result.loss, num_done + 1
            if self.place.rank == 0:
                rate = num_events * self.place.world_size / max(progress.seconds, 1e-9)
                progress.advance(note=f"loss {loss_sum / num_done:.4f}, {rate:,.0f} events/s")
            if every and (step + 1) % every == 0 and step + 1 < order.num_steps:
                reached = replace(position, step=step + 1)
                save_checkpoint(
                    self.engine, reached, checkpoints, self.run.fingerprint, self.run.training.keep_checkpoints
                )
        if num_done:
            self._record(position.epoch, loss_sum / num_done, num_events * self.place.world_size / progress.seconds)
            self._record_parts(position.epoch, num_targets)

    def _validate(self, position: TrainPosition) -> TrainPosition:
        began = time.monotonic()
        self._copy_weights()
        learning, store = self.run.learning, self.run.learning.store
        quota = -(-self.run.training.num_validation_users // store.num_buckets)
        parts: list[np.ndarray] = []
        for bucket in rank_buckets(store.num_buckets, self.place.rank, self.place.world_size):
            sequences = store.read_sequences(bucket)
            examples = sample_validation(learning, sequences, quota, self.run.seed)
            parts.append(learning.validate(self._plain, sequences, examples))
        gathered: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(gathered, parts)
        values = [part for rank_parts in gathered for part in rank_parts if len(part)]
        name, metric = learning.metric(np.concatenate(values) if values else np.zeros((0, 2)))
        self._say(f"epoch {position.epoch + 1}: validation {name} {metric:.4f} ({time.monotonic() - began:.0f} s)")
        self._record_metric(position.epoch, name, metric)
        after = TrainPosition(
            epoch=position.epoch + 1,
            best_metric=max(metric, position.best_metric),
            epochs_without_gain=0 if metric > position.best_metric else position.epochs_without_gain + 1,
        )
        if metric > position.best_metric and self.place.rank == 0:
            manifest = self.run.manifest | {"validation": {name: metric, "epoch": position.epoch + 1}}
            save_model(self._plain, store.vocabulary, storage.join(self.run.work_url, BEST), manifest)
        dist.barrier()
        return after

    def _copy_weights(self) -> None:
        """Bring the trained weights, whole, into a network that DeepSpeed does not know."""
        with self.engine.gathered_parameters():
            self._plain.load_state_dict(self.run.learning.model_of(self.engine.module).state_dict())

    def _say(self, text: str) -> None:
        if self.place.rank == 0:
            say(f"{self.run.name}: {text}")

    def _record(self, epoch: int, loss: float, events_per_s: float) -> None:
        self._write_tensorboard(epoch, {"loss/train": loss, "speed/events_per_s": events_per_s})

    def _record_parts(self, epoch: int, num_targets: int) -> None:
        """Tell what the loss is made of, where it is of more than items; the figures are the first worker's own."""
        objective = self.engine.module
        parts = objective.take_parts() if isinstance(objective, ItemObjective) else {}
        if len(parts) > 1:
            means = {name: loss / max(1, num_targets) for name, loss in parts.items()}
            said = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            self._say(f"epoch {epoch + 1}: loss of {said}")
            self._write_tensorboard(epoch, {f"loss/{name}": mean for name, mean in means.items()})

    def _record_metric(self, epoch: int, name: str, metric: float) -> None:
        self._write_tensorboard(epoch, {f"validation/{name}": metric})

    def _write_tensorboard(self, epoch: int, values: dict[str, float]) -> None:
        if self.place.rank != 0 or storage.is_remote(self.run.work_url):
            return  # TensorBoard's writer appends, which an object store cannot
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(storage.join(self.run.work_url, "tensorboard")) as writer:
            for tag, value in values.items():
                writer.add_scalar(tag, value, epoch + 1)
