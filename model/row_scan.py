"""The scan on a GPU: whole rows of scores in two stages, the maxima of groups of items first.

What `model.scan` gives, of plain tensor operations. Invariant: the result is exact, and ties go to the smaller item
index.
"""

import numpy as np
import torch
from torch import Tensor

from data_io.schema import FIRST_INDEX
from model.eligibility import ItemRules, Personal, Scanned, concatenate_scanned
from model.topk import top_k

ROWS_BYTES = 2**31
"""Scores in memory at once; masks take about as much again."""


def scan_on_gpu(users: Tensor, items: Tensor, k: int, personal: Personal, rules: ItemRules, group: int) -> Scanned:
    """The K best eligible items of each user; arguments as of `scan_on_cpu`, and the items of a group."""
    most = max(ROWS_BYTES // (4 * len(items)), 1)
    parts = []
    for first in range(0, len(users), most):
        last = min(first + most, len(users))
        parts.append(_scan_rows(users[first:last], items, k, personal.part(first, last), rules, group))
    return concatenate_scanned(parts)


def _scan_rows(users: Tensor, items: Tensor, k: int, personal: Personal, rules: ItemRules, group: int) -> Scanned:
    scores = users @ items.T
    scores[:, :FIRST_INDEX] = -torch.inf
    normaliser = scores.logsumexp(dim=1)
    kinds, pairs = _on(users, personal.class_of), personal.pairs
    if len(rules.boost):
        scores += _on(users, rules.boost)[kinds]
    kept_out = scores.new_full((len(users), rules.num_rules), -torch.inf)
    denied = _on(users, rules.denied.view(np.int32))[kinds] if len(rules.denied) else None
    if denied is not None:
        _note(kept_out, scores, denied)
    if len(pairs.row):
        row, item, bits = (_on(users, column) for column in (pairs.row, pairs.item, pairs.rules.view(np.int32)))
        of_pairs = scores[row, item.long()]
        for rule in range(rules.num_rules):
            has_rule = (bits >> rule) & 1 == 1
            kept_out[:, rule].scatter_reduce_(0, row[has_rule], of_pairs[has_rule], "amax")
        scores[row, item.long()] = -torch.inf
    if denied is not None:
        scores.masked_fill_(denied.ne(0), -torch.inf)
    if personal.full.shape[1]:
        nowhere = np.zeros((len(users), 1), bool)  # items without a group look up the last column
        full = _on(users, np.concatenate([personal.full, nowhere], axis=1))
        scores.masked_fill_(full[:, _on(users, rules.group).long()], -torch.inf)
    score, index = two_stage_top_k(scores, k, group)
    by_index = index.masked_fill(score.isneginf(), scores.shape[1]).argsort(dim=1)
    score, index = score.gather(1, by_index), index.gather(1, by_index)
    return Scanned(
        score=score.cpu().numpy(),
        item=index.masked_fill(score.isneginf(), 0).int().cpu().numpy(),
        kept_out=kept_out.cpu().numpy(),
        normaliser=normaliser.double().cpu().numpy(),
    )


def _note(kept_out: Tensor, scores: Tensor, rules: Tensor) -> None:
    """Raise kept_out [B, R] to the best of scores [B, V] that each rule keeps out, rules [B, V] being bits."""
    for rule in range(kept_out.shape[1]):
        best = scores.masked_fill((rules >> rule) & 1 == 0, -torch.inf).amax(dim=1)
        kept_out[:, rule] = torch.maximum(kept_out[:, rule], best)


def two_stage_top_k(scores: Tensor, k: int, group: int) -> tuple[Tensor, Tensor]:
    """As `top_k`, exact: the K best items lie in the K groups whose best are the K best of all groups.

    Args:
        scores: [B, V].
        k: K, at most V.
        group: neighbouring items of a group.
    """
    num_groups = -(-scores.shape[1] // group)
    if num_groups <= k:
        return top_k(scores, k)
    padded = torch.nn.functional.pad(scores, (0, num_groups * group - scores.shape[1]), value=-torch.inf)
    grouped = padded.view(len(scores), num_groups, group)
    chosen = top_k(grouped.amax(dim=2), k)[1].sort(dim=1).values
    inside = torch.arange(group, device=scores.device)
    places = (chosen[:, :, None] * group + inside).flatten(1)
    best, where = top_k(padded.gather(1, places), k)
    return best, places.gather(1, where)


def _on(users: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(users.device)
