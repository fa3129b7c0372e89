"""The chance that an item is clicked, given who it is shown to and where: items, context and history in one logit.

Trained by plain log loss, so that probabilities mean what they say. Small enough for one machine: tables of items and
context values, no sequence network. Invariant: before anything is learned, every probability is the mean rate.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.impressions import NUM_CONTEXT_ROWS, Impressions

_BATCH, _MOST_STEPS = 16_384, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickShape:
    """What the head is made of."""

    num_items: int
    num_positions: int
    num_context: int
    width: int
    interaction: Literal["inner_product", "bilinear"]


class ClickHead(nn.Module):
    """Logit of a click: biases of item, position and context, of how much history there is and whether the item is in
    it, and the product of a context vector with the item's vector (through a matrix, if bilinear)."""

    mean: Tensor

    def __init__(self, shape: ClickShape, rate: float) -> None:
        super().__init__()
        self.shape = shape
        rows = shape.num_context * NUM_CONTEXT_ROWS + shape.num_positions
        self.register_buffer("mean", torch.tensor(float(np.log(rate) - np.log1p(-rate))))
        self.item_bias = nn.Embedding(shape.num_items, 1)
        self.row_bias = nn.Embedding(rows, 1)
        self.item_vector = nn.Embedding(shape.num_items, shape.width)
        self.row_vector = nn.Embedding(rows, shape.width)
        self.history_vector = nn.Embedding(shape.num_items + 1, shape.width, padding_idx=0)
        self.history_facts = nn.Linear(2, 1, bias=False)
        self.matrix = nn.Linear(shape.width, shape.width, bias=False) if shape.interaction == "bilinear" else None
        for table in (self.item_bias, self.row_bias, self.item_vector):
            nn.init.zeros_(table.weight)
        nn.init.zeros_(self.history_facts.weight)
        for table in (self.row_vector, self.history_vector):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, item: Tensor, position: Tensor, context: Tensor, history: Tensor) -> Tensor:
        """Logits [B] of items [B] at positions [B] in contexts [B, C] with histories [B, H]."""
        shift = torch.arange(self.shape.num_context, device=item.device) * NUM_CONTEXT_ROWS
        places = self.shape.num_context * NUM_CONTEXT_ROWS + position[:, None]
        rows = torch.cat([context + shift, places], dim=1)
        known = (history > 0).float()
        facts = torch.stack([known.sum(dim=1).log1p(), (history == item[:, None] + 1).any(dim=1).float()], dim=1)
        user = self.row_vector(rows).sum(dim=1) + self.history_vector(history).sum(dim=1)
        if self.matrix is not None:
            user = self.matrix(user)
        linear = self.item_bias(item)[:, 0] + self.row_bias(rows).sum(dim=(1, 2)) + self.history_facts(facts)[:, 0]
        return self.mean + linear + (user * self.item_vector(item)).sum(dim=1)


def fit_click_head(shape: ClickShape, training: Impressions, penalty: float, seed: int) -> ClickHead:
    """A head fitted to impressions by L-BFGS.

    Args:
        shape: what it is made of.
        training: N impressions.
        penalty: of half the sum of squares of all weights (ridge), beside the sum of losses; but the two weights of how
            much history there is cost nothing.
        seed: of where vectors start.
    """
    torch.manual_seed(seed)
    head = ClickHead(shape, _rate(training.reward)).train()
    rewards, inputs = torch.from_numpy(training.reward).float(), _tensors(training)
    shrunk = [parameter for name, parameter in head.named_parameters() if not name.startswith("history_facts")]
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(head(*inputs), rewards, reduction="sum")
        squares = torch.stack([(parameter**2).sum() for parameter in shrunk]).sum()
        total = (loss + penalty / 2 * squares) / len(rewards)
        total.backward()
        return total

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return head.eval()


@torch.no_grad()
def click_probabilities(head: ClickHead, impressions: Impressions) -> np.ndarray:
    """[N] of what was shown."""
    parts = zip(*(part.split(_BATCH) for part in _tensors(impressions)), strict=True)
    return np.concatenate([np.zeros(0), *(torch.sigmoid(head(*part)).double().numpy() for part in parts)])


@torch.no_grad()
def item_probabilities(head: ClickHead, impressions: Impressions) -> np.ndarray:
    """[N, V] of every item in the place of the one that was shown."""
    _, position, context, history = _tensors(impressions)
    columns = [
        torch.sigmoid(head(torch.full_like(position, item), position, context, history)).double().numpy()
        for item in range(head.shape.num_items)
    ]
    return np.stack(columns, axis=1)


def _tensors(impressions: Impressions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (impressions.item, impressions.position, impressions.context, impressions.history)
    item, position, context, history = (torch.from_numpy(array.astype(np.int64)) for array in arrays)
    return item, position, context, history


def _rate(reward: np.ndarray) -> float:
    return float((reward.sum() + 0.5) / (len(reward) + 1))
