"""Negatives: the items a sampled loss holds the target against.

A pool of N negatives, shared by the positions of a micro-batch, is drawn partly evenly and partly from its targets, so
by popularity. How often each is expected there is known, for the loss to correct (see `model.losses`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_io.schema import FIRST_INDEX


class Negatives(NamedTuple):
    """A pool of negatives."""

    items: Tensor
    """[N] items, those drawn evenly first."""
    log_expected: Tensor
    """[N] log of the expected number of each in the pool, for a position that has another target."""
    num_uniform: int
    """How many were drawn evenly."""


class NegativeSampler(nn.Module):
    """Draws negatives and knows the log of their expected number."""

    share: Tensor
    """[V] share of each item among all events."""

    candidates: Tensor | None
    """[C] items that even draws are from; None: the whole catalogue."""

    def __init__(
        self, num_uniform: int, num_in_batch: int, item_counts: Tensor, candidates: Tensor | None = None
    ) -> None:
        super().__init__()
        self.num_uniform = num_uniform
        self.num_in_batch = num_in_batch
        self.register_buffer("share", item_counts.float() / item_counts.sum().clamp(min=1), persistent=False)
        self.register_buffer("candidates", candidates, persistent=False)

    def forward(self, targets: Tensor, generator: torch.Generator) -> Negatives:
        """A pool for targets [P].

        One in P draws from the batch gives a position its own target, which does not count there; so of what the batch
        adds to the pool, another item can expect only the rest.
        """
        device, num_targets = targets.device, len(targets)
        pool = [self._draw_evenly(generator).to(device)]
        from_others = 0.0
        if num_targets and self.num_in_batch:
            places = torch.randint(num_targets, (self.num_in_batch,), generator=generator)
            pool.append(targets[places.to(device)])
            from_others = self.num_in_batch * (1 - 1 / num_targets)
        items = torch.cat(pool)
        num_candidates = len(self.share) - FIRST_INDEX if self.candidates is None else len(self.candidates)
        evenly = self.num_uniform / num_candidates
        return Negatives(items, torch.log(evenly + from_others * self.share[items]), self.num_uniform)

    def _draw_evenly(self, generator: torch.Generator) -> Tensor:
        if self.candidates is None:
            return torch.randint(FIRST_INDEX, len(self.share), (self.num_uniform,), generator=generator)
        places = torch.randint(len(self.candidates), (self.num_uniform,), generator=generator)
        return self.candidates[places.to(self.candidates.device)]
