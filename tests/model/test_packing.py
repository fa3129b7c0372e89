"""Packed batches against padded ones: the same states and gradients, whatever the lengths."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from model.encoder import ClickformerEncoder, TensorBatch, event_inputs
from model.engine import to_tensors
from model.packing import can_pack, make_packing

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"attention": "bidirectional"},
    "ligr": {"block": "ligr"},
    "learned": {"positions": "learned"},
    "bidirectional learned": {"positions": "learned", "attention": "bidirectional", "block": "ligr"},
}
every_network = pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)


@contextmanager
def packed() -> Iterator[mock.Mock]:
    """Pack whatever the device."""
    with mock.patch("model.encoder.can_pack", return_value=True) as asked:
        yield asked


def real_states(encoder: ClickformerEncoder, batch: TensorBatch) -> Tensor:
    """States [E, D] of real events."""
    return encoder(**event_inputs(batch))[batch["padding_mask"]]


def gradients(encoder: ClickformerEncoder, batch: TensorBatch) -> list[Tensor]:
    encoder.zero_grad()
    states = real_states(encoder, batch)
    direction = torch.linspace(-1, 1, states.shape[1], device=states.device)
    (states * direction).sum().backward()
    return [weight.grad.cpu().clone() for weight in encoder.parameters() if weight.grad is not None]


@every_network
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_packing_changes_no_state_and_no_gradient(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any], lengths: list[int], seed: int
) -> None:
    encoder, batch = make_encoder(**fields).double(), to_tensors(make_batch(*lengths, seed=seed), CPU)
    expected, slopes = real_states(encoder, batch), gradients(encoder, batch)
    with packed():
        torch.testing.assert_close(real_states(encoder, batch), expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gradients(encoder, batch), slopes, atol=1e-9, rtol=1e-9)


@every_network
@pytest.mark.parametrize("lengths", [(0, 0), (5, 5, 5), (8,), (0, 3)], ids=str)
def test_every_user_is_ranked_alike(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    encoder, batch = make_encoder(**fields), to_tensors(make_batch(*lengths), CPU)
    expected = encoder.rank_items(batch)
    with packed():
        torch.testing.assert_close(encoder.rank_items(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_tiles_are_those_found_by_looking_at_every_pair(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([200, 1, 0, 128, 300, 7, 90, 256])
    mask = torch.arange(300) < lengths[:, None]
    packing = make_packing(mask, causal=causal)
    size = len(packing.places)
    assert size == 1024
    assert packing.mask.shape == (1, 1, size, size)
    by_pairs = create_block_mask(packing.mask.mask_mod, None, None, size, size, device="cpu")
    assert torch.equal(packing.mask.to_dense(), by_pairs.to_dense())
    query, key, value = torch.randn(3, 1, 1, size, 8, generator=generator)
    documents = torch.cat([torch.full((max(int(n), 1),), user) for user, n in enumerate(lengths)])
    visible = documents[:, None] == documents
    visible = visible.tril() if causal else visible
    real = len(documents)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[..., :real, :], key[..., :real, :], value[..., :real, :], attn_mask=visible
    )
    by_tiles = flex_attention(query, key, value, block_mask=packing.mask)
    for found in (by_tiles, packing.attend(query, key, value)):
        torch.testing.assert_close(found[..., :real, :], expected, atol=1e-5, rtol=1e-5)


def test_a_row_comes_back_to_its_places() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    packing = make_packing(mask, causal=True)
    vectors = torch.arange(1.0, 10).view(3, 3, 1)
    row = packing.pack(vectors)
    assert row.shape == (1, 128, 1)
    assert row[0, :5, 0].tolist() == [1, 2, 4, 7, 0]
    assert packing.places[:5].tolist() == [0, 1, 0, 0, 0]
    assert packing.unpack(row, mask.shape)[..., 0].tolist() == [[1, 2, 0], [4, 0, 0], [7, 0, 0]]


@pytest.mark.parametrize("block", ["hstu", "gru"])
def test_blocks_that_need_a_user_in_each_row_stay_padded(make_encoder: Callable, block: str) -> None:
    with packed() as asked:
        encoder = make_encoder(block=block)
        inputs = torch.ones(2, 3, dtype=torch.long)
        encoder(inputs, inputs, inputs, inputs, inputs, inputs.bool())
    asked.assert_not_called()


def test_only_a_cuda_device_with_compilers_and_heads_that_are_not_tiny_packs() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for compilers in (True, False):
        with mock.patch("model.packing._can_compile", return_value=compilers):
            assert [can_pack(cpu, 64), can_pack(cuda, 8), can_pack(cuda, 16)] == [False, False, compilers]


@every_network
def test_bfloat16_stays_near(make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]) -> None:
    encoder, batch = make_encoder(**fields), to_tensors(make_batch(3, 8, 0, 5), CPU)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = real_states(encoder, batch)
        with packed():
            found = real_states(encoder, batch)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_network
def test_the_compiled_kernel_gives_the_states_of_padded_batches(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    encoder = make_encoder(hidden_size=32, sequence_length=200, **fields)
    for lengths in ((3, 200, 0, 65), (5, 5, 5), (128, 128), (200,) * 9):
        batch = to_tensors(make_batch(*lengths), CPU)
        expected, slopes = real_states(encoder.cpu(), batch), gradients(encoder, batch)
        with packed():
            there = {name: tensor.cuda() for name, tensor in batch.items()}
            torch.testing.assert_close(real_states(encoder.cuda(), there).cpu(), expected, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(gradients(encoder, there), slopes, atol=1e-2, rtol=1e-2)
