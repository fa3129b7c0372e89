"""Baselines: rankers without a network, that stand beside every model in the report.

Scores are of the whole catalogue; padding and the unknown item have minus infinity. Invariant: scores are sums that
come out the same in any order of summing, so that equal ones are equal on every device and go by item index (see
`model.topk`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.neighbours import ItemNeighbours

_UNITS = 2**32
"""Similarities are summed as integers of 1 / _UNITS: sums of floats would depend on their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTables:
    """What the baselines know of the items."""

    popularity: np.ndarray
    """[V] events of each item in all history."""
    recent_popularity: np.ndarray
    """[V] those of the newest days of it."""
    neighbours: ItemNeighbours | None
    """None: item_knn is left out."""
    num_events: int
    """Newest events of a user whose neighbours item_knn sums."""
    decay: float
    """Weight of an event in that sum beside the one after it."""


class Baselines:
    """Scores all items for users, by every baseline."""

    def __init__(self, tables: BaselineTables, device: torch.device) -> None:
        self.tables = tables
        self.device = device
        self.tie_breaker = torch.from_numpy(_share_below(tables.popularity)).to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are not left out, in the order of `iter_scores`."""
        common = ("popularity", "recent_popularity", "own_history")
        return common if self.tables.neighbours is None else (*common, "item_knn")

    def iter_scores(self, row: np.ndarray, item: np.ndarray, num_users: int) -> Iterator[tuple[str, Tensor]]:
        """Names and scores [B, V] float64, one baseline after the other.

        Args:
            row, item: users of the batch and items of their history, oldest first (see `data_io.scores.seen_pairs`).
            num_users: B.
        """
        yield "popularity", self._for_all(self.tables.popularity, num_users)
        yield "recent_popularity", self._for_all(self.tables.recent_popularity, num_users)
        yield "own_history", self._own_history(row, item, num_users)
        if self.tables.neighbours is not None:
            yield "item_knn", self._item_knn(self.tables.neighbours, row, item, num_users)

    def _for_all(self, counts: np.ndarray, num_users: int) -> Tensor:
        scores = torch.from_numpy(counts.astype(np.float64)).to(self.device) + self.tie_breaker
        return _without_unknown(scores.repeat(num_users, 1))

    def _own_history(self, row: np.ndarray, item: np.ndarray, num_users: int) -> Tensor:
        counts = self._sums(row, item, np.ones(len(row), np.int64), num_users)
        return _without_unknown(counts.double() + self.tie_breaker)

    def _item_knn(self, neighbours: ItemNeighbours, row: np.ndarray, item: np.ndarray, num_users: int) -> Tensor:
        """Sum of decay^a x similarity over the newest events, a being 0 for the newest; 0 goes by popularity.

        Source:
            Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms", sections 3.1.1 and
            3.2.1; the decay by position is ours.
        """
        row, item, age = newest_events(row, item, self.tables.num_events)
        source, near, similarity = neighbours.of(item)
        terms = np.rint(self.tables.decay ** age[source] * similarity.astype(np.float64) * _UNITS).astype(np.int64)
        sums = self._sums(row[source], near, terms, num_users).double().div_(_UNITS)
        return _without_unknown(torch.where(sums > 0, sums, self.tie_breaker - 1))

    def _sums(self, row: np.ndarray, item: np.ndarray, terms: np.ndarray, num_users: int) -> Tensor:
        """[B, V] int64 sums of terms by (user, item)."""
        sums = torch.zeros((num_users, len(self.tie_breaker)), dtype=torch.int64, device=self.device)
        place = tuple(torch.from_numpy(part.astype(np.int64)).to(self.device) for part in (row, item))
        return sums.index_put_(place, torch.from_numpy(terms).to(self.device), accumulate=True)


def newest_events(row: np.ndarray, item: np.ndarray, num_events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and items of the newest events of each user, and their age: 0 for the newest, then 1, and so on.

    Args:
        row, item: ascending users and, oldest first, the items of their events.
        num_events: at most so many of each user.
    """
    ends = np.searchsorted(row, row, side="right")
    age = ends - 1 - np.arange(len(row))
    chosen = age < num_events
    return row[chosen], item[chosen], age[chosen]


def _share_below(popularity: np.ndarray) -> np.ndarray:
    """[V] from 0 to just below 1, rising with popularity: added to whole numbers it decides between equal ones."""
    distinct, place = np.unique(popularity, return_inverse=True)
    return place / (len(distinct) + 1)


def _without_unknown(scores: Tensor) -> Tensor:
    scores[:, :FIRST_INDEX] = float("-inf")
    return scores
