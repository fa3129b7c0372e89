"""The ranker: the K best items of the whole catalogue for each user, rules among them, exact.

A scan finds the best items by dot product, on a CPU in `model.scan` and on a GPU in `model.row_scan`; items that are
chosen in other ways are few, and are scored and put among them here. Invariants: a user gets K items whenever K are
eligible; ties go to the smaller item index; what a user gets does not depend on who is ranked beside.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.eligibility import NO_PAIRS, NO_RULES, ItemRules, Pairs, Scanned, concatenate_scanned, pairs_of, take_pairs
from model.mixing import Choices
from model.queries import Queries
from model.row_scan import scan_on_gpu
from model.scan import scan_on_cpu, take_capped

Shape = TypeVar("Shape")
_TILES = ((256, 1024), (512, 1024), (256, 2048), (512, 2048), (512, 4096))
_GROUPS = (16, 32, 64, 128)
_TUNED_ON = 1 << 15
"""Items, at most, that a shape of the scan is tried on."""
_LONGER = 4
"""How much longer a list is made where a cap on groups left fewer than K of it."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best items of B users."""

    item: np.ndarray
    """[B, K] int32, best first; 0 where there is no further item."""
    score: np.ndarray
    """[B, K] float32 log-probabilities, boosts added; minus infinity where there is no further item."""
    acted: np.ndarray
    """[B] uint32, rules that kept out an item which would have a place, or boosted one that has, as bits."""


class Ranker:
    """Ranks a catalogue for batches of users.

    Args:
        items: [V, D] float32 vectors of items; the first two, of padding and unknown, are never ranked.
        rules: of the items.
        num_threads: that share the users of a batch on a CPU.
    """

    def __init__(self, items: Tensor, rules: ItemRules = NO_RULES, num_threads: int = 1) -> None:
        self.items = items
        self.rules = rules
        self.num_threads = num_threads
        self._tile: tuple[int, int] | None = None
        self._group: int | None = None

    @property
    def num_ranked(self) -> int:
        """Items of the catalogue without padding and unknown."""
        return len(self.items) - FIRST_INDEX

    def rank(self, queries: Queries, k: int, class_of: np.ndarray | None = None, pairs: Pairs = NO_PAIRS) -> Ranking:
        """The K best items of each user.

        Args:
            queries: of B users, on the device of the items.
            k: K.
            class_of: [B] class of each user for the rules; None: there is just one.
            pairs: items that are not for a user.
        """
        num_users = len(queries.users)
        kinds = np.zeros(num_users, np.int64) if class_of is None else class_of.astype(np.int64)
        ranking = Ranking(
            item=np.zeros((num_users, k), np.int32),
            score=np.full((num_users, k), -np.inf, np.float32),
            acted=np.zeros(num_users, np.uint32),
        )
        waiting, length = np.arange(num_users), min(k, self.num_ranked)
        while length and len(waiting):
            every = len(waiting) == num_users
            parts = (queries, pairs) if every else (queries.take(waiting), take_pairs(pairs, waiting))
            found, ended = self._rank(*parts, k, length, kinds[waiting])
            ranking.item[waiting], ranking.score[waiting] = found.item, found.score
            ranking.acted[waiting] = found.acted
            waiting = waiting[np.isneginf(found.score[:, -1]) & ~ended]
            length = min(length * _LONGER, self.num_ranked)
        return ranking

    def _rank(
        self, queries: Queries, pairs: Pairs, k: int, length: int, kinds: np.ndarray
    ) -> tuple[Ranking, np.ndarray]:
        """Lists cut from the `length` best items, and [B] where there are no more items than those."""
        choices = Choices(queries, self.items, kinds, pairs, self.rules)
        scanned = self._scan(queries.users.float(), length, kinds, choices.left_out)
        ended = np.isneginf(scanned.score[:, -1]) | (length >= self.num_ranked)
        item, score, kept_out = choices.among(scanned)
        capped = np.zeros(len(kinds), bool)
        if len(self.rules.group):
            capped = take_capped(item, score, self.rules.group, self.rules.most_of_group, k)
        item, score = _of_width(item, k, 0), _of_width(score, k, -np.inf)
        bits = np.uint32(1) << np.arange(self.rules.num_rules, dtype=np.uint32)
        acted = np.where(kept_out > score[:, -1:], bits, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        acted |= np.where(capped, np.uint32(1 << self.rules.cap), np.uint32(0))
        if len(self.rules.boosted_by):
            acted |= np.bitwise_or.reduce(self.rules.boosted_by[kinds[:, None], item], axis=1)
        return Ranking(item, score, acted), ended

    def _scan(self, users: Tensor, length: int, kinds: np.ndarray, left_out: Pairs) -> Scanned:
        if users.is_cuda:
            self._group = self._group or self._quickest_group(users, length)
            return scan_on_gpu(users, self.items, length, kinds, left_out, self.rules, self._group)
        tile = self._tile = self._tile or self._quickest_tile(users, length)

        def scan(begin: int, end: int) -> Scanned:
            own = pairs_of(left_out, begin, end)
            return scan_on_cpu(users[begin:end], self.items, length, kinds[begin:end], own, self.rules, tile)

        bounds = np.linspace(0, len(users), min(self.num_threads, len(users)) + 1).astype(int)
        if len(bounds) == 2:
            return scan(0, len(users))
        with ThreadPoolExecutor(len(bounds) - 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return concatenate_scanned(list(pool.map(scan, bounds[:-1], bounds[1:])))

    def _quickest_tile(self, users: Tensor, length: int) -> tuple[int, int]:
        """Users and items of a tile: the quickest on this machine for vectors of this size."""
        users, items = users[: _TILES[-1][0]], self.items[:_TUNED_ON]
        kinds, k = np.zeros(len(users), np.int64), min(length, len(items) - FIRST_INDEX)
        return _quickest(_TILES, lambda tile: scan_on_cpu(users, items, k, kinds, NO_PAIRS, NO_RULES, tile))

    def _quickest_group(self, users: Tensor, length: int) -> int:
        kinds = np.zeros(len(users), np.int64)
        return _quickest(
            _GROUPS, lambda group: scan_on_gpu(users, self.items, length, kinds, NO_PAIRS, NO_RULES, group)
        )


def _quickest(shapes: Iterable[Shape], work: Callable[[Shape], object]) -> Shape:
    times = {}
    for shape in shapes:
        work(shape)  # the first time compiles and touches memory
        begin = time.perf_counter()
        work(shape)
        times[shape] = time.perf_counter() - begin
    return min(times, key=lambda shape: times[shape])


def _of_width(values: np.ndarray, width: int, filling: float) -> np.ndarray:
    """[B, width] the first values of each row, filled up."""
    kept = values[:, :width]
    return np.pad(kept, ((0, 0), (0, width - kept.shape[1])), constant_values=filling)
