"""The training loop each worker runs, under Ray Train or under a test.

Resumes by looking at storage, so it does not matter whether a worker, a node or the driver was lost, nor how many
workers there are now. Invariant: all ranks take the same steps and call every collective the same number of times.
"""

import copy
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from data_io import storage
from data_io.loader import BatchLoader, LoadedStep, RankPlace
from data_io.order import EpochOrder
from model.checkpoint import save_model
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.config import OptimizerSettings, TrainingSettings
from model.engine import StepResult, TrainEngine, num_micro_batches, whole_state
from model.objectives import ItemObjective
from model.resuming import resume
from ray_jobs.learning import Learning, StoreIndex, rank_buckets, sample_validation
from ray_jobs.progress import Progress, say
from ray_jobs.watch import Watch

BEST, CHECKPOINTS = "best", "checkpoints"
_STEPS_PER_SEED = 1_000_003
_MAX_ROLLBACKS = 3
_ASK_EVERY_S = 2.0
"""Seconds between questions whether a machine is about to be taken away: each is a barrier."""


class TrainingDivergedError(Exception):
    """The loss does not stay finite, however often training goes back; the message says where and what to change."""


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
    identity: RunIdentity
    manifest: dict[str, Any]
    """What the published model's manifest will say."""

    @property
    def checkpoints_url(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.work_url, CHECKPOINTS)


def train_loop(run: TrainRun, device: torch.device, watch: Watch) -> None:
    """Train until the epochs are over or validation stops getting better; leaves the best model under work_url."""
    with watch:
        Trainer(run, device, watch).train()


@dataclass
class Troubles:
    """What went wrong in a run and was got over."""

    skipped_steps: int = 0
    """Steps that all ranks skipped."""
    skipped_in_a_row: int = 0
    """Of them, those just before."""
    rollbacks: int = 0
    """How often the weights went back to a checkpoint."""


class Trainer:
    """The loop's state on one worker."""

    def __init__(self, run: TrainRun, device: torch.device, watch: Watch) -> None:
        torch.manual_seed(run.seed)
        self.run = run
        self.watch = watch
        objective = run.learning.build(run.index)
        self._plain = copy.deepcopy(run.learning.model_of(objective)).eval()
        torch.nn.Module.to(self._plain, device)
        self.engine = TrainEngine(objective, run.training, run.optimizer, device)
        self.loader = BatchLoader(
            run.learning.store, run.learning.make_examples, run.learning.make_batch, run.learning.empty_batch()
        )
        self.place = RankPlace(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            num_micro_batches=num_micro_batches(run.training),
        )
        self.checkpoints = CheckpointWriter(run.checkpoints_url, run.identity, run.training.keep_checkpoints)
        self.troubles = Troubles()
        self._asked_at = time.monotonic()
        self._saved_for_preemption = False

    def train(self) -> None:
        """Epoch after epoch from wherever the newest checkpoint stands."""
        resumed = resume(self.engine, self.run.checkpoints_url, self.run.identity, self._say)
        position = resumed.position
        self.troubles = Troubles(**resumed.notes.get("troubles", {}))
        if position != TrainPosition():
            self._say(f"resuming in epoch {position.epoch + 1} after step {position.step}")
        try:
            while position.epoch < self.run.training.num_epochs and not self._is_stuck(position):
                self._train_epoch(position)
                position = self._validate(position)
                self._save(position)
            self.checkpoints.wait()
            dist.barrier()
        finally:
            self.checkpoints.close()

    def _is_stuck(self, position: TrainPosition) -> bool:
        return position.epochs_without_gain >= self.run.training.patience

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self.run.index.num_examples,
            self.run.seed,
            epoch,
            self.run.training.global_batch_size,
            self.place.num_micro_batches,
        )

    def _train_epoch(self, position: TrainPosition) -> None:
        order = self._order(position.epoch)
        progress = Progress(f"{self.run.name}: epoch {position.epoch + 1}", order.num_steps - position.step, "steps")
        num_events, num_targets, loss_sum, num_done = 0, 0, 0.0, 0
        for step, loaded in enumerate(self.loader.steps(order, self.place, position.step), start=position.step):
            weight = sum(self.run.learning.num_targets(batch) for batch in loaded.batches)
            result = self._step(loaded, weight, position.epoch * order.num_steps + step, order)
            num_events += sum(int(batch["padding_mask"].sum()) for batch in loaded.batches)
            reached = replace(position, step=step + 1)
            if result.skipped:
                self._skipped(reached, result)
            else:
                self.troubles.skipped_in_a_row = 0
                num_targets, loss_sum, num_done = num_targets + weight, loss_sum + result.loss, num_done + 1
            if self.place.rank == 0:
                rate = num_events * self.place.world_size / max(progress.seconds, 1e-9)
                progress.advance(note=f"loss {loss_sum / max(1, num_done):.4f}, {rate:,.0f} events/s")
            is_due = self._is_time_to_save(reached, result)
            if is_due and step + 1 < order.num_steps and not self.troubles.skipped_in_a_row:
                self._save(reached)  # after skipped steps the weights are in doubt
        if num_done:
            self._record(position.epoch, loss_sum / num_done, num_events * self.place.world_size / progress.seconds)
            self._record_parts(position.epoch, num_targets)

    def _step(self, loaded: LoadedStep, weight: int, global_step: int, order: EpochOrder) -> StepResult:
        seed = self.run.seed * _STEPS_PER_SEED + global_step * self.place.num_micro_batches
        num_steps = order.num_steps * self.run.training.num_epochs
        is_time_to_ask = self.place.rank == 0 and time.monotonic() - self._asked_at > _ASK_EVERY_S
        self.checkpoints.check()
        with self.watch.step():
            return self.engine.step(loaded.batches, weight, seed, global_step, num_steps, signal=float(is_time_to_ask))

    def _is_time_to_save(self, reached: TrainPosition, result: StepResult) -> bool:
        """Whether a checkpoint is due, the same on all ranks: by the settings, or because a machine is about to go."""
        if result.signal:
            self._asked_at = time.monotonic()
            preempted = self.watch.is_preempted()
            due = preempted and not self._saved_for_preemption
            self._saved_for_preemption = preempted
            if due:
                self._say(f"a machine is about to be taken away: saving after step {reached.step}")
                return True
        every = self.run.training.checkpoint_every_steps
        return bool(every) and reached.step % (every or 1) == 0

    def _save(self, position: TrainPosition) -> None:
        self.checkpoints.save(self.engine, position, {"troubles": asdict(self.troubles)})
        if self._saved_for_preemption:
            self.checkpoints.wait()

    def _skipped(self, reached: TrainPosition, result: StepResult) -> None:
        """Count a step that was not taken; past the limit, go back to the weights of the newest checkpoint.

        Raises:
            TrainingDivergedError: that has not helped before, or there is no checkpoint yet.
        """
        self.troubles.skipped_steps += 1
        self.troubles.skipped_in_a_row += 1
        self._say(
            f"epoch {reached.epoch + 1}: step {reached.step} is skipped (loss {result.loss:.4g}, gradient norm "
            f"{result.gradient_norm:.4g}), {self.troubles.skipped_steps} so far"
        )
        if self.troubles.skipped_in_a_row < self.run.training.max_skipped_steps:
            return
        self.checkpoints.wait()
        dist.barrier()
        went_back_to = resume(self.engine, self.run.checkpoints_url, self.run.identity, self._say).position
        self.troubles.skipped_in_a_row = 0
        self.troubles.rollbacks += 1
        if went_back_to == TrainPosition() or self.troubles.rollbacks > _MAX_ROLLBACKS:
            raise TrainingDivergedError(
                f"{self.run.name}: {self.run.training.max_skipped_steps} steps in a row up to step {reached.step} of "
                f"epoch {reached.epoch + 1} had no finite loss or gradient, after {self.troubles.rollbacks - 1} "
                "returns to a checkpoint; lower optimizer.learning_rate, or look for absurd input"
            )
        self._say(
            f"the weights go back to epoch {went_back_to.epoch + 1}, step {went_back_to.step}; the examples since then "
            "count as seen"
        )

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
            self._plain.load_state_dict(whole_state(self.run.learning.model_of(self.engine.module)))

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
