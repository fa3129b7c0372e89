"""What a worker tells of its training: lines for a person, points for trackers.

Only the first worker tells anything; its figures are of all workers. Invariant: telling never stops training.
"""

import time
from typing import Any

import torch

from data_io.batch import PADDING_MASK, Batch
from model.engine import StepResult
from model.flops import StepSize, TrainingCost, peak_flops
from model.loss_config import BinaryLoss, FullSoftmax, SampledSoftmax
from model.objectives import ItemObjective
from ray_jobs.progress import Progress, say
from ray_jobs.telemetry import StepMeter
from ray_jobs.trackers import Trackers


class Recorder:
    """Tells of one run.

    Args:
        name: of the job.
        cost: of training its network.
        device: of this worker; peers have the same kind.
        world_size: number of workers.
        trackers: where points go; None on all workers but the first.
        every_steps: steps between points.
    """

    def __init__(
        self,
        name: str,
        cost: TrainingCost,
        device: torch.device,
        world_size: int,
        trackers: Trackers | None,
        every_steps: int,
    ) -> None:
        self._name = name
        self._trackers = trackers
        self._every_steps = every_steps
        self.meter = StepMeter(cost, peak_flops(device) * world_size if trackers else 1.0, time.time)
        self._progress = Progress(name, 0, "steps")
        self._num_targets = 0.0
        self._loss = float("nan")

    def say(self, text: str) -> None:
        """A line of the job's output."""
        if self._trackers is not None:
            say(f"{self._name}: {text}")

    def begin_epoch(self, epoch: int, num_steps: int) -> None:
        """An epoch begins, or goes on, with so many steps left."""
        self._progress = Progress(f"{self._name}: epoch {epoch + 1}", num_steps, "steps")
        self._num_targets = 0.0

    def step(
        self,
        result: StepResult,
        size: StepSize,
        seconds: float,
        wait_s: float,
        step: int,
        steps_left: int,
        troubles: dict[str, Any],
    ) -> None:
        """A step was made; see `StepMeter.count`.

        Args:
            result, size, seconds, wait_s: of the step.
            step: its number in the run.
            steps_left: in the run.
            troubles: counts of what went wrong so far.
        """
        self._num_targets += size.num_targets
        if self._trackers is None:
            return
        self.meter.count(result, size, seconds, wait_s)
        note = f"loss {result.loss:.4f}, {size.num_tokens / seconds:,.0f} events/s"
        self._progress.advance(note=note)
        if (step + 1) % self._every_steps == 0:
            self._tell(step, steps_left, troubles)

    def end_epoch(self, epoch: int, step: int, steps_left: int, objective: torch.nn.Module) -> None:
        """The steps of an epoch are done; what the loss is made of is the first worker's own."""
        if self._trackers is None:
            return
        if self.meter.has_steps:
            self._tell(step, steps_left, {})
        parts = objective.take_parts() if isinstance(objective, ItemObjective) else {}
        if len(parts) > 1 and self._num_targets:
            means = {name: loss / max(1.0, self._num_targets) for name, loss in parts.items()}
            self.say(f"epoch {epoch + 1}: loss of {', '.join(f'{name} {mean:.4f}' for name, mean in means.items())}")
            self._trackers.log({f"loss/{name}": mean for name, mean in means.items()}, step)

    def metric(self, name: str, value: float, step: int) -> None:
        """A validation is done."""
        if self._trackers is not None:
            self._trackers.log({f"validation/{name}": value}, step)

    def close(self) -> None:
        """Write what is left."""
        if self._trackers is not None:
            self._trackers.close()

    def _tell(self, step: int, steps_left: int, troubles: dict[str, Any]) -> None:
        assert self._trackers is not None
        figures = self.meter.figures(steps_left)
        counts = {name: float(count) for name, count in troubles.items()}
        self._trackers.log({f"train/{name}": value for name, value in (figures | counts).items()}, step)


def size_of(batches: list[Batch], num_targets: int) -> StepSize:
    """What a rank's micro-batches consist of."""
    lengths = [batch[PADDING_MASK].sum(axis=1).astype(float) for batch in batches]
    return StepSize(
        num_tokens=sum(float(part.sum()) for part in lengths),
        num_positions=sum(float(batch[PADDING_MASK].size) for batch in batches),
        sum_of_squares=sum(float((part**2).sum()) for part in lengths),
        num_targets=float(num_targets),
    )


def items_scored(objective: torch.nn.Module) -> int | None:
    """Items that each target is held against in training; None: the catalogue."""
    if not isinstance(objective, ItemObjective):
        return 0
    match objective.item_loss.softmax:
        case FullSoftmax():
            return None
        case SampledSoftmax(num_uniform=num_uniform, num_in_batch=num_in_batch):
            return num_uniform + num_in_batch + 1
        case BinaryLoss(num_negatives=num_negatives):
            return num_negatives + 1
