"""Lists of which no group has more than so many, compiled."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def take_capped(item: np.ndarray, score: np.ndarray, group: np.ndarray, most: int, k: int) -> np.ndarray:
    """Cut lists to the first K items of which no group has more than so many; what is left is filled up, in place.

    Args:
        item: [B, L] items, best first; changed.
        score: [B, L] theirs, minus infinity where there are no more; changed.
        group: [V] of each item, below 0 where it has none.
        most: items of a group.
        k: K.

    Returns:
        [B] whether an item was passed over.
    """
    capped = np.zeros(len(item), np.bool_)
    taken = np.zeros(max(group.max(), 0) + 1, np.int64)
    for user in range(len(item)):
        kept = 0
        for place in range(item.shape[1]):
            if kept == k or not np.isfinite(score[user, place]):
                break
            own = group[item[user, place]]
            if own >= 0 and taken[own] == most:
                capped[user] = True
                continue
            if own >= 0:
                taken[own] += 1
            item[user, kept], score[user, kept] = item[user, place], score[user, place]
            kept += 1
        for place in range(kept):
            own = group[item[user, place]]
            if own >= 0:
                taken[own] = 0
        item[user, kept:] = 0
        score[user, kept:] = -np.inf
    return capped
