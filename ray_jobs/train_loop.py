"""The training loop each worker runs, under Ray Train or under a test.

Resumes by looking at storage, so it does not matter whether a worker, a node or the driver was lost, nor how many
workers there are now. Invariant: all ranks take the same steps and call every collective the same number of times.
"""

import copy
import time
from dataclasses import asdict, astuple, dataclass, field, replace
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
from model.encoder import ClickformerEncoder
from model.engine import StepResult, TrainEngine, copy_weights, num_micro_batches
from model.flops import StepSize, TrainingCost
from model.memory import DeviceMemoryError
from model.resuming import resume
from model.training_config import OptimizerSettings, TrainingSettings
from ray_jobs.learning import Learning, StoreIndex, rank_buckets, sample_validation
from ray_jobs.recorder import Recorder, items_scored, size_of
from ray_jobs.trackers import make_trackers
from ray_jobs.tracking_config import TrackingSettings
from ray_jobs.watch import Watch

BEST, CHECKPOINTS = "best", "checkpoints"
_STEPS_PER_SEED = 1_000_003
_MAX_ROLLBACKS = 3
_ASK_EVERY_S = 2.0
"""Seconds between questions whether a machine is about to be taken away: each is a barrier."""


SPARE_MEMORY = (
    "set training.activation_checkpointing true or a higher training.zero_stage, with which the run goes on from its "
    "newest checkpoint, or begin anew with a lower training.micro_batch_size; clickformer plan says what a step takes"
)


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
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """What records the run."""

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
        self.recorder = self._make_recorder(objective, device)
        self.troubles = Troubles()
        self._asked_at = time.monotonic()
        self._saved_for_preemption = False

    def _make_recorder(self, objective: torch.nn.Module, device: torch.device) -> Recorder:
        run, trackers = self.run, None
        if self.place.rank == 0:
            run_id = f"{run.identity.fingerprint[:16]}-{run.name.replace(' ', '-')}"
            trackers = make_trackers(run.tracking, run.work_url, run_id, run.manifest["settings"])
        model = self._plain
        encoder = model if isinstance(model, ClickformerEncoder) else model.encoder
        cost = TrainingCost.of(encoder, items_scored(objective))
        return Recorder(run.name, cost, device, self.place.world_size, trackers, run.tracking.every_steps)

    def train(self) -> None:
        """Epoch after epoch from wherever the newest checkpoint stands."""
        try:
            position = self._resume()
            while position.epoch < self.run.training.num_epochs and not self._is_stuck(position):
                self._train_epoch(position)
                position = self._validate(position)
                self._save(position)
            self.checkpoints.wait()
            dist.barrier()
        finally:
            self.checkpoints.close()
            self.recorder.close()

    def _resume(self) -> TrainPosition:
        resumed = resume(self.engine, self.run.checkpoints_url, self.run.identity, self.recorder.say)
        if resumed.notes:
            self.troubles = Troubles(**resumed.notes["troubles"])
            self.recorder.meter.load(resumed.notes["meter"])
            position = resumed.position
            self.recorder.say(f"resuming in epoch {position.epoch + 1} after step {position.step}")
        return resumed.position

    def _is_stuck(self, position: TrainPosition) -> bool:
        return position.epochs_without_gain >= self.run.training.patience

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(
            self.run.index.num_examples,
            self.run.seed,
            epoch,
            self.run.training.global_batch_size,
            self.place.num_micro_batches,
        )

    def _train_epoch(self, position: TrainPosition) -> None:
        order, steps_in_all = self.order(position.epoch), self._steps_in_all()
        self.recorder.begin_epoch(position.epoch, order.num_steps - position.step)
        began, global_step = time.monotonic(), position.epoch * order.num_steps + position.step
        for loaded in self.loader.steps(order, self.place, position.step):
            size = size_of(loaded.batches, sum(self.run.learning.num_targets(batch) for batch in loaded.batches))
            result = self._step(loaded, size, global_step, order)
            position = replace(position, step=position.step + 1)
            if result.skipped:
                self._skipped(position, result)
            else:
                self.troubles.skipped_in_a_row = 0
            now = time.monotonic()
            global_step += 1
            self.recorder.step(
                result,
                StepSize(*result.beside[1:]),
                now - began,
                loaded.wait_s,
                global_step,
                steps_in_all - global_step,
                asdict(self.troubles),
            )
            is_due = self._is_time_to_save(position, result)
            if is_due and position.step < order.num_steps and not self.troubles.skipped_in_a_row:
                self._save(position)  # after skipped steps the weights are in doubt
            began = time.monotonic()
        self.recorder.end_epoch(position.epoch, global_step, steps_in_all - global_step, self.engine.module)

    def _steps_in_all(self) -> int:
        return self.order(0).num_steps * self.run.training.num_epochs

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        seed = self.run.seed * _STEPS_PER_SEED + global_step * self.place.num_micro_batches
        is_time_to_ask = self.place.rank == 0 and time.monotonic() - self._asked_at > _ASK_EVERY_S
        told = (float(is_time_to_ask), *astuple(size))
        self.checkpoints.check()
        with self.watch.step():
            try:
                return self.engine.step(
                    loaded.batches, int(size.num_targets), seed, global_step, self._steps_in_all(), told
                )
            except torch.OutOfMemoryError as error:
                asked = str(error).partition(". GPU")[0]
                raise DeviceMemoryError(f"{self.run.name}: out of GPU memory ({asked}): {SPARE_MEMORY}") from None

    def _is_time_to_save(self, reached: TrainPosition, result: StepResult) -> bool:
        """Whether a checkpoint is due, the same on all ranks: by the settings, or because a machine is about to go."""
        if result.beside[0]:
            self._asked_at = time.monotonic()
            preempted = self.watch.is_preempted()
            due = preempted and not self._saved_for_preemption
            self._saved_for_preemption = preempted
            if due:
                self.recorder.say(f"a machine is about to be taken away: saving after step {reached.step}")
                return True
        every = self.run.training.checkpoint_every_steps
        return bool(every) and reached.step % (every or 1) == 0

    def _save(self, position: TrainPosition) -> None:
        notes = {"troubles": asdict(self.troubles), "meter": self.recorder.meter.state()}
        self.checkpoints.save(self.engine, position, notes)
        if self._saved_for_preemption:
            self.checkpoints.wait()

    def _skipped(self, reached: TrainPosition, result: StepResult) -> None:
        """Count a step that was not taken; past the limit, go back to the weights of the newest checkpoint.

        Raises:
            TrainingDivergedError: that has not helped before, or there is no checkpoint yet.
        """
        self.troubles.skipped_steps += 1
        self.troubles.skipped_in_a_row += 1
        self.recorder.say(
            f"epoch {reached.epoch + 1}: step {reached.step} is skipped (loss {result.loss:.4g}, gradient norm "
            f"{result.gradient_norm:.4g}), {self.troubles.skipped_steps} so far"
        )
        if self.troubles.skipped_in_a_row < self.run.training.max_skipped_steps:
            return
        self.checkpoints.wait()
        dist.barrier()
        went_back_to = resume(self.engine, self.run.checkpoints_url, self.run.identity, self.recorder.say).position
        self.troubles.skipped_in_a_row = 0
        self.troubles.rollbacks += 1
        if went_back_to == TrainPosition() or self.troubles.rollbacks > _MAX_ROLLBACKS:
            raise TrainingDivergedError(
                f"{self.run.name}: {self.run.training.max_skipped_steps} steps in a row up to step {reached.step} of "
                f"epoch {reached.epoch + 1} had no finite loss or gradient, after {self.troubles.rollbacks - 1} "
                "returns to a checkpoint; lower optimizer.learning_rate, or look for absurd input"
            )
        self.recorder.say(
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
        self.recorder.say(
            f"epoch {position.epoch + 1}: validation {name} {metric:.4f} ({time.monotonic() - began:.0f} s)"
        )
        self.recorder.metric(name, metric, (position.epoch + 1) * self.order(0).num_steps)
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
            copy_weights(self.run.learning.model_of(self.engine.module), self._plain)
