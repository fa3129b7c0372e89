"""The ranker: the K best items of the whole catalogue for each user, rules among them, exact.

A scan finds the best items by dot product, on a CPU in `model.scan` and on a GPU in `model.row_scan`; items that are
chosen in other ways are few, and are scored and put among them here. Invariants: a user gets K items whenever K are
eligible; ties go to the smaller item index; what a user gets does not depend on who is ranked beside.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.capping import take_capped
from model.eligibility import (
    NO_RULES,
    ItemRules,
    Personal,
    Scanned,
    concatenate_scanned,
    make_pairs,
    make_personal,
    unite,
)
from model.mixing import Choices
from model.queries import Queries
from model.row_scan import scan_on_gpu
from model.scan import scan_on_cpu

Shape = TypeVar("Shape")
_TILES = ((256, 1024), (512, 1024), (512, 2048))
_GROUPS = (16, 32, 64, 128)
_TUNED_ON = 1 << 15
"""Items, at most, that a shape of the scan is tried on."""
_TUNING_ROUNDS = 3


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

    def rank(self, queries: Queries, k: int, personal: Personal | None = None) -> Ranking:
        """The K best items of each user.

        Args:
            queries: of B users, on the device of the items.
            k: K.
            personal: what is for each user; None: everything.
        """
        num_users = len(queries.users)
        ranking = Ranking(
            item=np.zeros((num_users, k), np.int32),
            score=np.full((num_users, k), -np.inf, np.float32),
            acted=np.zeros(num_users, np.uint32),
        )
        if not num_users or self.num_ranked <= 0:
            return ranking
        personal = make_personal(num_users) if personal is None else personal
        kept_out = np.full((num_users, self.rules.num_rules), -np.inf, np.float32)
        waiting = np.arange(num_users)
        while len(waiting):
            every = len(waiting) == num_users
            part = (queries, personal) if every else (queries.take(waiting), personal.take(waiting))
            waiting = self._extend(ranking, kept_out, waiting, self._best(*part, k))
            if len(waiting):
                personal = self._without_listed(personal, ranking, waiting)
        self._note_rules(ranking, kept_out, personal.class_of)
        return ranking

    def _best(self, queries: Queries, personal: Personal, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items [B, L] and scores [B, L] of the best, best first, and the best [B, R] that each rule kept out."""
        choices = Choices(queries, self.items, personal, self.rules)
        return choices.among(self._scan(queries.users.float(), min(k, self.num_ranked), choices.others))

    def _extend(
        self,
        ranking: Ranking,
        kept_out: np.ndarray,
        rows: np.ndarray,
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """Put what was found behind the lists of some users; returns those whom only the cap keeps from more."""
        k = ranking.item.shape[1]
        item = np.concatenate([ranking.item[rows], found[0]], axis=1)
        score = np.concatenate([ranking.score[rows], found[1]], axis=1)
        order = np.argsort(np.isneginf(score), axis=1, kind="stable")  # places that are not taken go to the end
        item, score = np.take_along_axis(item, order, 1), np.take_along_axis(score, order, 1)
        kept_out[rows] = np.maximum(kept_out[rows], found[2])
        if not len(self.rules.group):
            ranking.item[rows], ranking.score[rows] = item[:, :k], score[:, :k]
            return rows[:0]
        capped = take_capped(item, score, self.rules.group, self.rules.most_of_group, k)
        ranking.item[rows], ranking.score[rows] = item[:, :k], score[:, :k]
        ranking.acted[rows] |= np.where(capped, np.uint32(1 << self.rules.cap), np.uint32(0))
        ended = np.isneginf(found[1][:, -1])
        return rows[np.isneginf(score[:, k - 1]) & ~ended]

    def _without_listed(self, personal: Personal, ranking: Ranking, rows: np.ndarray) -> Personal:
        """What is left for users whose lists are too short: no item that is listed, no group of which they are full."""
        group, most = self.rules.group, self.rules.most_of_group
        row, place = np.isfinite(ranking.score[rows]).nonzero()
        row, item = rows[row], ranking.item[rows[row], place]
        full = np.zeros((len(personal.class_of), max(int(group.max()), 0) + 1), np.int64)
        has_group = group[item] >= 0
        np.add.at(full, (row[has_group], group[item[has_group]]), 1)
        listed = make_pairs(row, item, np.zeros(len(row), np.uint32))
        return Personal(personal.class_of, unite(personal.pairs, listed), full >= most)

    def _note_rules(self, ranking: Ranking, kept_out: np.ndarray, kinds: np.ndarray) -> None:
        bits = np.uint32(1) << np.arange(self.rules.num_rules, dtype=np.uint32)
        acted = ranking.acted
        acted |= np.where(kept_out > ranking.score[:, -1:], bits, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        if len(self.rules.boosted_by):
            acted |= np.bitwise_or.reduce(self.rules.boosted_by[kinds[:, None], ranking.item], axis=1)

    def _scan(self, users: Tensor, length: int, personal: Personal) -> Scanned:
        if users.is_cuda:
            self._group = self._group or self._quickest_group(users, length)
            return scan_on_gpu(users, self.items, length, personal, self.rules, self._group)
        tile = self._tile = self._tile or self._quickest_tile(users, length)
        return self._on_threads(users, self.items, length, personal, self.rules, tile)

    def _on_threads(
        self, users: Tensor, items: Tensor, length: int, personal: Personal, rules: ItemRules, tile: tuple[int, int]
    ) -> Scanned:
        def scan(begin: int, end: int) -> Scanned:
            return scan_on_cpu(users[begin:end], items, length, personal.part(begin, end), rules, tile)

        bounds = np.linspace(0, len(users), min(self.num_threads, len(users)) + 1).astype(int)
        if len(bounds) == 2:
            return scan(0, len(users))
        with ThreadPoolExecutor(len(bounds) - 1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return concatenate_scanned(list(pool.map(scan, bounds[:-1], bounds[1:])))

    def _quickest_tile(self, users: Tensor, length: int) -> tuple[int, int]:
        """Users and items of a tile: the quickest on this machine for vectors of this size, on all threads."""
        users, items = users[: _TILES[-1][0] * self.num_threads], self.items[:_TUNED_ON]
        everything, k = make_personal(len(users)), min(length, len(items) - FIRST_INDEX)
        return _quickest(_TILES, lambda tile: self._on_threads(users, items, k, everything, NO_RULES, tile))

    def _quickest_group(self, users: Tensor, length: int) -> int:
        everything = make_personal(len(users))
        return _quickest(_GROUPS, lambda group: scan_on_gpu(users, self.items, length, everything, NO_RULES, group))


def _quickest(shapes: Sequence[Shape], work: Callable[[Shape], object]) -> Shape:
    """The shape whose quickest of some rounds is the quickest; the first round compiles and touches memory."""
    times = {shape: [] for shape in shapes}
    for _ in range(_TUNING_ROUNDS + 1):
        for shape, own in times.items():
            begin = time.perf_counter()
            work(shape)
            own.append(time.perf_counter() - begin)
    return min(times, key=lambda shape: min(times[shape][1:]))
