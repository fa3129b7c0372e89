"""Neighbours chosen: how likely a user's next item is one that others had with the newest items.

An item that three users had is known by whom they were, not by three gradients: counts of pairs rank it better than any
dot product does. So the next item is a mixture of choosing by a softmax over the catalogue and of choosing a neighbour
of an own event, by attention over the newest of them (a mixture of a network with what its examples say, as in
Khandelwal et al. 2020, "Generalization through memorization: nearest neighbor language models", eq. 3; neighbours are
those of item-kNN). Invariants: a state chooses among neighbours of events up to its own; in training what a user's own
history added to the counts is taken off, since else each target would be among the neighbours of what came before it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.neighbours import ItemNeighbours

NUM_EVENTS = 20
"""Newest events whose neighbours are chosen from."""
_NEVER = -1e4
"""Log-weight of what may not be chosen: finite, because the gradient of minus infinity is not a number."""
_FIRST_DECAY = 0.8
"""Weight of an event beside the one after it before anything is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourTable:
    """Neighbours of V items, K each; rows of fewer are filled up with 0."""

    item_index: np.ndarray
    """[V, K] int32."""
    weight: np.ndarray
    """[V, K] float32, similarities scaled to a sum of 1 in each row that has any."""
    weight_of_others: np.ndarray
    """[V, K] float32, what is left of that without one of the users who had both."""


def make_table(neighbours: ItemNeighbours, num_users: np.ndarray, most: int) -> NeighbourTable:
    """The table of the `most` nearest of each item.

    Without one user of both, a pair's count falls by 1 and so do the users of either item; an item's sum over its
    neighbours falls by about the share that one of its users has in it.

    Args:
        neighbours: of the items, nearest first.
        num_users: [V] users who had each item, by whom the similarities were made.
        most: K.
    """
    size, lengths = len(num_users), np.diff(neighbours.offsets)
    own = np.repeat(np.arange(size), lengths)
    place = np.arange(len(own)) - neighbours.offsets[own]
    kept = place < most
    own, place, near = own[kept], place[kept], neighbours.item_index[kept]
    similarity = neighbours.similarity[kept].astype(np.float64)
    together = np.rint(similarity * np.sqrt(num_users[own].astype(np.float64) * num_users[near]))
    weight = similarity / np.bincount(own, weights=similarity, minlength=size)[own]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (1 - 1 / together) / (np.sqrt(1 - 1 / num_users[near]) * (1 - 1 / num_users[own]))
    of_others = np.minimum(weight * np.where(together > 1, left, 0.0), 1.0)
    shape = (size, most)
    table = NeighbourTable(
        item_index=np.zeros(shape, np.int32),
        weight=np.zeros(shape, np.float32),
        weight_of_others=np.zeros(shape, np.float32),
    )
    for array, values in ((table.item_index, near), (table.weight, weight), (table.weight_of_others, of_others)):
        array[own, place] = values
    return table


class Neighbours(NamedTuple):
    """What may be chosen at each event: neighbours of the newest N events."""

    items: Tensor
    """[B, T, N] items of these events, the newest first."""
    log_weight: Tensor
    """[B, T, N] log of the attention over them; sums to 1 over those that have neighbours."""
    gate: Tensor
    """[B, T] logit of choosing so; never where there is nothing to choose."""


class NeighbourChoice(nn.Module):
    """Attention of each state over its newest events, the gate, and the table of neighbours.

    Args:
        hidden_size: D.
        num_items: V.
        num_neighbours: K.
    """

    item_index: Tensor
    """[V, K] int32, see `NeighbourTable`."""
    weight: Tensor
    """[V, K]."""
    weight_of_others: Tensor
    """[V, K]."""

    def __init__(self, hidden_size: int, num_items: int, num_neighbours: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, 1)
        self.age = nn.Embedding(NUM_EVENTS, 1)
        self.register_buffer("item_index", torch.zeros(num_items, num_neighbours, dtype=torch.int32))
        self.register_buffer("weight", torch.zeros(num_items, num_neighbours))
        self.register_buffer("weight_of_others", torch.zeros(num_items, num_neighbours))

    @torch.no_grad()
    def forget_slowly(self) -> None:
        """Fresh weights by which events count less with their age, as in item-kNN, and in no other way."""
        nn.init.zeros_(self.query.weight)
        ages = torch.arange(NUM_EVENTS, device=self.age.weight.device)
        self.age.weight.copy_(ages[:, None] * float(np.log(_FIRST_DECAY)))

    def set_neighbours(self, table: NeighbourTable) -> None:
        """Say which neighbours every item has."""
        for name in ("item_index", "weight", "weight_of_others"):
            setattr(self, name, torch.from_numpy(getattr(table, name)).to(self.weight.device))

    def extend(self, num_new: int) -> None:
        """Take in new items, which have no neighbours yet."""
        for name in ("item_index", "weight", "weight_of_others"):
            setattr(self, name, F.pad(getattr(self, name), (0, 0, 0, num_new)))

    def forward(self, states: Tensor, item_index: Tensor, allowed: Tensor) -> Neighbours:
        """What may be chosen by states [B, T, D], after items [B, T], of which those allowed [B, T] count."""
        length = states.shape[1]
        scores = (self.query(states) @ self.key(states).transpose(1, 2)).float() * states.shape[-1] ** -0.5
        ages = torch.arange(NUM_EVENTS, device=states.device)
        newest = torch.arange(length, device=states.device)[:, None] - ages
        band = newest.clamp(min=0)
        scores = scores.gather(2, band.expand(len(states), -1, -1)) + self.age(ages).squeeze(-1)
        known = allowed & (self.weight[:, 0] > 0)[item_index]
        choosable = known[:, band] & (newest >= 0)
        log_weight = F.log_softmax(scores.masked_fill(~choosable, _NEVER), dim=2).masked_fill(~choosable, _NEVER)
        gate = self.gate(states).squeeze(-1).float()
        return Neighbours(item_index[:, band], log_weight, gate.masked_fill(~choosable.any(dim=2), _NEVER))

    def log_probability(self, items: Tensor, log_weight: Tensor, targets: Tensor) -> Tensor:
        """[P] log-probability that choosing a neighbour gives targets [P], after items [P, N] of log-weights [P, N].

        In training it is that of the others' counts: the targets are in the counts themselves.
        """
        weight = self.weight_of_others if self.training else self.weight
        same = self.item_index[items] == targets[:, None, None]
        found = (weight[items] * same).sum(dim=2)
        return torch.logsumexp(log_weight + found.log().clamp(min=_NEVER), dim=1).clamp(min=_NEVER)

    def mix(self, log_softmax: Tensor, items: Tensor, log_weight: Tensor, gate: Tensor) -> Tensor:
        """[B, V] log-probability of every item under the mixture.

        Args:
            log_softmax: [B, V] of the catalogue.
            items, log_weight: [B, N] of a user's newest events.
            gate: [B] logit of choosing among neighbours.
        """
        near = self.item_index[items].flatten(1).long()
        weight = (self.weight[items] * log_weight.exp()[..., None]).flatten(1) * gate.sigmoid()[:, None]
        chosen = torch.zeros_like(log_softmax).scatter_add_(1, near, weight)
        return torch.logaddexp(log_softmax + F.logsigmoid(-gate)[:, None], chosen.log_())
