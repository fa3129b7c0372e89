"""Augmentation: windows changed at random, in what they show and never in what they are asked.

Pure functions of a batch and a generator, one pass for all windows. Invariants: events stand before padding; a target
stays only where the event that it names followed what is shown at its place; equal generators give equal windows.
Source of the three changes: Xie et al. 2022, "CL4SRec", arXiv 2010.14395, section 3.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data_io.batch import (
    ACTION_INDEX,
    COLUMN,
    ITEM_INDEX,
    PADDING_MASK,
    PER_EXAMPLE,
    TARGET_ACTION_INDEX,
    TARGET_ITEM_INDEX,
)
from data_io.schema import FIRST_INDEX, PADDING_INDEX, UNKNOWN_INDEX
from model.config import AugmentationSettings
from model.encoder import TensorBatch


class Shares(NamedTuple):
    """How far each window is changed: [B] shares, see `AugmentationSettings`."""

    crop: Tensor
    mask: Tensor
    reorder: Tensor


class Augmented(NamedTuple):
    """A changed batch."""

    batch: TensorBatch
    """As before, with targets only where `asked`."""
    asked: Tensor
    """[B, T] True at events after which the true next event comes."""


def even_shares(settings: AugmentationSettings, num_windows: int) -> Shares:
    """Every change, as far as the settings say, for each of B windows."""
    return Shares(*torch.tensor(_shares(settings), dtype=torch.float64)[:, None].expand(3, num_windows))


def one_share_each(settings: AugmentationSettings, num_windows: int, generator: torch.Generator) -> Shares:
    """One change for each of B windows, drawn evenly among those that the settings have a share of."""
    shares = torch.tensor(_shares(settings), dtype=torch.float64)
    changes = shares.nonzero().squeeze(1)
    drawn = changes[torch.randint(len(changes), (num_windows,), generator=generator)]
    return Shares(*torch.where(drawn == torch.arange(3)[:, None], shares[:, None], 0.0))


def augment(batch: TensorBatch, shares: Shares, generator: torch.Generator) -> Augmented:
    """The batch with its windows cropped, then reordered, then masked."""
    batch = crop_windows(batch, shares.crop, generator)
    batch, asked = reorder_events(batch, shares.reorder, generator)
    batch = mask_items(batch, shares.mask, generator)
    targets = [name for name in (TARGET_ITEM_INDEX, TARGET_ACTION_INDEX) if name in batch]
    return Augmented(batch | {name: torch.where(asked, batch[name], PADDING_INDEX) for name in targets}, asked)


def crop_windows(batch: TensorBatch, share: Tensor, generator: torch.Generator) -> TensorBatch:
    """The batch with a random contiguous part of each window, from its first place on; one event at least is left.

    Gaps, elapsed times and targets stay true: they always tell of events beside a window too.
    """
    real = batch[PADDING_MASK]
    lengths = real.sum(dim=1)
    kept = torch.maximum(lengths - _part(share, lengths), lengths.clamp(max=1))
    start = _draw_start(lengths - kept, generator)
    places = torch.arange(real.shape[1], device=real.device)
    inside = places < kept[:, None]
    source = torch.where(inside, places + start[:, None], 0)
    row = torch.arange(len(real), device=real.device)[:, None]
    return {
        name: tensor if name in PER_EXAMPLE else _where(inside, tensor[row, source]) for name, tensor in batch.items()
    }


def mask_items(batch: TensorBatch, share: Tensor, generator: torch.Generator) -> TensorBatch:
    """The batch with some known items shown as unknown ones, each with the probability of its window's share [B]."""
    items = batch[ITEM_INDEX]
    drawn = torch.rand(items.shape, dtype=torch.float64, generator=generator) < share[:, None]
    return batch | {ITEM_INDEX: items.masked_fill(drawn.to(items.device) & (items >= FIRST_INDEX), UNKNOWN_INDEX)}


def reorder_events(batch: TensorBatch, share: Tensor, generator: torch.Generator) -> tuple[TensorBatch, Tensor]:
    """The batch with what happened in one random span of each window shuffled over the moments of that span.

    Returns:
        The batch, its targets untouched, and [B, T] True at real events that may be asked what comes next. Not so those
        of the span and the one before it: what follows there is shown elsewhere, or followed another event.
    """
    real = batch[PADDING_MASK]
    lengths = real.sum(dim=1)
    span = _part(share, lengths)
    first = _draw_start(lengths - span, generator)[:, None]
    end = torch.where(span > 1, first[:, 0] + span, 0)[:, None]
    places = torch.arange(real.shape[1], device=real.device)
    drawn = torch.rand(real.shape, dtype=torch.float64, generator=generator).to(real.device)
    shuffled = torch.where((places >= first) & (places < end), first + drawn * (end - first), places)
    order = shuffled.argsort(dim=1, stable=True)
    row = torch.arange(len(real), device=real.device)[:, None]
    moving = [name for name in batch if name in (ITEM_INDEX, ACTION_INDEX) or name.startswith(COLUMN)]
    moved = {name: batch[name][row, order] for name in moving}
    return batch | moved, real & ~((places >= first - 1) & (places < end))


def _where(inside: Tensor, tensor: Tensor) -> Tensor:
    """A tensor [B, T, ...] where `inside` [B, T], else 0."""
    return tensor * inside.view(*inside.shape, *(1 for _ in tensor.shape[2:])).to(tensor.dtype)


def _shares(settings: AugmentationSettings) -> list[float]:
    return [settings.crop, settings.mask, settings.reorder]


def _part(share: Tensor, lengths: Tensor) -> Tensor:
    """[B] a share of lengths, rounded down."""
    return (share.to(lengths.device) * lengths).floor().long()


def _draw_start(most: Tensor, generator: torch.Generator) -> Tensor:
    """[B] a place from 0 to `most` [B], evenly."""
    drawn = torch.rand(len(most), dtype=torch.float64, generator=generator).to(most.device)
    return torch.minimum((drawn * (most + 1)).floor().long(), most)
