"""Embeddings: from indices to vectors, and from states to scores of items.

Every access to the item table goes through ItemTable.forward, because under ZeRO-3 a parameter exists only while the
module that owns it runs. Invariant: the padding row is zero and never receives gradient.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.batch import NUM_TIME_BUCKETS
from data_io.inputs import DEFAULT_INPUTS, OwnInput
from data_io.schema import FIRST_INDEX, PADDING_INDEX, UNKNOWN_INDEX
from model.losses import catalogue_loss, dot
from model.row_shard import RowShard


class ItemTable(nn.Module):
    """The table of item vectors, input and output of the network at once: a parameter, or a shard of one."""

    weight: nn.Parameter

    def __init__(self, vocabulary_size: int, hidden_size: int, *, cosine: bool = False) -> None:
        super().__init__()
        self.cosine = cosine
        self.num_items = vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, hidden_size))
        self.unknown: nn.Parameter | None = None
        self.shard: RowShard | None = None

    def shard_rows(self, device: torch.device) -> RowShard:
        """Keep only this rank's share of the rows, outside the parameters; all ranks do so, of equal tables.

        What is trained then has no `weight`; `copy_to` brings it together.
        """
        weight = self.weight.detach()
        learns = self.weight.requires_grad
        self.unknown = nn.Parameter(weight[UNKNOWN_INDEX:FIRST_INDEX].clone(), requires_grad=learns)
        self.shard = RowShard(weight[FIRST_INDEX:], device, learns=learns)
        del self.weight
        return self.shard

    @torch.no_grad()
    def copy_to(self, weight: Tensor) -> None:
        """Write all rows of a shard into a table [V, D]; all ranks call it."""
        assert self.shard is not None
        assert self.unknown is not None
        weight[PADDING_INDEX] = 0
        weight[UNKNOWN_INDEX:FIRST_INDEX] = self.unknown
        self.shard.copy_to(weight[FIRST_INDEX:])

    def forward(
        self,
        item_index: Tensor | None = None,
        states: Tensor | None = None,
        targets: Tensor | None = None,
        label_smoothing: float = 0.0,
        seed: int | None = None,
        weighed_alike: bool = False,
        apart: bool = False,
    ) -> Tensor:
        """Vectors of items, or scores of all items, or losses against all items, by what is given.

        Args:
            item_index: [...] items; gives their vectors [..., D].
            states: [..., D]; gives scores [..., V] of all items, minus infinity for padding and unknown, which are
                never recommended.
            targets: [P] an item for each of states [P, D]; gives losses [P], see `model.losses.catalogue_loss`.
            label_smoothing: of these losses.
            seed: fixes what a table draws at random in training; None: nothing is drawn.
            weighed_alike: whether losses are going to be summed, see `model.losses.log_partition`.
            apart: gives vectors [2, ..., D] instead, of the rows of ids and of what features say.

        Raises:
            ValueError: neither items nor states are given.
        """
        if item_index is not None:
            return self._apart(item_index) if apart else self._vectors(item_index, seed)
        if states is None:
            raise ValueError("ItemTable needs item_index or states")
        if targets is not None:
            return self._losses(states, targets, label_smoothing, seed, weighed_alike)
        scores = F.linear(states, self.compared(self._catalogue())).float()
        unreal = torch.arange(scores.shape[-1], device=scores.device) < FIRST_INDEX
        return scores.masked_fill(unreal, float("-inf"))

    def compared(self, vectors: Tensor) -> Tensor:
        """Item vectors [..., D] as states are held against them: of length 1 where that is by cosine."""
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """[V, D] float32 vectors of all items as states are held against them."""
        return self.compared(self._catalogue()).detach().float()

    def keep_catalogue(self, vectors: Tensor) -> None:
        """Take vectors that `catalogue` gave elsewhere, where making them again takes time and memory."""

    @torch.no_grad()
    def start_at(self, directions: Tensor) -> None:
        """Turn the fresh vectors of real items the way of directions [V, D] of length 1; they keep their length."""
        lengths = self.weight[FIRST_INDEX:].norm(dim=1, keepdim=True)
        self.weight[FIRST_INDEX:] = directions[FIRST_INDEX:] * lengths

    @property
    def items_with_events(self) -> Tensor | None:
        """[N] items that training knows by events, for negatives to be drawn from; None: all of them."""
        return None

    def _vectors(self, item_index: Tensor, seed: int | None) -> Tensor:
        """[..., D] vectors of items."""
        return self._rows(item_index)

    def _rows(self, item_index: Tensor) -> Tensor:
        """[..., D] the rows of items; that of padding is zero and stays so."""
        if self.shard is None or self.unknown is None:
            return F.embedding(item_index, self.weight, padding_idx=PADDING_INDEX)
        items, places = torch.unique(item_index, return_inverse=True)
        special = int((items < FIRST_INDEX).sum())
        fetched = self.shard.fetch(items[special:] - FIRST_INDEX)
        padding = fetched.new_zeros(1, fetched.shape[-1])
        known = torch.cat([padding, self.unknown.to(fetched.dtype)])[items[:special]]
        return F.embedding(places, torch.cat([known, fetched]))

    def _apart(self, item_index: Tensor) -> Tensor:
        """[2, ..., D] what items are by their ids and by their features, of which there are none."""
        ids = self._vectors(item_index, None)
        return torch.stack([ids, torch.zeros_like(ids)])

    def _catalogue(self) -> Tensor:
        """[V, D] vectors of all items."""
        return self.weight

    def _losses(
        self, states: Tensor, targets: Tensor, label_smoothing: float, seed: int | None, weighed_alike: bool
    ) -> Tensor:
        """[P] losses of states [P, D] against all items that are known by events."""
        if self.shard is not None:
            return self._losses_over_ranks(self.shard, states, targets, label_smoothing)
        vectors = self.compared(self.weight)
        return catalogue_loss(states, vectors, targets, label_smoothing, weighed_alike=weighed_alike)

    def _losses_over_ranks(self, shard: RowShard, states: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """As `catalogue_loss`, each rank scoring the states of all ranks with its own rows."""
        scores = dot(states, self.compared(self._rows(targets)))
        losses = shard.log_partition(states, cosine=self.cosine) - scores
        if label_smoothing:
            losses = losses + label_smoothing * (scores - states.float() @ shard.mean_row(cosine=self.cosine))
        return losses.masked_fill(targets < FIRST_INDEX, float("inf"))


class EventEmbedding(nn.Module):
    """What happened (action), how long after the event before (gap), to what: one vector an event.

    Action and gap stand there if they are among the inputs; others are in `model.event_inputs`.
    """

    def __init__(
        self, hidden_size: int, num_actions: int, dropout: float, inputs: Collection[str] = DEFAULT_INPUTS
    ) -> None:
        super().__init__()
        sizes = {OwnInput.ACTION: num_actions, OwnInput.GAP: NUM_TIME_BUCKETS}
        tables = {
            name: nn.Embedding(size, hidden_size, padding_idx=PADDING_INDEX) if name in inputs else None
            for name, size in sizes.items()
        }
        self.action, self.gap = tables[OwnInput.ACTION], tables[OwnInput.GAP]
        self.mask = nn.Embedding(1, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor, action_index: Tensor, gap: Tensor, hidden: Tensor | None) -> Tensor:
        """Event vectors [B, T, D] from vectors [B, T, D] of items, and of what else is seen of the events.

        Where `hidden` [B, T], all is masked but the gap, which is known before the event.
        """
        vectors = items if self.action is None else items + self.action(action_index)
        if hidden is not None:
            mask = self.mask(torch.zeros_like(action_index))
            vectors = torch.where(hidden[..., None], mask, vectors)
        return self.dropout(vectors if self.gap is None else vectors + self.gap(gap))
