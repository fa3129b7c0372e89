"""What baselines and slices know of the items, counted in passes of Ray over the buckets.

Invariant: what the driver holds follows the catalogue or a bound on pairs, never the users.
"""

from dataclasses import dataclass
from functools import partial, reduce
from operator import add

import numpy as np

from data_io.splits import DAY_US, Cutoffs, Split, ends_before, history_ends
from data_io.store import SequenceStore
from model.neighbours import (
    ItemNeighbours,
    PairCounts,
    add_counts,
    combine,
    count_together,
    distinct_items,
    nearest,
    num_unordered_pairs,
)
from ray_jobs.bucket_map import map_tasks, spans_of
from ray_jobs.config import ItemKnnSettings
from ray_jobs.learning import count_items

_PAIRS_A_PASS = 10_000_000
"""Ordered pairs the driver holds at most, some 60 bytes each while the nearest are chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemCounts:
    """Counts of a bucket's, or of all, events by item; arrays are [V] int64, 0 for padding and unknown."""

    history: np.ndarray
    """Events before the test cutoff."""
    recent: np.ndarray
    """Those of the newest days."""
    training: np.ndarray
    """Events before the validation cutoff, which models and item_knn learn from."""
    users: np.ndarray
    """Users who had the item before the validation cutoff."""
    num_pairs: int
    """Pairs of items that a user had both of before the validation cutoff, summed over users."""

    def __add__(self, other: "ItemCounts") -> "ItemCounts":
        return ItemCounts(
            history=self.history + other.history,
            recent=self.recent + other.recent,
            training=self.training + other.training,
            users=self.users + other.users,
            num_pairs=self.num_pairs + other.num_pairs,
        )


def count_history(store: SequenceStore, split: Split, recent_days: float) -> ItemCounts:
    """Counts of a whole store.

    Args:
        store: of the run.
        split: leave-one-out has no cutoff: the newest days are then those before the end of the log.
        recent_days: length of the newest days.
    """
    until = split.test if isinstance(split, Cutoffs) else store.end_time
    since, size = until - int(recent_days * DAY_US), store.vocabulary.size

    def count(bucket: int) -> ItemCounts:
        sequences = store.read_sequences(bucket)
        ends = history_ends(sequences, split, "test")
        history = count_items(sequences, ends, size)
        older = count_items(sequences, np.minimum(ends, ends_before(sequences, since)), size)
        training_ends = history_ends(sequences, split, "validation")
        row, item = distinct_items(sequences, training_ends, size)
        return ItemCounts(
            history=history,
            recent=history - older,
            training=count_items(sequences, training_ends, size),
            users=np.bincount(item, minlength=size),
            num_pairs=num_unordered_pairs(row),
        )

    spans = spans_of(range(store.num_buckets))
    return reduce(add, map_tasks(lambda span: reduce(add, map(count, span)), spans))


def why_without_item_knn(counts: ItemCounts, options: ItemKnnSettings) -> str | None:
    """Why item_knn is left out; None: it is not."""
    if counts.num_pairs <= options.max_pairs:
        return None
    return (
        f"left out: users had {counts.num_pairs:,} pairs of items together, more than "
        f"evaluation.item_knn.max_pairs {options.max_pairs:,}"
    )


def find_neighbours(store: SequenceStore, split: Split, counts: ItemCounts, most: int) -> ItemNeighbours:
    """The nearest items of each item by the users who had both before the validation cutoff.

    Each pass over the buckets takes a slice of the items, as many passes as keep the driver's memory bounded.
    """
    size = store.vocabulary.size
    num_parts = max(1, -(-2 * min(counts.num_pairs, size * (size - 1) // 2) // _PAIRS_A_PASS))

    def count_span(part: int, span: range) -> PairCounts:
        def of_bucket(bucket: int) -> PairCounts:
            sequences = store.read_sequences(bucket)
            ends = history_ends(sequences, split, "validation")
            return count_together(*distinct_items(sequences, ends, size), size, part, num_parts)

        return add_counts(map(of_bucket, span))

    slices = []
    for part in range(num_parts):
        spans = spans_of(range(store.num_buckets))
        together = add_counts(map_tasks(partial(count_span, part), spans))
        slices.append(nearest(together, counts.users, most))
    return combine(slices)
