"""Counts of operations against torch's own counter, which sees every product that runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.flops import StepSize, TrainingCost, peak_flops

LENGTH, USERS, TARGETS = 12, 6, 20


@pytest.mark.parametrize("network", [{}, {"block": "hstu"}, {"block": "ligr"}], ids=str)
def test_a_forward_pass_has_the_products_that_torch_counts(make_encoder: Callable, network: dict[str, Any]) -> None:
    encoder = make_encoder(hidden_size=32, sequence_length=LENGTH, vocabulary_size=102, repeats=False, **network).eval()
    shape = (USERS, LENGTH)
    inputs = {name: torch.ones(shape, dtype=torch.long) for name in ("item_index", "action_index", "gap", "elapsed")}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        states = encoder(**inputs, moment=torch.zeros(shape).long(), padding_mask=torch.ones(shape).bool())
    cost = TrainingCost.of(encoder, None)
    size = StepSize(USERS * LENGTH, USERS * LENGTH, USERS * LENGTH**2, 0)
    # torch counts attention over all pairs of events, of which a causal one needs half
    forward = (cost.of_step(size) + cost.per_pair * size.sum_of_squares) / 3
    assert forward == pytest.approx(counter.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.item_table(states=states[0])
    assert counter.get_total_flops() * 3 == pytest.approx(cost.per_target * LENGTH, rel=0.03)


def test_padding_costs_nothing_and_negatives_are_all_that_a_sampled_target_is_held_against(
    make_encoder: Callable,
) -> None:
    cost = TrainingCost.of(make_encoder(), 33)
    assert cost.of_step(StepSize(10, 10, 50, 4)) == cost.of_step(StepSize(10, 90, 50, 4))
    assert cost.per_target == 3 * 2 * 33 * make_encoder().config.hidden_size


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < peak_flops(torch.device("cpu")) < 1e15
