"""The scan on a CPU: one pass over tiles of scores, looked at while they are in the cache.

A sample of the items tells beforehand what the K best most probably beat, so that few others are ever touched; where it
was wrong, the users are scanned again. Invariants: the result is exact, and does not depend on how tiles are cut.
"""

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.eligibility import ItemRules, Personal, Scanned, concatenate_scanned
from model.scan_kernels import GROUP, PORTION, Eligibility, finish_scan, largest_of_groups, scan_tile, start_scan

_SAMPLED = 48
"""One item of so many is looked at first, for what the K-th best may be, of large catalogues fewer."""
_MOST_SAMPLED = 1 << 15
"""So that a sample's scores take no more memory than a few tiles, whatever the catalogue."""
_DEVIATIONS = 4.0
"""By how many standard deviations the guess is on the safe side."""


def scan_on_cpu(
    users: Tensor, items: Tensor, k: int, personal: Personal, rules: ItemRules, tile: tuple[int, int]
) -> Scanned:
    """The K best eligible items of each user, on one thread.

    Args:
        users: [B, D] float32.
        items: [V, D] float32; padding and unknown are passed over.
        k: K, at least 1.
        personal: what is for each user.
        rules: of the items.
        tile: users and items whose scores are in memory at once; a multiple of `PORTION` items.
    """
    scan = _Scan(items, k, rules, tile)
    firsts = range(0, len(users), tile[0])
    return concatenate_scanned(
        [scan(users[first : first + tile[0]], personal.part(first, first + tile[0])) for first in firsts]
    )


class _Scan:
    """Scans the catalogue for as many users as a tile has."""

    def __init__(self, items: Tensor, k: int, rules: ItemRules, tile: tuple[int, int]) -> None:
        self.items, self.k, self.rules = items, k, rules
        firsts = range(FIRST_INDEX, len(items), tile[1])
        self.tiles = [(first, items[first : first + tile[1]].T) for first in firsts]
        self.buffer = torch.empty(tile[0] * tile[1])
        self.stride = max(_SAMPLED, -(-len(items) // _MOST_SAMPLED))
        self.num_denied = np.count_nonzero(rules.denied, axis=1)

    def __call__(self, users: Tensor, personal: Personal) -> Scanned:
        """Scan for what beats a guess; for users of whom that are fewer than K items, scan for everything."""
        guess = self._guess(users, personal)
        found = self._above(guess, users, personal)
        short = np.flatnonzero(np.isneginf(found.score[:, -1]) & np.isfinite(guess))
        if len(short):
            nothing = np.full(len(short), -np.inf, np.float32)
            again = self._above(nothing, users[torch.from_numpy(short)], personal.take(short))
            for whole, part in zip(found, again, strict=True):
                whole[short] = part
        return found

    def _guess(self, users: Tensor, personal: Personal) -> np.ndarray:
        """[B] float32 what the K-th best eligible item most probably beats, from a sample; minus infinity: no guess.

        Of the K best, and of as many more as are not for the user, a sample holds a number that hardly ever exceeds its
        mean by four standard deviations: so many places down the sample is the guess.
        """
        sample, boost = self.items[FIRST_INDEX :: self.stride], self.rules.boost
        num_groups = -(-len(sample) // GROUP)
        not_eligible = np.bincount(personal.pairs.row, minlength=len(users)).astype(np.float64)
        if len(self.num_denied):
            not_eligible += self.num_denied[personal.class_of]
        mean = (self.k + not_eligible) / self.stride
        places = np.ceil(mean + _DEVIATIONS * np.sqrt(mean)).astype(np.int64)
        if personal.full.shape[1] or places.min() >= num_groups:
            return np.full(len(users), -np.inf, np.float32)
        scores = users @ sample.T
        if len(boost):
            scores += torch.from_numpy(boost[:, FIRST_INDEX :: self.stride][personal.class_of])
        largest = np.empty((len(users), num_groups), np.float32)
        largest_of_groups(scores.numpy(), largest)
        largest.sort(axis=1)
        guess = np.take_along_axis(largest, np.maximum(num_groups - 1 - places, 0)[:, None], axis=1)[:, 0]
        return np.where(places < num_groups, guess, np.float32(-np.inf))

    def _above(self, threshold: np.ndarray, users: Tensor, personal: Personal) -> Scanned:
        """The K best eligible items of each user among those that beat a threshold [B]."""
        pairs, rules = personal.pairs, self.rules
        bounds = np.searchsorted(pairs.row, np.arange(len(users) + 1))
        state = start_scan(threshold, self.k, rules.num_rules, bounds[:-1])
        eligibility = Eligibility(
            class_of=personal.class_of,
            denied=rules.denied,
            boost=rules.boost,
            pair_end=bounds[1:],
            pair_item=pairs.item,
            pair_rules=pairs.rules,
            group=rules.group,
            full=personal.full,
        )
        tops, sums = np.empty((2, len(users), -(-(len(self.items) - FIRST_INDEX) // PORTION)), np.float32)
        for first, tile in self.tiles:
            width = tile.shape[1]
            scores = self.buffer[: len(users) * width].view(len(users), width)
            torch.mm(users, tile, out=scores)
            scan_tile(scores.numpy(), first, self.k, state, eligibility, tops, sums)
        finish_scan(state, self.k)
        return Scanned(
            score=state.score[:, : self.k],
            item=state.item[:, : self.k],
            kept_out=state.kept_out,
            normaliser=_log_of_sums(tops.astype(np.float64) + np.log(sums.astype(np.float64))),
        )


def _log_of_sums(logs: np.ndarray) -> np.ndarray:
    """[B] log of the sum of exponentials of logs [B, N]."""
    top = logs.max(axis=1)
    return top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
