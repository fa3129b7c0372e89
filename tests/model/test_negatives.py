"""Negatives: what is drawn, and that a corrected pool stands for the catalogue."""

import math

import pytest
import torch

from model.losses import Correction, catalogue_loss, log_partition, sampled_softmax_loss
from model.negatives import Negatives, NegativeSampler

NUM_ITEMS = 7
COUNTS = torch.tensor([0, 0, 50, 30, 10, 10, 0])
POPULATION = torch.repeat_interleave(torch.arange(NUM_ITEMS), COUNTS)


def draw(num_uniform: int, num_in_batch: int, targets: torch.Tensor, seed: int = 0) -> Negatives:
    return NegativeSampler(num_uniform, num_in_batch, COUNTS)(targets, torch.Generator().manual_seed(seed))


def make_weight(size: int = 4) -> torch.Tensor:
    return torch.randn(NUM_ITEMS, size, generator=torch.Generator().manual_seed(0))


def test_items_are_drawn_as_often_as_the_correction_says() -> None:
    pool = draw(20_000, 10_000, POPULATION)
    drawn = torch.bincount(pool.items, minlength=NUM_ITEMS)
    expected = 20_000 / 5 + 10_000 * 0.99 * COUNTS / COUNTS.sum()
    assert (drawn[:2] == 0).all(), "padding and unknown are no items"
    torch.testing.assert_close(drawn[2:].float(), expected[2:], rtol=0.05, atol=0)
    torch.testing.assert_close(pool.log_expected, expected[pool.items].log())


def test_large_corrected_pool_gives_loss_and_gradient_near_those_of_the_full_softmax() -> None:
    states, targets = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 3, 4, 5, 6])
    pool = draw(20_000, 20_000, POPULATION)

    def sampled(weight: torch.Tensor) -> torch.Tensor:
        correction = Correction(pool.items, targets, pool.log_expected)
        return sampled_softmax_loss(states, weight[targets], weight[pool.items], correction, pool.num_uniform, 0.1)

    weights = [make_weight().requires_grad_(), make_weight().requires_grad_()]
    found = [catalogue_loss(states, weights[0], targets, 0.1), sampled(weights[1])]
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0)
    of_weights = [torch.autograd.grad(loss.sum(), weight)[0] for loss, weight in zip(found, weights, strict=True)]
    torch.testing.assert_close(of_weights[1], of_weights[0], atol=0.05, rtol=0)


@pytest.mark.parametrize(("num_uniform", "num_in_batch", "num_targets"), [(2, 0, 3), (1, 3, 1), (1, 3, 2), (2, 6, 4)])
@pytest.mark.parametrize("target", [2, 5, 6])
def test_small_pools_estimate_the_sum_over_other_items_without_bias(
    num_uniform: int, num_in_batch: int, num_targets: int, target: int
) -> None:
    """Also where a batch has few targets, so that many draws from it are the position's own."""
    weight, state = make_weight(), torch.tensor([[0.5, -0.5, 1.0, 0.2]])
    sampler, generator = NegativeSampler(num_uniform, num_in_batch, COUNTS), torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(1_000):
        others = POPULATION[torch.randint(len(POPULATION), (num_targets - 1,), generator=generator)]
        targets = torch.cat([torch.tensor([target]), others])
        pool = sampler(targets, generator)
        correction = Correction(pool.items, targets[:1], pool.log_expected)
        estimates.append(log_partition(state, weight[pool.items], correction=correction).exp())
    found = torch.cat(estimates)
    exact = sum(float((state @ weight[item]).exp()) for item in range(2, NUM_ITEMS) if item != target)
    standard_error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - exact) < 4 * standard_error


@pytest.mark.parametrize("num_in_batch", [0, 6])
def test_batch_without_targets_has_uniform_negatives_only(num_in_batch: int) -> None:
    pool = draw(10, num_in_batch, torch.zeros(0, dtype=torch.int64))
    assert len(pool.items) == 10
    torch.testing.assert_close(pool.log_expected, torch.full((10,), math.log(10 / 5)))


def test_log_that_counted_nothing_still_has_a_finite_correction() -> None:
    sampler = NegativeSampler(3, 3, torch.zeros(NUM_ITEMS))
    assert sampler(torch.tensor([2, 3]), torch.Generator().manual_seed(0)).log_expected.isfinite().all()


def test_seed_fixes_what_is_drawn() -> None:
    targets = torch.tensor([2, 3, 5])
    assert torch.equal(draw(20, 20, targets).items, draw(20, 20, targets).items)
    assert not torch.equal(draw(20, 20, targets).items, draw(20, 20, targets, seed=1).items)
