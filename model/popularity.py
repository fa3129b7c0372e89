"""Popularity of items: which are head and tail, and what lists say about a taste for the popular.

Pure NumPy over counts [V] of training events; padding and the unknown item are no part of the catalogue. Invariant:
items of equal counts have equal percentiles and equal information.
"""

import numpy as np

from data_io.schema import FIRST_INDEX

GROUPS = ("head", "middle", "tail")
_SHARES = (0.5, 0.9)


def popularity_groups(counts: np.ndarray) -> np.ndarray:
    """[V] place in `GROUPS`: the fewest top items that hold half of the events, the next up to 90 %, the rest.

    Equal counts go by item index. Items without events, padding and unknown are tail.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    groups = np.empty(len(counts), np.int64)
    groups[order] = np.searchsorted(np.array(_SHARES) * counts.sum(), before, side="right")
    groups[counts == 0] = len(GROUPS) - 1
    return groups


def rank_percentiles(counts: np.ndarray) -> np.ndarray:
    """[V] share of the catalogue, in percent, that has fewer events than an item, items of equal counts counting half.

    The most popular item has nearly 100, the mean over the catalogue is 50. Not-a-number for padding and unknown.
    """
    catalogue = counts[FIRST_INDEX:]
    ordered = np.sort(catalogue)
    below, upto = (np.searchsorted(ordered, catalogue, side=side) for side in ("left", "right"))
    percentiles = 50 * (below + upto) / max(len(catalogue), 1)
    return np.concatenate([np.full(FIRST_INDEX, np.nan), percentiles])


def self_information(counts: np.ndarray) -> np.ndarray:
    """[V] bits: -log2 of an item's share of all events; an item without events counts as one with a single one.

    Source:
        Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems", surprisal; shares
        here are of events, not of users.
    """
    return -np.log2(np.maximum(counts, 1) / max(counts.sum(), 1))


def coverage(listed: np.ndarray) -> float:
    """Share of the catalogue that stands in at least one list; `listed` [V] is how often each item does."""
    catalogue = listed[FIRST_INDEX:]
    return float((catalogue > 0).mean()) if len(catalogue) else float("nan")


def mean_over(listed: np.ndarray, values: np.ndarray) -> float:
    """Mean of a value [V] of items over all places in lists; not-a-number where there are none."""
    used = listed > 0
    return float((listed[used] * values[used]).sum() / listed.sum()) if used.any() else float("nan")
