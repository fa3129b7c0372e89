"""AdamW behind a guard: every step is clipped, and one whose gradients are absurd is not taken.

DeepSpeed calls the optimizer of each rank with that rank's part of the gradients; the guard tells it by what to scale
them. Invariant: all ranks take a step or none does, because the guard decides by norms over all of them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

_EPSILON = 1e-6
"""Added to a norm before it divides, as torch and DeepSpeed do."""
_NORM_DECAY = 0.99
"""Share of the usual norm that a step leaves as it was."""
_LEARNING_STEPS = 100
"""Steps before the usual norm is known well enough to be held against."""


class GradientGuard:
    """Decides by the norm of all gradients whether a step is taken, and how far gradients are scaled down.

    Args:
        max_norm: gradients are clipped to it.
        spike_factor: a norm so many times the usual one is a spike, and its step is skipped; None skips no spike.
    """

    def __init__(self, max_norm: float, spike_factor: float | None) -> None:
        self._max_norm = max_norm
        self._spike_factor = spike_factor
        self._usual = 0.0
        self._num_norms = 0

    def scale_of(self, norm: float) -> float | None:
        """Factor of the gradients; None where the step is to be skipped, because the norm is not finite or a spike."""
        if not math.isfinite(norm):
            return None
        if self._spike_factor and self._num_norms >= _LEARNING_STEPS and norm > self._spike_factor * self._usual:
            return None
        decay = min(_NORM_DECAY, self._num_norms / (self._num_norms + 1))
        self._usual = decay * self._usual + (1 - decay) * norm
        self._num_norms += 1
        return min(1.0, self._max_norm / (norm + _EPSILON))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"usual_norm": self._usual, "num_norms": self._num_norms}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._usual, self._num_norms = state["usual_norm"], state["num_norms"]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that asks by what to scale its gradients, or whether to leave the weights as they are.

    Source:
        Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    """

    scale: Callable[[], float | None] = staticmethod(lambda: 1.0)
    """Factor of the gradients of the step at hand; None takes no step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step on the parameters that have gradients, if it is to be taken."""
        factor = self.scale()
        if factor is None:
            return None
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if factor < 1 and gradients:
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        return super().step(closure)
