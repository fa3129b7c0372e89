"""What a scan does to a tile of scores, compiled: which items get a place, and what is not for a user.

Scores of a portion of the items, which fit the fastest cache, are looked at once for the best of each group and once
for the sum of their exponentials; then a group whose best does not beat what the user's K-th place holds by then costs
one comparison. What is not eligible is found only among items that would get a place, and there it is noted which rule
kept it out. Invariant: ties go to the smaller item index, because tiles come in the order of the items.

Largest values are found by the bits of floats as integers: compilers make vector instructions of that, and not of
comparisons of floats. Indices are unsigned: for signed ones numba looks at each access whether it counts from the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from data_io.schema import FIRST_INDEX

PORTION = 1024
"""Items whose scores are summed up together, whatever the tiles, so that sums do not depend on them."""
GROUP = 64
"""Items whose best is looked at first."""
_LEAST_KEY = np.int32(-(2**31))
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
    """[B] float32, what an item must beat: the K-th place, or a guess below it."""
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


def start_scan(threshold: np.ndarray, k: int, num_rules: int, begin: np.ndarray) -> ScanState:
    """The state before the first tile.

    Args:
        threshold: [B] float32 that items must beat from the start.
        k: K.
        num_rules: R.
        begin: [B], where the pairs of each user begin.
    """
    num_users, size = len(threshold), max(2 * k, k + 3 * GROUP)
    return ScanState(
        score=np.empty((num_users, size), np.float32),
        item=np.empty((num_users, size), np.int32),
        filled=np.zeros(num_users, np.int64),
        threshold=threshold.copy(),
        kept_out=np.full((num_users, num_rules), -np.inf, np.float32),
        place=begin.copy(),
    )


@njit(nogil=True, cache=True)
def scan_tile(
    scores: np.ndarray,
    first: int,
    k: int,
    state: ScanState,
    eligibility: Eligibility,
    tops: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Take a tile of scores into the state, and sum their exponentials.

    Args:
        scores: [B, T] float32, of items first to first + T; NaN and minus infinity never get a place. What rules add is
            added to them once they are summed.
        first: after those of all tiles before.
        k: K.
        state: changed.
        eligibility: of users and items.
        tops: [B, N] for the largest score of each portion of the catalogue.
        sums: [B, N] for the sum of exp(score - top) over each.
    """
    all_bits = scores.view(np.int32)
    maxima = np.empty(PORTION // GROUP, np.int32)
    for user in range(scores.shape[0]):
        for begin in range(0, scores.shape[1], PORTION):
            portion = (first - FIRST_INDEX + begin) // PORTION
            row, bits = scores[user, begin : begin + PORTION], all_bits[user, begin : begin + PORTION]
            top = _as_float(_group_maxima(bits, maxima))
            tops[user, portion], sums[user, portion] = top, _sum_exponentials(row, top)
            if eligibility.boost.shape[0]:
                kind, place = eligibility.class_of[user], first + begin
                row += eligibility.boost[kind, place : place + len(row)]
                _group_maxima(bits, maxima)
            _scan_portion(row, maxima, first + begin, k, user, state, eligibility)


@njit(nogil=True, cache=True)
def _scan_portion(
    row: np.ndarray, maxima: np.ndarray, first: int, k: int, user: int, state: ScanState, eligibility: Eligibility
) -> None:
    """Take the scores of a portion of the items into the state of a user, by the keys of the best of each group."""
    size, group, width = np.uint64(state.score.shape[1]), np.uint64(GROUP), np.uint64(len(row))
    restricted = eligibility.denied.shape[0] > 0 or state.place[user] < eligibility.pair_end[user]
    restricted = restricted or eligibility.full.shape[1] > 0
    kept_score, kept_item = state.score[user], state.item[user]
    threshold, filled = state.threshold[user], np.uint64(state.filled[user])
    least = _key(np.float32(threshold).view(np.int32))
    for number in range(np.uint64((len(row) + GROUP - 1) // GROUP)):
        if maxima[number] <= least:
            continue
        if filled + group > size:
            threshold = _settle(kept_score, kept_item, np.int64(filled), k)
            filled, least = np.uint64(k), _key(np.float32(threshold).view(np.int32))
        begin = number * group
        last = filled
        count, at = np.int32(0), np.int32(0)
        if begin + group <= width:
            for place in range(group):
                beats = np.int32(row[begin + place] > threshold)
                count += beats
                at += beats * np.int32(place)
        if count == 1:  # of most groups
            place = begin + np.uint64(at)
            kept_score[last], kept_item[last] = row[place], np.int32(first + place)
            last += np.uint64(1)
        else:
            for place in range(begin, min(begin + group, width)):
                # without a branch, because nobody foresees which items get a place
                kept_score[last], kept_item[last] = row[place], np.int32(first + place)
                last += np.uint64(row[place] > threshold)
        if restricted:
            last = np.uint64(_keep_eligible(user, np.int64(filled), np.int64(last), state, eligibility))
        filled = last
    state.threshold[user], state.filled[user] = threshold, filled


@njit(nogil=True, cache=True)
def largest_of_groups(scores: np.ndarray, largest: np.ndarray) -> None:
    """largest [B, N] of each group of neighbouring scores [B, T], of which the last may be a part."""
    bits = scores.view(np.int32)
    maxima = np.empty(largest.shape[1], np.int32)
    for user in range(scores.shape[0]):
        _group_maxima(bits[user], maxima)
        for group in range(len(maxima)):
            largest[user, group] = _as_float(maxima[group])


@njit(nogil=True, cache=True)
def _group_maxima(bits: np.ndarray, maxima: np.ndarray) -> Any:
    """Keys of the largest score of each group, from the bits of scores [T]; returns the largest."""
    width, group = np.uint64(len(bits)), np.uint64(GROUP)
    num_whole, top = width // group, _LEAST_KEY
    for number in range(num_whole):
        largest = _LEAST_KEY
        for place in range(number * group, number * group + group):
            largest = max(largest, _key(bits[place]))
        maxima[number] = largest
        top = max(top, largest)
    if num_whole * group < width:
        largest = _LEAST_KEY
        for place in range(num_whole * group, width):
            largest = max(largest, _key(bits[place]))
        maxima[num_whole] = largest
        top = max(top, largest)
    return top


@njit(nogil=True, cache=True)
def _key(bits: Any) -> Any:
    """An integer that is ordered as the float of these bits is; the key of a key is the bits."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(nogil=True, cache=True)
def _as_float(key: Any) -> Any:
    return np.int32(_key(np.int32(key))).view(np.float32)


@njit(nogil=True, cache=True, fastmath=True)
def _sum_exponentials(row: np.ndarray, largest: Any) -> Any:
    """The sum of exp(score - largest) over scores [T].

    With 2 to the power of the fraction as a polynomial, to 1e-7, and of the whole number as the exponent of a float: a
    third of the time that calls of a library take.
    """
    total = np.float32(0)
    for place in range(len(row)):
        power = max((row[place] - largest) * _LOG2_E, _LEAST_POWER)
        whole = np.floor(power)
        x = power - whole
        fraction = _P0 + x * (_P1 + x * (_P2 + x * (_P3 + x * (_P4 + x * _P5))))
        bits = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
        total += fraction * bits.view(np.float32)
    return total


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
