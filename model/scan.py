"""The scan on a CPU: one pass over tiles of scores, looked at while they are in the cache.

Invariants: the result is exact, and does not depend on how tiles are cut.
"""

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.eligibility import ItemRules, Personal, Scanned, concatenate_scanned
from model.scan_kernels import (
    GROUP,
    NORMALISED_AT_A_TIME,
    Eligibility,
    add_boosts,
    finish_scan,
    scan_tile,
    start_scan,
    sum_exponentials,
)


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
        tile: users and items whose scores are in memory at once; a multiple of `NORMALISED_AT_A_TIME` items.
    """
    buffer = torch.empty(tile[0] * tile[1])
    parts = []
    for first in range(0, len(users), tile[0]):
        last = min(first + tile[0], len(users))
        part = users[first:last], items, k, personal.part(first, last)
        parts.append(_scan_users(*part, rules, buffer, tile[1]))
    return concatenate_scanned(parts)


def _scan_users(
    users: Tensor, items: Tensor, k: int, personal: Personal, rules: ItemRules, buffer: Tensor, width: int
) -> Scanned:
    pairs = personal.pairs
    bounds = np.searchsorted(pairs.row, np.arange(len(users) + 1))
    state = start_scan(len(users), k, rules.num_rules, bounds[:-1])
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
    logs = []
    for first in range(FIRST_INDEX, len(items), width):
        tile = items[first : first + width]
        scores = buffer[: len(users) * len(tile)].view(len(users), len(tile))
        torch.mm(users, tile.T, out=scores)
        maxima = _maxima(scores, GROUP)
        logs.append(_log_sums(scores, _maxima(maxima, NORMALISED_AT_A_TIME // GROUP)))
        if len(rules.boost):
            add_boosts(scores.numpy(), personal.class_of, rules.boost, first)
            maxima = _maxima(scores, GROUP)
        scan_tile(scores.numpy(), maxima.numpy(), first, k, state, eligibility)
    finish_scan(state, k)
    return Scanned(
        score=state.score[:, :k],
        item=state.item[:, :k],
        kept_out=state.kept_out,
        normaliser=torch.cat(logs, dim=1).logsumexp(dim=1).numpy(),
    )


def _maxima(scores: Tensor, group: int) -> Tensor:
    """[B, N] the largest of each group of neighbouring scores [B, T], of which the last may be a part."""
    whole = scores.shape[1] // group * group
    maxima = scores.new_empty(len(scores), -(-scores.shape[1] // group))
    if whole:
        maxima[:, : whole // group] = scores[:, :whole].unflatten(1, (-1, group)).amax(dim=2)
    if whole < scores.shape[1]:
        maxima[:, -1] = scores[:, whole:].amax(dim=1)
    return maxima


def _log_sums(scores: Tensor, top: Tensor) -> Tensor:
    """[B, N] float64 log of the sum of exponentials of each portion of scores [B, T], whose largest are top [B, N]."""
    sums = torch.empty_like(top)
    sum_exponentials(scores.numpy(), top.numpy(), sums.numpy())
    return top.double() + sums.double().log()
