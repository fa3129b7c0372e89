"""The mean of the weights of the last steps, which ranks better than those of any one while the learning rate is high.

Invariant: each rank keeps the mean of what it holds of each parameter, all of it or under ZeRO-3 its part, so the mean
is as sharded as the parameters are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HEAD_START = 10
"""The mean of the first steps forgets faster, so that it is soon one of weights that have learned something."""


class WeightAverage:
    """Exponential moving average of the parameters that learn.

    Args:
        module: whose parameters.
        decay: share of the mean that a step leaves as it was; 0 keeps no mean, and the weights stand for it.
        beside: further weights that learn, outside the parameters.

    Source:
        Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; with the shorter memory of
        the first steps as tf.train.ExponentialMovingAverage has it.
    """

    def __init__(self, module: nn.Module, decay: float, beside: Sequence[Tensor] = ()) -> None:
        self._decay = decay
        learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad and decay]
        self._names, self._parameters = [name for name, _ in learning], [parameter for _, parameter in learning]
        self._beside = list(beside) if decay else []
        self._means = [tensor.clone() for tensor in self._held()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step (from 0)."""
        if self._means:
            decay = min(self._decay, (1 + step) / (_HEAD_START + step))
            for mean, tensor in zip(self._means, self._held(), strict=True):
                mean.lerp_(tensor, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the parameters are their means; all ranks must enter it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def held_means(self) -> list[tuple[str, nn.Parameter, Tensor]]:
        """Name, parameter and mean of what this rank holds of each."""
        return list(zip(self._names, self._parameters, self._means, strict=False))

    def means_beside(self) -> list[Tensor]:
        """Means of the weights beside the parameters."""
        return self._means[len(self._parameters) :]

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, tensor in zip(self._means, self._held(), strict=True):
            weights = tensor.clone()
            tensor.copy_(mean)
            mean.copy_(weights)
        # Under ZeRO-3 small parameters are also whole on every rank: let go of, they are gathered from the parts again.
        whole: list[Any] = [p for p in self._parameters if p.numel() and hasattr(p, "ds_tensor")]
        if whole:
            whole[0].partition(param_list=whole)

    def _held(self) -> list[Tensor]:
        held = [getattr(parameter, "ds_tensor", parameter.data) for parameter in self._parameters]
        return held + [tensor.detach() for tensor in self._beside]
