"""What a training run is doing: figures of speed and use, over the last steps and since its very first start.

Knows no clock but the one it is given. Invariant: useful seconds are those of steps that count, so what is lost with a
worker, or spent on starting again, lowers goodput.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.engine import StepResult
from model.flops import StepSize, TrainingCost


@dataclass(slots=True)
class _Window:
    """Sums over the steps since figures were last taken."""

    num_steps: int = 0
    num_taken: int = 0
    loss: float = 0.0
    norm: float = 0.0
    seconds: float = 0.0
    wait_s: float = 0.0
    tokens: float = 0.0
    positions: float = 0.0
    operations: float = 0.0


class StepMeter:
    """Counts steps of a run.

    Args:
        cost: of training the network.
        peak: operations a second that all workers' devices could do together.
        now: seconds since 1970.
    """

    def __init__(self, cost: TrainingCost, peak: float, now: Callable[[], float]) -> None:
        self._cost = cost
        self._peak = peak
        self._now = now
        self._began_at = now()
        self._useful_s = 0.0
        self._window = _Window()
        self._step_s = 0.0

    def state(self) -> dict[str, float]:
        """For a checkpoint: when the run began, and its useful seconds so far."""
        return {"began_at": self._began_at, "useful_s": self._useful_s, "saved_at": self._now()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._began_at, self._useful_s = state["began_at"], state["useful_s"]

    def count(self, result: StepResult, size: StepSize, seconds: float, wait_s: float) -> None:
        """Take in a step.

        Args:
            result: of the step.
            size: of it, over all workers.
            seconds: that it took, with waiting for input.
            wait_s: of them, waiting for input.
        """
        window = self._window
        window.num_steps += 1
        window.seconds += seconds
        window.wait_s += wait_s
        window.tokens += size.num_tokens
        window.positions += size.num_positions
        window.operations += self._cost.of_step(size)
        if not result.skipped:
            window.num_taken += 1
            window.loss += result.loss
            window.norm += result.gradient_norm
            self._useful_s += seconds

    def figures(self, steps_left: int) -> dict[str, float]:
        """Figures of the steps since the last call, at least one.

        Args:
            steps_left: in the run, if it does not end early.

        Returns:
            loss and gradient_norm: means over steps that were taken.
            tokens_per_s: real events of all workers a second.
            padding_share: of places in batches.
            input_wait_share: of the time, spent waiting for batches.
            flop_share: useful operations by what the devices could do in the time.
            step_s: seconds a step.
            eta_s: seconds until the last step, validation aside.
            goodput: useful seconds by those since the very first start of the run.
        """
        window, self._window = self._window, _Window()
        self._step_s = window.seconds / window.num_steps
        figures = {
            "tokens_per_s": window.tokens / window.seconds,
            "padding_share": 1 - window.tokens / max(1.0, window.positions),
            "input_wait_share": window.wait_s / window.seconds,
            "flop_share": window.operations / window.seconds / self._peak,
            "step_s": self._step_s,
            "eta_s": steps_left * self._step_s,
            "goodput": self._useful_s / max(self._now() - self._began_at, self._useful_s, 1e-9),
        }
        if window.num_taken:
            figures |= {"loss": window.loss / window.num_taken, "gradient_norm": window.norm / window.num_taken}
        return figures

    @property
    def has_steps(self) -> bool:
        """Whether there is anything to tell since `figures` was last called."""
        return self._window.num_steps > 0
