"""HSTU against a loop over its equations, and what it knows of time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_io.batch import time_bucket
from model.hstu import HstuBlock, time_apart


def aggregate_slowly(block: HstuBlock, states: torch.Tensor, real: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """[T, D] of one example, one pair of events and one head at a time (eq. 1 to 3 of the paper)."""
    length, width = states.shape
    gate, query, key, value = F.silu(block.project_in(block.norm(states))).split(width, dim=1)
    rows = []
    for place in range(length):
        total = torch.zeros(width)
        for other in range(place + 1 if block.causal else length):
            if not real[other]:
                continue
            bucket = int(time_bucket(np.abs((moment[place] - moment[other]).numpy()) / 1e6))
            for head in range(block.num_heads):
                part = slice(head * width // block.num_heads, (head + 1) * width // block.num_heads)
                bias = block.place_bias.weight[place - other + block.length, head]
                bias = bias + block.time_bias.weight[bucket, head]
                weight = F.silu(query[place, part] @ key[other, part] + bias) / block.length
                total[part] += weight * value[other, part]
        rows.append(total)
    return states + block.project_out(block.attended_norm(torch.stack(rows)) * gate)


@pytest.mark.parametrize("causal", [True, False])
def test_layer_equals_a_naive_loop(causal: bool) -> None:
    torch.manual_seed(0)
    block = HstuBlock(8, 2, 6, 0.0, causal=causal)
    states, real = torch.randn(1, 5, 8), torch.tensor([[True, True, True, True, False]])
    moment = torch.tensor([[0, 3_000_000, 3_000_000, 90_000_000_000, 0]])
    found = block(states, real, moment)[0]
    torch.testing.assert_close(found[:4], aggregate_slowly(block, states[0], real[0], moment[0])[:4])


def test_time_apart_is_the_time_bucket_of_the_difference() -> None:
    moment = torch.tensor([[0, 400_000, 1_000_000, 3_600_000_000, 10**15]])
    expected = time_bucket(np.abs(moment[0].numpy()[:, None] - moment[0].numpy()[None, :]) / 1e6)
    assert time_apart(moment)[0].tolist() == expected.tolist()


def test_when_things_happened_matters() -> None:
    torch.manual_seed(0)
    block = HstuBlock(8, 2, 6, 0.0, causal=True)
    states, real = torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    soon, late = torch.tensor([[0, 1, 2, 3]]) * 1_000_000, torch.tensor([[0, 1, 2, 3]]) * 10**12
    assert not torch.allclose(block(states, real, soon), block(states, real, late))
