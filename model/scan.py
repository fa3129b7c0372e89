"""The scan on a CPU: one pass over tiles of scores that keeps the best items of each user.

A tile of scores is looked at while it is still in the cache, in groups of items: a group whose best does not beat what
the user's K-th place holds by then costs one comparison an item and no branch. What is not eligible is found only among
items that would get a place, and there it is noted which rule kept it out. Invariants: the result is exact, and ties go
to the smaller item index, because tiles come in the order of the items.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.eligibility import ItemRules, Pairs, Scanned, concatenate_scanned, pairs_of

NORMALISED_AT_A_TIME = 1024
"""Items whose scores are summed up together, whatever the tiles, so that sums do not depend on them."""
GROUP = 64
"""Items that are looked at together."""


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
    """What is for whom; see `model.eligibility`."""

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


def scan_on_cpu(
    users: Tensor, items: Tensor, k: int, class_of: np.ndarray, pairs: Pairs, rules: ItemRules, tile: tuple[int, int]
) -> Scanned:
    """The K best eligible items of each user, on one thread.

    Args:
        users: [B, D] float32.
        items: [V, D] float32; padding and unknown are passed over.
        k: K, at least 1.
        class_of: [B].
        pairs: items that are not for a user.
        rules: of the items.
        tile: users and items whose scores are in memory at once; a multiple of `NORMALISED_AT_A_TIME` items.
    """
    buffer = torch.empty(tile[0] * tile[1])
    parts = []
    for first in range(0, len(users), tile[0]):
        last = min(first + tile[0], len(users))
        own = pairs_of(pairs, first, last)
        parts.append(_scan_users(users[first:last], items, k, class_of[first:last], own, rules, buffer, tile[1]))
    return concatenate_scanned(parts)


def _scan_users(
    users: Tensor,
    items: Tensor,
    k: int,
    class_of: np.ndarray,
    pairs: Pairs,
    rules: ItemRules,
    buffer: Tensor,
    width: int,
) -> Scanned:
    bounds = np.searchsorted(pairs.row, np.arange(len(users) + 1))
    state = _start(len(users), k, rules.num_rules, bounds[:-1])
    eligibility = Eligibility(class_of, rules.denied, rules.boost, bounds[1:], pairs.item, pairs.rules)
    sums = []
    for first in range(FIRST_INDEX, len(items), width):
        tile = items[first : first + width]
        scores = buffer[: len(users) * len(tile)].view(len(users), len(tile))
        torch.mm(users, tile.T, out=scores)
        sums += [part.logsumexp(dim=1) for part in scores.split(NORMALISED_AT_A_TIME, dim=1)]
        _scan_tile(scores.numpy(), first, k, state, eligibility)
    _finish(state, k)
    return Scanned(
        score=state.score[:, :k],
        item=state.item[:, :k],
        kept_out=state.kept_out,
        normaliser=torch.stack(sums).double().logsumexp(dim=0).numpy(),
    )


def _start(num_users: int, k: int, num_rules: int, begin: np.ndarray) -> ScanState:
    """The state before the first tile; `begin` [B] is where the pairs of each user begin."""
    size = max(4 * k, k + 8 * GROUP)
    return ScanState(
        score=np.empty((num_users, size), np.float32),
        item=np.empty((num_users, size), np.int32),
        filled=np.zeros(num_users, np.int64),
        threshold=np.full(num_users, -np.inf, np.float32),
        kept_out=np.full((num_users, num_rules), -np.inf, np.float32),
        place=begin.copy(),
    )


@njit(nogil=True, cache=True)
def _scan_tile(scores: np.ndarray, first: int, k: int, state: ScanState, eligibility: Eligibility) -> None:
    """Take a tile of scores into the state; boosts are added to it in place.

    Args:
        scores: [B, T] float32, of items first to first + T; NaN and minus infinity never get a place.
        first: after those of all tiles before.
        k: K.
        state: changed.
        eligibility: of users and items.
    """
    num_users, width = scores.shape
    size = state.score.shape[1]
    for user in range(num_users):
        row, kind = scores[user], eligibility.class_of[user]
        if eligibility.boost.shape[0]:
            row += eligibility.boost[kind, first : first + width]
        threshold, count = state.threshold[user], state.filled[user]
        kept_score, kept_item = state.score[user], state.item[user]
        for begin in range(0, width, GROUP):
            end = min(begin + GROUP, width)
            if not _any_above(row, begin, end, threshold):
                continue
            if count + GROUP > size:
                threshold = _settle(kept_score, kept_item, count, k)
                count = k
            for place in range(begin, end):
                if not row[place] > threshold:
                    continue
                item = first + place
                if _is_kept_out(user, kind, item, row[place], state, eligibility):
                    continue
                kept_score[count] = row[place]
                kept_item[count] = item
                count += 1
        state.threshold[user], state.filled[user] = threshold, count


@njit(nogil=True, cache=True)
def _any_above(row: np.ndarray, begin: int, end: int, threshold: np.float32) -> bool:
    """Whether a score of a group beats the threshold; of whole groups the compiler makes vector instructions."""
    above = np.int32(0)
    if end - begin == GROUP:
        group = row[begin : begin + GROUP]
        for place in range(GROUP):
            above += np.int32(group[place] > threshold)
    else:
        for place in range(begin, end):
            above += np.int32(row[place] > threshold)
    return bool(above > 0)


@njit(nogil=True, cache=True)
def _is_kept_out(
    user: int,
    kind: int,
    item: int,
    score: np.float32,
    state: ScanState,
    eligibility: Eligibility,
) -> bool:
    """Whether an item is not for a user, with a note of the rules that say so."""
    rules, out = np.uint32(0), False
    if eligibility.denied.shape[0]:
        rules = eligibility.denied[kind, item]
        out = bool(rules > 0)
    place, end = state.place[user], eligibility.pair_end[user]
    while place < end and eligibility.pair_item[place] < item:
        place += 1
    state.place[user] = place
    if place < end and eligibility.pair_item[place] == item:
        rules |= eligibility.pair_rules[place]
        out = True
    rule = 0
    while rules:
        if rules & np.uint32(1):
            state.kept_out[user, rule] = max(state.kept_out[user, rule], score)
        rules >>= np.uint32(1)
        rule += 1
    return out


@njit(nogil=True, cache=True)
def _settle(score: np.ndarray, item: np.ndarray, count: int, k: int) -> np.float32:
    """Keep the K best of the first `count` entries, of equal ones the earlier, in their order; returns the K-th."""
    worst = np.partition(score[:count], count - k)[count - k]
    room = k
    for place in range(count):
        room -= score[place] > worst
    kept = 0
    for place in range(count):
        ties = score[place] == worst
        if score[place] > worst or (ties and room > 0):
            room -= ties
            score[kept], item[kept] = score[place], item[place]
            kept += 1
    return worst


@njit(nogil=True, cache=True)
def _finish(state: ScanState, k: int) -> None:
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
