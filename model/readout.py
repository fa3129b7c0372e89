"""The readout: what is asked of a state, as a vector that can be held against items."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from data_io.batch import ASKED_ACTION, ELAPSED, NUM_TIME_BUCKETS
from data_io.inputs import OwnInput
from data_io.schema import PADDING_INDEX
from model.transformer import FeedForward

READOUT_INPUTS = (ELAPSED, ASKED_ACTION)
"""Inputs that only the readout knows: states before it do not depend on them."""


class Readout(nn.Module):
    """A state and what is asked (after what time, for which action), as a vector that can be held against items.

    Where something is asked, a feed-forward layer bends the state by it.
    """

    def __init__(self, hidden_size: int, num_actions: int, inputs: Mapping[str, str]) -> None:
        super().__init__()
        sees = OwnInput.ELAPSED in inputs
        self.elapsed = nn.Embedding(NUM_TIME_BUCKETS, hidden_size, padding_idx=0) if sees else None
        sees = OwnInput.ASKED_ACTION in inputs
        self.asked_action = nn.Embedding(num_actions, hidden_size, padding_idx=PADDING_INDEX) if sees else None
        asks = self.elapsed is not None or self.asked_action is not None
        self.norm = nn.LayerNorm(hidden_size) if asks else None
        self.feed_forward = FeedForward(hidden_size) if asks else None
        self.output_norm = nn.LayerNorm(hidden_size)

    @torch.no_grad()
    def pass_states(self) -> None:
        """Fresh weights by which states go through as they are: a layer that bends them at random hides the items that
        they were made of, and many steps are lost on finding them again."""
        if self.feed_forward is not None:
            nn.init.zeros_(self.feed_forward.down.weight)

    def forward(self, states: Tensor, elapsed: Tensor, asked_action: Tensor) -> Tensor:
        """[..., D] from states [..., D], time buckets [...] and actions [...], 0 where none is asked for."""
        if self.elapsed is not None:
            states = states + self.elapsed(elapsed)
        if self.asked_action is not None:
            states = states + self.asked_action(asked_action)
        if self.norm is not None and self.feed_forward is not None:
            states = states + self.feed_forward(self.norm(states))
        return self.output_norm(states)
