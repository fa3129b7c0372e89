"""The mean of weights on one process; under every ZeRO stage it is held against plain PyTorch in test_zero."""

import pytest
import torch
from torch import nn

from model.averaging import WeightAverage


def set_weight(layer: nn.Linear, value: float) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)


def test_the_mean_of_first_steps_forgets_faster_and_then_by_the_decay() -> None:
    layer = nn.Linear(1, 1, bias=False)
    set_weight(layer, 8.0)
    average, expected = WeightAverage(layer, 0.5), 8.0
    for step in range(20):
        set_weight(layer, float(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_place():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 19.0


def test_weights_return_bit_by_bit_even_after_an_error() -> None:
    layer = nn.Linear(7, 5)
    average, before = WeightAverage(layer, 0.9), [weights.clone() for weights in layer.parameters()]
    set_weight(layer, 1 / 3)
    before[0] = layer.weight.detach().clone()
    average.update(0)

    def fail() -> None:
        with average.in_place():
            assert not torch.equal(layer.weight, before[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(now, then) for now, then in zip(layer.parameters(), before, strict=True))


def test_frozen_weights_and_a_decay_of_0_keep_nothing() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert WeightAverage(frozen, 0.9).held_means() == []
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, 0.0)
    average.update(0)
    weight = layer.weight.detach().clone()
    with average.in_place():
        assert torch.equal(layer.weight, weight)
    assert average.held_means() == []
