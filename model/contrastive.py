"""Contrast: a window's user is recognised, by a second view of it, among the users of the micro-batch.

Two views of each window differ by one change each (`model.augmentation`); their user vectors shall be nearer to each
other than to those of others (Xie et al. 2022, "CL4SRec", arXiv 2010.14395, eq. 4). Negatives come from the
micro-batch, so unlike other losses this one depends on its size, and two windows of one user in it count as two users.
Items are told apart in the same way: an id by its features. Invariant: a row of padding is neither recognised nor
a negative.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from data_io.batch import ELAPSED, PADDING_MASK
from model.augmentation import augment, one_share_each
from model.config import AugmentationSettings
from model.encoder import TensorBatch

_NEVER = -1e9
"""Score of what does not count: finite, because a row of padding has nothing that counts."""


def make_views(batch: TensorBatch, settings: AugmentationSettings, generator: torch.Generator) -> TensorBatch:
    """Two views of each of B windows, [2 B, T]: all first ones, then all second ones.

    All are asked just after their last event: the time that passed until the next one would be the same in both views
    and give the user away.
    """
    shares = [one_share_each(settings, len(batch[PADDING_MASK]), generator) for _ in range(2)]
    seeds = torch.randint(2**31, (2,), generator=generator).tolist()  # of their own, so that padding changes no crop
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    views = [augment(batch, *view).batch for view in zip(shares, generators, strict=True)]
    both = {name: torch.cat([view[name] for view in views]) for name in batch}
    return both | {ELAPSED: both[PADDING_MASK].to(both[ELAPSED].dtype)}


def contrastive_losses(vectors: Tensor, real: Tensor, temperature: float) -> Tensor:
    """[B] InfoNCE of both views of each user, their mean; 0 where a user is not real.

    Args:
        vectors: [2 B, D] of all first views, then of all second ones.
        real: [B] True at users that have events.
        temperature: what cosines are divided by.
    """
    num_users = len(real)
    own = torch.eye(2 * num_users, dtype=torch.bool, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):  # in bfloat16 cosines would be off by a hundredth
        vectors = F.normalize(vectors.float(), dim=1)
        scores = (vectors @ vectors.T / temperature).masked_fill(own | ~real.repeat(2), _NEVER)
    other_view = torch.arange(2 * num_users, device=vectors.device).roll(num_users)
    losses = F.cross_entropy(scores, other_view, reduction="none")
    return losses.view(2, num_users).mean(dim=0).masked_fill(~real, 0.0)


def alignment_losses(ids: Tensor, features: Tensor, temperature: float) -> Tensor:
    """[N] InfoNCE of items whose ids and features [N, D] shall name each other, the mean of both ways.

    An item without features, or without an id of its own, has loss 0 and is no negative.

    Source:
        Radford et al. 2021, "CLIP", arXiv 2103.00020, figure 3.
    """
    real = ids.any(dim=1) & features.any(dim=1)
    with torch.autocast(ids.device.type, enabled=False):
        scores = F.normalize(ids.float(), dim=1) @ F.normalize(features.float(), dim=1).T / temperature
    scores = scores.masked_fill(~(real & real[:, None]), _NEVER)
    itself = torch.arange(len(ids), device=ids.device)
    one, other = (F.cross_entropy(way, itself, reduction="none") for way in (scores, scores.T))
    return ((one + other) / 2).masked_fill(~real, 0.0)
