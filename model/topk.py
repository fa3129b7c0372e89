"""Top-K and ranks over the whole catalogue, exact.

Invariant: ties go to the smaller item index, in top-K and in ranks alike, so that figures do not depend on the device
or on the batch.
"""

import numpy as np
import torch
from torch import Tensor


def exclude_items(scores: Tensor, row: np.ndarray, item_index: np.ndarray) -> None:
    """Set scores [B, V] of given (row, item) pairs to minus infinity, in place."""
    place = torch.from_numpy(row).to(scores.device), torch.from_numpy(item_index.astype(np.int64)).to(scores.device)
    scores[place] = float("-inf")


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K best items of each row of scores [B, V]: their scores and indices, best first.

    Rows with fewer than K finite scores end in minus infinity.
    """
    k = min(k, scores.shape[1])
    values, indices = torch.topk(scores, k, dim=1)
    _settle_ties(scores, values, indices)
    by_index = torch.argsort(indices, dim=1)
    values, indices = values.gather(1, by_index), indices.gather(1, by_index)
    by_score = torch.argsort(values, dim=1, descending=True, stable=True)
    return values.gather(1, by_score), indices.gather(1, by_score)


def _settle_ties(scores: Tensor, values: Tensor, indices: Tensor) -> None:
    """Where more items than fit tie for the last places, take those of smaller index: torch.topk takes any."""
    k = values.shape[1]
    last = values[:, -1:]
    rows = torch.nonzero((scores >= last).sum(dim=1) > k)[:, 0]
    if not len(rows):
        return
    some, worst = scores[rows], last[rows]
    above, tied = some > worst, some == worst
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(dim=1) <= room))
    indices[rows] = torch.nonzero(chosen)[:, 1].view(-1, k)
    values[rows] = some.gather(1, indices[rows])


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """[B] rank (from 1) of each row's target [B] among scores [B, V]."""
    own = scores.gather(1, targets[:, None])
    indices = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (indices < targets[:, None]))
    return ahead.sum(dim=1) + 1
