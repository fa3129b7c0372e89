"""Neighbours of items: which items the same users had, from counts of pairs.

Pairs are counted as sorted keys, so that memory follows the pairs there are and never the square of the catalogue. They
may be counted in slices by the first item, one after the other. Invariant: counts do not depend on how users are cut
into parts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences

_PAIRS_AT_A_TIME = 1 << 22
_DENSE = 4
"""Keys are counted in an array of the range they lie in where that is at most so many times their number."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Users who had both items of a pair, for P ordered pairs."""

    keys: np.ndarray
    """[P] int64, ascending: first item times V plus second item."""
    counts: np.ndarray
    """[P] int32."""


@dataclass(frozen=True, slots=True)
class ItemNeighbours:
    """The nearest items of each item, a sparse matrix in rows; item v owns entries offsets[v] to offsets[v + 1]."""

    offsets: np.ndarray
    """[V + 1] int64."""
    item_index: np.ndarray
    """[P] int32, nearest first."""
    similarity: np.ndarray
    """[P] float32, above 0, at most 1."""

    def of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours of items [N] one after the other: the place of each in `items`, its index and its similarity."""
        begin, lengths = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        entries = _ranges(begin, lengths)
        return np.repeat(np.arange(len(items)), lengths), self.item_index[entries], self.similarity[entries]


def distinct_items(sequences: Sequences, ends: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Users (rows, ascending) and items of all pairs of a user and a known item had before the user's end [U]."""
    lengths = np.maximum(ends - sequences.starts, 0)
    row = np.repeat(np.arange(sequences.num_users), lengths)
    items = sequences.item_index[_ranges(sequences.starts, lengths)]
    keys = np.unique((row * vocabulary_size + items)[items >= FIRST_INDEX])
    return keys // vocabulary_size, keys % vocabulary_size


def num_unordered_pairs(row: np.ndarray) -> int:
    """Pairs of items that a user had both of, summed over users; `row` as `distinct_items` gives it."""
    counts = np.bincount(row)
    return int((counts * (counts - 1) // 2).sum())


def count_together(
    row: np.ndarray, item: np.ndarray, vocabulary_size: int, part: int = 0, num_parts: int = 1
) -> PairCounts:
    """Users who had both items of a pair, for the pairs of one slice of the first item.

    Args:
        row, item: as `distinct_items` gives them.
        vocabulary_size: V.
        part: the slice: items whose index leaves this remainder.
        num_parts: slices there are; the index is divided by it.
    """
    first_of = np.searchsorted(row, row, side="left")
    size_of = np.searchsorted(row, row, side="right") - first_of
    chosen = np.flatnonzero(item % num_parts == part)
    chosen = chosen[np.argsort(item[chosen], kind="stable")]  # keys that are counted together then lie close together
    return add_counts(_pairs_of(row, item, vocabulary_size, chosen, first_of[chosen], size_of[chosen]))


def _pairs_of(
    row: np.ndarray, item: np.ndarray, vocabulary_size: int, chosen: np.ndarray, begin: np.ndarray, size: np.ndarray
) -> Iterator[PairCounts]:
    """Pairs of the chosen entries with the other items of their users, some at a time."""
    until = np.cumsum(size)
    first = 0
    while first < len(chosen):
        before = until[first - 1] if first else 0
        last = max(int(np.searchsorted(until, before + _PAIRS_AT_A_TIME, side="right")), first + 1)
        near = item[_ranges(begin[first:last], size[first:last])]
        own = np.repeat(item[chosen[first:last]], size[first:last])
        yield _count((own * vocabulary_size + near)[own != near])
        first = last


def _count(keys: np.ndarray) -> PairCounts:
    """How often each key occurs; without sorting, a third of the time, where the keys lie close together."""
    lowest = int(keys.min(initial=np.iinfo(np.int64).max))
    if len(keys) and int(keys.max()) - lowest < _DENSE * len(keys):
        counts = np.bincount(keys - lowest)
        found = np.flatnonzero(counts)
        return PairCounts(found + lowest, counts[found].astype(np.int32))
    found, counts = np.unique(keys, return_counts=True)
    return PairCounts(found, counts.astype(np.int32))


def add_counts(parts: Iterable[PairCounts]) -> PairCounts:
    """The sum of counts; parts are added when they are together as large as the sum so far, so each is moved seldom."""
    waiting: list[PairCounts] = [PairCounts(np.zeros(0, np.int64), np.zeros(0, np.int32))]
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part.keys)
        if size > max(len(waiting[0].keys), _PAIRS_AT_A_TIME):
            waiting, size = [_sum(waiting)], 0
    return _sum(waiting)


def _sum(parts: list[PairCounts]) -> PairCounts:
    keys = np.concatenate([part.keys for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return PairCounts(keys[firsts], np.add.reduceat(counts, firsts) if len(firsts) else counts)


def nearest(together: PairCounts, num_users: np.ndarray, most: int) -> ItemNeighbours:
    """The `most` nearest items of each item, equal ones by index.

    Args:
        together: all pairs of the items in question.
        num_users: [V] users who had each item.
        most: neighbours kept of an item.

    Returns:
        Cosine similarity of the columns of the binary matrix of users and items: users who had both, over the root of
        the product of users who had each. It is rounded to float32 before it is compared, so that equal fractions are
        equal.

    Source:
        Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms", section 3.1.1.
    """
    size = len(num_users)
    own, near = together.keys // size, together.keys % size
    norms = np.sqrt(num_users[own].astype(np.float64) * num_users[near])
    similarity = (together.counts / norms).astype(np.float32)
    order = np.lexsort((near, -similarity, own))
    lengths = np.bincount(own, minlength=size)
    kept = order[_ranges(np.cumsum(lengths) - lengths, np.minimum(lengths, most))]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))])
    return ItemNeighbours(offsets, near[kept].astype(np.int32), similarity[kept])


def combine(parts: list[ItemNeighbours]) -> ItemNeighbours:
    """Neighbours found in slices of the items, each item having some in one slice only."""
    lengths = np.array([np.diff(part.offsets) for part in parts])
    own = np.concatenate([np.repeat(np.arange(len(row)), row) for row in lengths])
    order = np.argsort(own, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(axis=0))])
    near = np.concatenate([part.item_index for part in parts])[order]
    return ItemNeighbours(offsets, near, np.concatenate([part.similarity for part in parts])[order])


def _ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begin, begin + 1, ... of each range, one range after the other."""
    shifts = begin - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))
