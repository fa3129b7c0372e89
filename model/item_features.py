"""Item vectors from features: what the shop knows of an item, added to the row of its id.

The vectors are input and output of the network, as without features. An item without training events has no row of its
own that counts: its features speak for it, it is no negative, and so it is ranked by what items like it have learned.
Codes and vectors of items are buffers, saved with the model. Invariants: padding is zero and stays so; under ZeRO-3
every rank runs the same modules in the same order, however few items it looks up.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX, PADDING_INDEX, UNKNOWN_INDEX
from data_io.side.features import ItemFeature, ItemFeatures
from model.embedding import ItemTable
from model.losses import dot, even_score, log_partition
from model.streams import IDS, generator_of


class CodeVectors(nn.Module):
    """Mean of the rows that an item's codes point to; zero where it has none."""

    values: Tensor
    """[V, K] int32 codes; 0 is none."""

    def __init__(self, num_items: int, feature: ItemFeature, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(num_items, feature.width, dtype=torch.int32))
        self.rows = nn.EmbeddingBag(feature.num_rows, hidden_size, mode="mean", padding_idx=PADDING_INDEX)

    def forward(self, items: Tensor) -> Tensor:
        """[N, D] of items [N]."""
        return self.rows(self.values[items])


class DenseVectors(nn.Module):
    """A linear map of an item's ready-made vector; zero where it has none."""

    values: Tensor
    """[V, M] float32, each of length 1 or 0."""

    def __init__(self, num_items: int, feature: ItemFeature, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(num_items, feature.width))
        self.linear = nn.Linear(feature.width, hidden_size, bias=False)

    def forward(self, items: Tensor) -> Tensor:
        """[N, D] of items [N]."""
        return self.linear(self.values[items])


class FeatureSum(nn.Module):
    """The sum over features of the vectors that they give an item."""

    def __init__(self, num_items: int, features: Sequence[ItemFeature], hidden_size: int) -> None:
        super().__init__()
        self.names = [feature.name for feature in features]
        self.parts = nn.ModuleList(
            (CodeVectors if feature.num_rows else DenseVectors)(num_items, feature, hidden_size) for feature in features
        )

    def forward(self, items: Tensor) -> Tensor:
        """[N, D] of items [N]."""
        vectors = self.parts[0](items)
        for part in self.parts[1:]:
            vectors = vectors + part(items)
        return vectors

    def put(self, known: ItemFeatures, *, first: int) -> None:
        """Set what is known of the items from `first` on, as many as there are; whatever was there before goes."""
        for name, part in zip(self.names, self.parts, strict=True):
            assert isinstance(part, CodeVectors | DenseVectors)
            rows = torch.from_numpy(known.values[name]).to(part.values)
            part.values = rows if first == 0 else torch.cat([part.values[:first], rows[FIRST_INDEX:]])


class FeaturedItemTable(ItemTable):
    """An item table whose vectors are the row of an id plus what its features say."""

    has_events: Tensor
    """[V] True where an item has training events, so that the row of its id counts; True for unknown."""

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int,
        features: Sequence[ItemFeature],
        id_dropout: float,
        *,
        cosine: bool = False,
    ) -> None:
        super().__init__(vocabulary_size, hidden_size, cosine=cosine)
        self.features = FeatureSum(vocabulary_size, features, hidden_size)
        self.id_dropout = id_dropout
        self.register_buffer("has_events", torch.ones(vocabulary_size, dtype=torch.bool))
        self._kept: tuple[object, Tensor] | None = None

    def set_items(self, features: ItemFeatures, num_events: np.ndarray) -> None:
        """Say what is known of every item.

        Args:
            features: of the whole vocabulary.
            num_events: [V] training events of each item.
        """
        self.features.put(features, first=0)
        has_events = torch.from_numpy(num_events > 0)
        has_events[UNKNOWN_INDEX] = True
        self.has_events = has_events.to(self.has_events.device)
        self._kept = None

    @torch.no_grad()
    def extend(self, features: ItemFeatures) -> None:
        """Take in new items, known by features alone; they get the next indices.

        Args:
            features: of the new items, after padding and unknown.
        """
        known, num_new = self.num_items, features.num_rows - FIRST_INDEX
        self.features.put(features, first=known)
        rows = F.pad(self.weight, (0, 0, 0, num_new))
        self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)
        self.has_events = F.pad(self.has_events, (0, num_new))
        self.num_items = known + num_new
        self._kept = None

    @property
    def items_with_events(self) -> Tensor | None:
        """[N] items with training events; None where there is no such item."""
        found = self.has_events[FIRST_INDEX:].nonzero()[:, 0] + FIRST_INDEX
        return found if len(found) else None

    def _vectors(self, item_index: Tensor, seed: int | None) -> Tensor:
        if self._may_keep:
            return F.embedding(item_index, self._catalogue())
        items, places = torch.unique(item_index, return_inverse=True)
        return F.embedding(places, self._compose(items, seed))

    def _apart(self, item_index: Tensor) -> Tensor:
        ids = self._rows(item_index)
        return torch.stack([ids * self.has_events[item_index][..., None], self.features(item_index)])

    def _catalogue(self) -> Tensor:
        """All vectors, composed once as long as no weight changes where nothing is learned."""
        everything = torch.arange(self.num_items, device=self.has_events.device)
        if not self._may_keep:
            return self._compose(everything, None)
        if self._kept is None or self._kept[0] != self._state:
            self._kept = self._state, self._compose(everything, None)
        return self._kept[1]

    @property
    def _state(self) -> tuple[tuple[int, int], ...]:
        """Another one after every change of a weight."""
        return tuple((weight.data_ptr(), weight._version) for weight in self.parameters())

    def keep_catalogue(self, vectors: Tensor) -> None:
        """As of `ItemTable`; by cosine items are not held against states as they are read."""
        if not self.cosine:
            self._kept = self._state, vectors

    def _losses(
        self, states: Tensor, targets: Tensor, label_smoothing: float, seed: int | None, weighed_alike: bool
    ) -> Tensor:
        """As `catalogue_loss`, over items with events; a target without any is beside them where it is the target.

        Raises:
            SettingsError: the rows are spread over ranks.
        """
        if self.shard is not None:
            raise SettingsError(
                "softmax kind full goes over all items, which encoder.item_features are composed for, but rows are "
                "spread over workers: choose softmax kind sampled, or raise training.shard_items_from"
            )
        items = F.pad(self.has_events[FIRST_INDEX:], (FIRST_INDEX, 0), value=True).nonzero()[:, 0]
        vectors = self.compared(self._compose(items, seed))
        scores = dot(states, self.compared(self._vectors(targets, seed)))
        against = log_partition(states, vectors, first=FIRST_INDEX, weighed_alike=weighed_alike)
        losses = torch.where(self.has_events[targets], against, torch.logaddexp(against, scores)) - scores
        if label_smoothing:
            losses = losses + label_smoothing * (scores - even_score(states, vectors[FIRST_INDEX:]))
        return losses.masked_fill(targets < FIRST_INDEX, float("inf"))

    @property
    def _may_keep(self) -> bool:
        return not (self.training or torch.is_grad_enabled())

    def _compose(self, items: Tensor, seed: int | None) -> Tensor:
        """[N, D] vectors of items [N]."""
        ids = self._rows(items)
        return ids * self._counts_id(seed)[items][:, None] + self.features(items)

    def _counts_id(self, seed: int | None) -> Tensor:
        """[V] whether the row of an item's id counts: not without events, nor where it is dropped in training."""
        if seed is None or not self.training or not self.id_dropout:
            return self.has_events
        kept = torch.rand(self.num_items, generator=generator_of(seed, IDS)) >= self.id_dropout
        kept[UNKNOWN_INDEX] = True
        return self.has_events & kept.to(self.has_events.device)


def make_item_table(
    vocabulary_size: int,
    hidden_size: int,
    features: Sequence[dict[str, Any]],
    id_dropout: float,
    *,
    cosine: bool = False,
) -> ItemTable:
    """A table of ids alone where there are no features.

    Args:
        vocabulary_size: V. hidden_size: D.
        features: fields of `data_io.side.features.ItemFeature`.
        id_dropout: share of items whose id does not count in a training step.
        cosine: whether states are held against items by cosine.
    """
    if not features:
        return ItemTable(vocabulary_size, hidden_size, cosine=cosine)
    known = [ItemFeature(**feature) for feature in features]
    return FeaturedItemTable(vocabulary_size, hidden_size, known, id_dropout, cosine=cosine)
