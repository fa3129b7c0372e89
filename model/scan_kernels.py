"""What a scan does to a tile of scores, compiled: which items get a place, and what is not for a user.

A tile comes in groups of items: a group whose best does not beat what the user's K-th place holds by then costs one
comparison. What is not eligible is found only among items that would get a place, and there it is noted which rule kept
it out. Invariant: ties go to the smaller item index, because tiles come in the order of the items.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

NORMALISED_AT_A_TIME = 1024
"""Items whose scores are summed up together, whatever the tiles, so that sums do not depend on them."""
GROUP = 64
"""Items whose best is looked at first."""
_LOG2_E, _LEAST_POWER = np.float32(1.4426950408889634), np.float32(-126)
_P0, _P1, _P2 = np.float32(0.9999999), np.float32(0.69315463), np.float32(0.24014077)
_P3, _P4, _P5 = np.float32(0.055863284), np.float32(0.008946215), np.float32(0.0018951073)
"""Chebyshev's polynomial for 2 to the power of x in [0, 1]."""


class ScanState(NamedTuple):
    """What is kept of B users between tiles."""

    score: np.ndarray
    """[B, S] float32, of items that have a place so far, in the order of their indices."""
    item: np.ndarray
    """[B, S] int32, which items."""
    filled: np.ndarray
    """[B] int64, how many there are."""
    threshold: np.ndarray
    """[B] float32, what an item must beat."""
    kept_out: np.ndarray
    """[B, R] float32, at least the best score of items that a rule kept out, wherever that beats the K-th place."""
    place: np.ndarray
    """[B] int64, the next of the user's pairs."""


class Eligibility(NamedTuple):
    """What is for whom, flat; see `model.eligibility`."""

    class_of: np.ndarray
    """[B] int64, class of each user."""
    denied: np.ndarray
    """[C, V] uint32."""
    boost: np.ndarray
    """[C, V] float32."""
    pair_end: np.ndarray
    """[B] int64, where the pairs of each user end."""
    pair_item: np.ndarray
    """[P] int32."""
    pair_rules: np.ndarray
    """[P] uint32."""
    group: np.ndarray
    """[V] int32."""
    full: np.ndarray
    """[B, G] bool."""


def start_scan(num_users: int, k: int, num_rules: int, begin: np.ndarray) -> ScanState:
    """The state before the first tile; `begin` [B] is where the pairs of each user begin."""
    size = max(2 * k, k + 3 * GROUP)
    return ScanState(
        score=np.empty((num_users, size), np.float32),
        item=np.empty((num_users, size), np.int32),
        filled=np.zeros(num_users, np.int64),
        threshold=np.full(num_users, -np.inf, np.float32),
        kept_out=np.full((num_users, num_rules), -np.inf, np.float32),
        place=begin.copy(),
    )


@njit(nogil=True, cache=True)
def add_boosts(scores: np.ndarray, class_of: np.ndarray, boost: np.ndarray, first: int) -> None:
    """Add to scores [B, T] of items from `first` on what rules add for each user's class."""
    for user in range(scores.shape[0]):
        scores[user] += boost[class_of[user], first : first + scores.shape[1]]


@njit(nogil=True, cache=True)
def scan_tile(
    scores: np.ndarray, maxima: np.ndarray, first: int, k: int, state: ScanState, eligibility: Eligibility
) -> None:
    """Take a tile of scores into the state.

    Indices are unsigned: for signed ones numba looks at each access whether it counts from the end.

    Args:
        scores: [B, T] float32, of items first to first + T; NaN and minus infinity never get a place.
        maxima: [B, N] the largest score of each group.
        first: after those of all tiles before.
        k: K.
        state: changed.
        eligibility: of users and items.
    """
    num_users, width = scores.shape
    size, group = np.uint64(state.score.shape[1]), np.uint64(GROUP)
    for user in range(num_users):
        restricted = eligibility.denied.shape[0] > 0 or state.place[user] < eligibility.pair_end[user]
        restricted = restricted or eligibility.full.shape[1] > 0
        row, largest = scores[user], maxima[user]
        kept_score, kept_item = state.score[user], state.item[user]
        threshold, filled = state.threshold[user], np.uint64(state.filled[user])
        for number in range(np.uint64(maxima.shape[1])):
            if not largest[number] > threshold:
                continue
            if filled + group > size:
                threshold = _settle(kept_score, kept_item, np.int64(filled), k)
                filled = np.uint64(k)
            last, begin = filled, number * group
            for place in range(begin, min(begin + group, np.uint64(width))):
                # without a branch, because nobody foresees which items get a place
                kept_score[last], kept_item[last] = row[place], np.int32(first + place)
                last += np.uint64(row[place] > threshold)
            if restricted:
                last = np.uint64(_keep_eligible(user, np.int64(filled), np.int64(last), state, eligibility))
            filled = last
        state.threshold[user], state.filled[user] = threshold, filled


@njit(nogil=True, cache=True)
def _keep_eligible(user: int, begin: int, end: int, state: ScanState, eligibility: Eligibility) -> int:
    """Take out of entries begin to end of a user those that are not for the user; returns where they end then."""
    kept_score, kept_item = state.score[user], state.item[user]
    kept, kind = begin, eligibility.class_of[user]
    pair, pair_end = state.place[user], eligibility.pair_end[user]
    for entry in range(begin, end):
        item, score = kept_item[entry], kept_score[entry]
        rules, out = np.uint32(0), False
        if eligibility.denied.shape[0]:
            rules = eligibility.denied[kind, item]
            out = bool(rules > 0)
        while pair < pair_end and eligibility.pair_item[pair] < item:
            pair += 1
        if pair < pair_end and eligibility.pair_item[pair] == item:
            rules |= eligibility.pair_rules[pair]
            out = True
        if eligibility.full.shape[1] and eligibility.group[item] >= 0:
            out = out or eligibility.full[user, eligibility.group[item]]
        if out:
            _note(state.kept_out[user], rules, score)
        else:
            kept_score[kept], kept_item[kept] = score, item
            kept += 1
    state.place[user] = pair
    return kept


@njit(nogil=True, cache=True)
def _note(kept_out: np.ndarray, rules: Any, score: np.float32) -> None:
    """Raise what each of some rules kept out to a score."""
    rule = 0
    while rules:
        if rules & np.uint32(1):
            kept_out[rule] = max(kept_out[rule], score)
        rules >>= np.uint32(1)
        rule += 1


@njit(nogil=True, cache=True, fastmath=True)
def sum_exponentials(scores: np.ndarray, top: np.ndarray, sums: np.ndarray) -> None:
    """sums [B, N] of exp(score - top) over N portions of scores [B, T], whose largest scores are top [B, N].

    With 2 to the power of the fraction as a polynomial, to 1e-7, and of the whole number as the exponent of a float: a
    third of the time that calls of a library take.
    """
    for user in range(scores.shape[0]):
        for portion in range(top.shape[1]):
            begin = portion * NORMALISED_AT_A_TIME
            row = scores[user, begin : begin + NORMALISED_AT_A_TIME]
            largest, total = top[user, portion], np.float32(0)
            for place in range(len(row)):
                power = max((row[place] - largest) * _LOG2_E, _LEAST_POWER)
                whole = np.floor(power)
                x = power - whole
                fraction = _P0 + x * (_P1 + x * (_P2 + x * (_P3 + x * (_P4 + x * _P5))))
                bits = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
                total += fraction * bits.view(np.float32)
            sums[user, portion] = total


@njit(nogil=True, cache=True)
def _settle(score: np.ndarray, item: np.ndarray, count: int, k: int) -> Any:
    """Keep the K best of the first `count` entries, of equal ones the earlier, in their order; returns the K-th."""
    worst = _largest(score[:count].copy(), np.uint64(count - k))
    room = np.int64(k)
    for place in range(np.uint64(count)):
        room -= np.int64(score[place] > worst)
    kept = np.uint64(0)
    for place in range(np.uint64(count)):
        ties = score[place] == worst and room > 0
        takes = score[place] > worst or ties
        room -= np.int64(ties)
        score[kept], item[kept] = score[place], item[place]
        kept += np.uint64(takes)
    return worst


@njit(nogil=True, cache=True)
def _largest(values: np.ndarray, rank: Any) -> Any:
    """What stands at a place of values once they are sorted; they are moved about (Hoare 1961, "Find")."""
    one = np.uint64(1)
    low, high = np.uint64(0), np.uint64(len(values) - 1)
    while low < high:
        pivot = values[(low + high) >> one]
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += one
            while values[right] > pivot:
                right -= one
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += one
                if right == 0:
                    break
                right -= one
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return values[rank]


@njit(nogil=True, cache=True)
def finish_scan(state: ScanState, k: int) -> None:
    """Leave just the K best of each user in the state, still in the order of their indices."""
    for user in range(len(state.filled)):
        count = state.filled[user]
        if count > k:
            state.threshold[user] = _settle(state.score[user], state.item[user], count, k)
            count = k
        state.filled[user] = count
        state.score[user, count:k] = -np.inf
        state.item[user, count:k] = 0


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
