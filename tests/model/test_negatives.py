"""Sampled softmax: what is drawn, how it is corrected, and what it comes to."""

import math

import pytest
import torch

from model.config import SampledSoftmax
from model.embedding import ItemTable
from model.negatives import NegativeSampler, sampled_softmax_loss

NUM_ITEMS = 7
COUNTS = torch.tensor([0, 0, 50, 30, 10, 10, 0])


def make_table(size: int = 4) -> ItemTable:
    torch.manual_seed(0)
    table = ItemTable(NUM_ITEMS, size)
    torch.nn.init.normal_(table.weight)
    return table


def full_loss(table: ItemTable, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(states @ table.weight[2:].T, targets - 2, reduction="none")


def draw(
    num_uniform: int, num_in_batch: int, targets: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    sampler = NegativeSampler(SampledSoftmax(num_uniform=num_uniform, num_in_batch=num_in_batch), COUNTS)
    return sampler(targets, torch.Generator().manual_seed(seed))


def test_pool_of_every_item_once_gives_the_full_softmax() -> None:
    table, states, targets = make_table(), torch.randn(5, 4), torch.tensor([2, 3, 4, 5, 6])
    loss = sampled_softmax_loss(states, targets, table, torch.arange(2, NUM_ITEMS), torch.zeros(NUM_ITEMS - 2))
    torch.testing.assert_close(loss, full_loss(table, states, targets))


def test_large_corrected_pool_comes_near_the_full_softmax() -> None:
    table, states, targets = make_table(), torch.randn(5, 4), torch.tensor([2, 3, 4, 5, 6])
    population = torch.repeat_interleave(torch.arange(NUM_ITEMS), COUNTS)
    negatives, log_expected = draw(20_000, 20_000, population)
    loss = sampled_softmax_loss(states, targets, table, negatives, log_expected)
    torch.testing.assert_close(loss, full_loss(table, states, targets), atol=0.05, rtol=0)


def test_loss_of_a_case_by_hand() -> None:
    table = ItemTable(5, 2)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0, 0], [9, 9], [1, 0], [0, 1], [1, 1]]))
    loss = sampled_softmax_loss(
        torch.tensor([[2.0, 1.0]]), torch.tensor([2]), table, torch.tensor([3, 4]), torch.tensor([0.5, 2.0]).log()
    )
    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) / 0.5 + math.exp(3) / 2))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_target_is_never_its_own_negative() -> None:
    table, states, targets = make_table(), torch.randn(1, 4), torch.tensor([4])
    without = sampled_softmax_loss(states, targets, table, torch.tensor([2, 3]), torch.zeros(2))
    with_target = sampled_softmax_loss(states, targets, table, torch.tensor([4, 2, 4, 3]), torch.zeros(4))
    torch.testing.assert_close(with_target, without)


def test_pool_of_nothing_but_the_target_gives_no_loss_and_finite_gradient() -> None:
    table, states = make_table(), torch.randn(2, 4, requires_grad=True)
    loss = sampled_softmax_loss(states, torch.tensor([4, 4]), table, torch.tensor([4, 4, 4]), torch.zeros(3))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(2))
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert table.weight.grad is not None
    assert table.weight.grad.isfinite().all()


def test_items_are_drawn_as_often_as_the_correction_says() -> None:
    population = torch.repeat_interleave(torch.arange(NUM_ITEMS), COUNTS)
    negatives, log_expected = draw(20_000, 10_000, population)
    drawn = torch.bincount(negatives, minlength=NUM_ITEMS)
    expected = 20_000 / 5 + 10_000 * COUNTS / COUNTS.sum()
    assert (drawn[:2] == 0).all(), "padding and unknown are no items"
    torch.testing.assert_close(drawn[2:].float(), expected[2:], rtol=0.05, atol=0)
    torch.testing.assert_close(log_expected, expected[negatives].log())


@pytest.mark.parametrize("num_in_batch", [0, 6])
def test_batch_without_targets_has_uniform_negatives_only(num_in_batch: int) -> None:
    negatives, log_expected = draw(10, num_in_batch, torch.zeros(0, dtype=torch.int64))
    assert len(negatives) == 10
    torch.testing.assert_close(log_expected, torch.full((10,), math.log(10 / 5)))


def test_log_that_counted_nothing_still_has_a_finite_correction() -> None:
    sampler = NegativeSampler(SampledSoftmax(num_uniform=3, num_in_batch=3), torch.zeros(NUM_ITEMS))
    _, log_expected = sampler(torch.tensor([2, 3]), torch.Generator().manual_seed(0))
    assert log_expected.isfinite().all()


def test_seed_fixes_what_is_drawn() -> None:
    targets = torch.tensor([2, 3, 5])
    assert torch.equal(draw(20, 20, targets)[0], draw(20, 20, targets)[0])
    assert not torch.equal(draw(20, 20, targets)[0], draw(20, 20, targets, seed=1)[0])
