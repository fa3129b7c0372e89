"""Augmentation: what windows show may change, what they are asked stays true."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_io.batch import (
    ACTION_INDEX,
    ELAPSED,
    FEATURES,
    GAP,
    ITEM_INDEX,
    MOMENT,
    PADDING_MASK,
    TARGET_ACTION_INDEX,
    TARGET_ITEM_INDEX,
)
from model.augmentation import (
    augment,
    crop_windows,
    even_shares,
    mask_items,
    one_share_each,
    reorder_events,
)
from model.config import AugmentationSettings
from model.encoder import TensorBatch

TIMES = (GAP, ELAPSED, MOMENT)
HAPPENED = (ITEM_INDEX, ACTION_INDEX)
lengths_of_windows = st.lists(st.integers(0, 9), min_size=1, max_size=5)
shares = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 0.99])
seeds = st.integers(0, 10_000)
each_case = settings(deadline=None, max_examples=40)
Change = Callable[[TensorBatch, Tensor, torch.Generator], TensorBatch]


def windows(lengths: list[int]) -> TensorBatch:
    """Windows whose every event is told from every other: item 10 u + t + 2 of user u, followed by the next one."""
    places = torch.arange(max(*lengths, 1))
    real = places < torch.tensor(lengths)[:, None]
    item = torch.where(real, 10 * torch.arange(len(lengths))[:, None] + places + 2, 0)
    return {
        ITEM_INDEX: item,
        ACTION_INDEX: item * 2,
        GAP: item * 3,
        ELAPSED: item * 5,
        MOMENT: item * 7,
        PADDING_MASK: real,
        TARGET_ITEM_INDEX: torch.where(real, item + 1, 0),
        TARGET_ACTION_INDEX: torch.where(real, 2 * (item + 1), 0),
    }


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(one: TensorBatch, other: TensorBatch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def reordered(batch: TensorBatch, share: Tensor, drawn: torch.Generator) -> TensorBatch:
    return reorder_events(batch, share, drawn)[0]


@each_case
@given(lengths_of_windows, shares, seeds)
def test_a_crop_is_a_contiguous_part_with_its_own_targets(lengths: list[int], share: float, seed: int) -> None:
    batch, share_of = windows(lengths), torch.full((len(lengths),), share, dtype=torch.float64)
    cropped = crop_windows(batch, share_of, generator(seed))
    for row, length in enumerate(lengths):
        kept = int(cropped[PADDING_MASK][row].sum())
        assert kept == max(length - int(share * length), min(length, 1))
        start = int(cropped[ITEM_INDEX][row, 0]) - 10 * row - 2 if kept else 0
        for name, tensor in batch.items():
            assert cropped[name][row, :kept].tolist() == tensor[row, start : start + kept].tolist()
            assert not cropped[name][row, kept:].any(), "padding comes after events"


@each_case
@given(lengths_of_windows, shares, seeds)
def test_a_reordered_window_holds_the_same_events_at_the_same_moments(
    lengths: list[int], share: float, seed: int
) -> None:
    batch, share_of = windows(lengths), torch.full((len(lengths),), share, dtype=torch.float64)
    after, asked = reorder_events(batch, share_of, generator(seed))
    assert all(torch.equal(after[name], batch[name]) for name in batch if name not in HAPPENED)
    assert torch.equal(after[ACTION_INDEX], after[ITEM_INDEX] * 2), "an action stays with its item"
    assert torch.equal(after[ITEM_INDEX].sort(dim=1).values, batch[ITEM_INDEX].sort(dim=1).values)
    for row, length in enumerate(lengths):
        moved = np.flatnonzero((after[ITEM_INDEX][row] != batch[ITEM_INDEX][row]).numpy())
        span = int(share * length)
        assert not len(moved) or moved[-1] - moved[0] < span
        assert not any(asked[row, max(place - 1, 0)] or asked[row, place] for place in moved)
        assert not asked[row, length:].any()
        assert int(asked[row].sum()) >= length - (span + 1 if span > 1 else 0)


@each_case
@given(lengths_of_windows, shares, seeds)
def test_masked_items_are_unknown_and_all_else_stays(lengths: list[int], share: float, seed: int) -> None:
    batch, share_of = windows(lengths), torch.full((len(lengths),), share, dtype=torch.float64)
    masked = mask_items(batch, share_of, generator(seed))
    assert equal(masked | {ITEM_INDEX: batch[ITEM_INDEX]}, batch)
    changed = masked[ITEM_INDEX] != batch[ITEM_INDEX]
    assert (masked[ITEM_INDEX][changed] == 1).all()
    assert not (changed & ~batch[PADDING_MASK]).any()


@each_case
@given(lengths_of_windows, shares, shares, shares, seeds)
def test_what_is_asked_always_followed_what_is_shown(
    lengths: list[int], crop: float, mask: float, reorder: float, seed: int
) -> None:
    share_of = even_shares(AugmentationSettings(crop=crop, mask=mask, reorder=reorder), len(lengths))
    changed, asked = augment(windows(lengths), share_of, generator(seed))
    shown, real = changed[ITEM_INDEX], changed[PADDING_MASK]
    assert not (asked & ~real).any()
    assert torch.equal(changed[TARGET_ITEM_INDEX] > 0, asked)
    assert torch.equal(changed[TARGET_ACTION_INDEX], 2 * changed[TARGET_ITEM_INDEX])
    known = asked & (shown > 1)
    assert torch.equal(changed[TARGET_ITEM_INDEX][known], shown[known] + 1)
    following = asked[:, :-1] & (shown[:, 1:] > 1)
    assert torch.equal(changed[TARGET_ITEM_INDEX][:, :-1][following], shown[:, 1:][following])
    assert torch.equal(real, real.sort(dim=1, descending=True).values), "events stand before padding"
    assert torch.equal(changed[MOMENT][:, 1:] > changed[MOMENT][:, :-1], real[:, 1:]), "time does not run backwards"


def test_the_same_seed_gives_the_same_windows_and_another_one_others() -> None:
    batch, share_of = windows([9, 7, 5]), even_shares(AugmentationSettings(crop=0.4, mask=0.3, reorder=0.5), 3)
    first, again, other = (augment(batch, share_of, generator(seed)).batch for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("change", [crop_windows, mask_items, reordered])
def test_no_share_changes_nothing(change: Change) -> None:
    batch = windows([4, 0, 9])
    assert equal(change(batch, torch.zeros(3, dtype=torch.float64), generator(0)), batch)


@pytest.mark.parametrize("change", [crop_windows, mask_items, reordered])
def test_a_share_is_that_of_its_own_window(change: Change) -> None:
    batch = windows([9, 9, 9])
    changed = change(batch, torch.tensor([0.0, 0.9, 0.0], dtype=torch.float64), generator(0))
    differs = (changed[ITEM_INDEX] != batch[ITEM_INDEX]).any(dim=1)
    assert differs.tolist() == [False, True, False]


def test_every_place_is_cut_from_and_every_item_masked_about_equally_often() -> None:
    batch = windows([5] * 3_000)
    half = torch.full((3_000,), 0.4, dtype=torch.float64)
    starts = (crop_windows(batch, half, generator(0))[MOMENT][:, 0] - batch[MOMENT][:, 0]) // 7
    np.testing.assert_allclose(torch.bincount(starts, minlength=3).numpy() / 3_000, 1 / 3, atol=0.04)
    masked = (mask_items(batch, half, generator(0))[ITEM_INDEX] == 1).double().mean(dim=0)
    np.testing.assert_allclose(masked.numpy(), 0.4, atol=0.04)


def test_one_change_is_drawn_for_each_window_among_those_with_a_share() -> None:
    drawn = torch.stack(one_share_each(AugmentationSettings(crop=0.4, reorder=0.2), 200, generator(0)))
    assert ((drawn > 0).sum(dim=0) == 1).all()
    assert sorted(set(drawn[0].tolist())) == [0.0, 0.4]
    assert not drawn[1].any()
    assert 60 < int((drawn[2] == 0.2).sum()) < 140


def test_what_belongs_to_the_user_and_to_no_event_stays() -> None:
    features = torch.arange(8.0).view(2, 4)
    cropped = crop_windows(windows([4, 4]) | {FEATURES: features}, torch.full((2,), 0.5), generator(0))
    assert torch.equal(cropped[FEATURES], features)
