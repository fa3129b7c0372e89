"""Eligibility: which items are for which users, as arrays that a scan of the catalogue reads.

Rules that treat users alike make classes of users; what holds for one user alone is a pair. Every rule is a bit, so
that a ranking can say which of them acted. Where rules come from is not known here (`ray_jobs.rules`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRules:
    """What R rules say of V items, for each of C classes of users."""

    num_rules: int
    """R, at most 32."""
    denied: np.ndarray
    """[C, V] uint32, rules that keep an item out; C = 0: there are none."""
    boost: np.ndarray
    """[C, V] float32 added to log-probabilities; C = 0: nothing."""
    boosted_by: np.ndarray
    """[C, V] uint32, rules that do so; C = 0: none."""
    group: np.ndarray
    """[V] int32 group of each item, below 0 where it has none; empty: lists may be of one group."""
    most_of_group: int
    """Items of a group in a list."""
    cap: int
    """Which rule that is."""


NO_RULES = ItemRules(
    num_rules=0,
    denied=np.zeros((0, 0), np.uint32),
    boost=np.zeros((0, 0), np.float32),
    boosted_by=np.zeros((0, 0), np.uint32),
    group=np.zeros(0, np.int32),
    most_of_group=0,
    cap=0,
)


class Pairs(NamedTuple):
    """Items that are not for a user, by user and then by item."""

    row: np.ndarray
    """[P] int64, the user."""
    item: np.ndarray
    """[P] int32."""
    rules: np.ndarray
    """[P] uint32, rules that keep the item out, as bits; 0: it is left out without a note."""


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint32))


def make_pairs(row: np.ndarray, item: np.ndarray, rules: np.ndarray) -> Pairs:
    """Pairs from users [P], items [P] and rules [P] in any order; the rules of the same pair are united."""
    order = np.lexsort((item, row))
    row, item, rules = row[order], item[order], rules[order]
    firsts = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(item, prepend=-1) != 0))
    united = np.bitwise_or.reduceat(rules, firsts) if len(firsts) else rules
    return Pairs(row[firsts].astype(np.int64), item[firsts].astype(np.int32), united.astype(np.uint32))


def unite(first: Pairs, second: Pairs) -> Pairs:
    """All pairs of both."""
    return make_pairs(*(np.concatenate(column) for column in zip(first, second, strict=True)))


class Personal(NamedTuple):
    """What is for each of B users."""

    class_of: np.ndarray
    """[B] int64, the class of users for `ItemRules`."""
    pairs: Pairs
    full: np.ndarray
    """[B, G] True where a list has as many items of a group as it may; G = 0: nowhere."""

    def part(self, begin: int, end: int) -> "Personal":
        """Users begin to end, their rows counted from there."""
        pairs = self.pairs
        first, last = np.searchsorted(pairs.row, [begin, end])
        own = Pairs(pairs.row[first:last] - begin, pairs.item[first:last], pairs.rules[first:last])
        return Personal(self.class_of[begin:end], own, self.full[begin:end])

    def take(self, rows: np.ndarray) -> "Personal":
        """Some of the users, ascending, their rows counted among these."""
        pairs = self.pairs
        place = np.searchsorted(rows, pairs.row).clip(max=max(len(rows) - 1, 0))
        kept = rows[place] == pairs.row
        own = Pairs(place[kept], pairs.item[kept], pairs.rules[kept])
        return Personal(self.class_of[rows], own, self.full[rows])


def make_personal(num_users: int, class_of: np.ndarray | None = None, pairs: Pairs = NO_PAIRS) -> Personal:
    """What is for users whose lists are empty; of one class where none is given."""
    kinds = np.zeros(num_users, np.int64) if class_of is None else class_of.astype(np.int64)
    return Personal(kinds, pairs, np.zeros((num_users, 0), bool))


def find_rules(pairs: Pairs, row: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each (row, item) [N] is among the pairs, and the rules [N] of those that are."""
    if not len(pairs.row):
        return np.zeros(len(row), bool), np.zeros(len(row), np.uint32)
    size = max(int(pairs.item.max()), int(item.max(initial=0))) + 1
    keys, wanted = pairs.row * size + pairs.item, row.astype(np.int64) * size + item
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    found = keys[place] == wanted
    return found, np.where(found, pairs.rules[place], np.uint32(0))


class Scanned(NamedTuple):
    """What a pass over the catalogue finds for B users."""

    score: np.ndarray
    """[B, L] float32, dot products and boosts; minus infinity where there are no further items."""
    item: np.ndarray
    """[B, L] int32, in the order of their indices; 0 where there are no further items."""
    kept_out: np.ndarray
    """[B, R] float32, the best score that each rule kept out, or less where that has no place among the L."""
    normaliser: np.ndarray
    """[B] float64, log of the sum of exponentials of the dot products of all items."""


def concatenate_scanned(parts: list[Scanned]) -> Scanned:
    """Of several groups of users, one after the other."""
    return Scanned(*(np.concatenate(column) for column in zip(*parts, strict=True)))
