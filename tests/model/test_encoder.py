"""The encoder: padding, causality, users without events, and tables whose padding row never learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_io.batch import ITEM_INDEX, Batch
from model.attention import rotate
from model.encoder import ClickformerConfig, ClickformerEncoder, event_inputs
from model.engine import to_tensors

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "bidirectional": {"attention": "bidirectional"},
    "ligr": {"block": "ligr"},
    "bidirectional ligr": {"block": "ligr", "attention": "bidirectional"},
    "hstu": {"block": "hstu"},
    "bidirectional hstu": {"block": "hstu", "attention": "bidirectional"},
    "gru": {"block": "gru"},
    "learned places": {"positions": "learned"},
    "bidirectional learned places": {"positions": "learned", "attention": "bidirectional"},
    "no repeats": {"repeats": False},
}
every_network = pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
causal_networks = pytest.mark.parametrize(
    "fields", [fields for name, fields in NETWORKS.items() if "attention" not in fields]
)


def states(encoder: ClickformerEncoder, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**event_inputs(to_tensors(batch, CPU)))


def rank(encoder: ClickformerEncoder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return encoder.rank_items(to_tensors(batch, CPU))


@every_network
def test_padding_changes_no_users_vector(make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]) -> None:
    encoder, batch = make_encoder(**fields), make_batch(3, 6, 1)
    for row in range(3):
        length = (3, 6, 1)[row]
        alone = {name: array[row : row + 1, :length] for name, array in batch.items()}
        for together, own in zip(rank(encoder, batch), rank(encoder, alone), strict=True):
            torch.testing.assert_close(together[row : row + 1], own, atol=1e-5, rtol=1e-5)


@every_network
def test_a_users_vector_does_not_depend_on_the_other_users(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    encoder, batch, other = make_encoder(**fields), make_batch(4, 5), make_batch(4, 5, seed=9)
    mixed = {name: np.concatenate([array[:1], other[name][1:]]) for name, array in batch.items()}
    torch.testing.assert_close(rank(encoder, batch)[0][0], rank(encoder, mixed)[0][0])


@causal_networks
def test_causal_states_ignore_the_future(make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]) -> None:
    encoder, batch, other = make_encoder(**fields), make_batch(6), make_batch(6, seed=9)
    changed = {name: np.concatenate([array[:, :4], other[name][:, 4:]], axis=1) for name, array in batch.items()}
    before, after = states(encoder, batch), states(encoder, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@causal_networks
def test_causal_states_see_the_past(make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]) -> None:
    encoder, batch = make_encoder(**fields), make_batch(6)
    changed = batch | {ITEM_INDEX: batch[ITEM_INDEX].copy()}
    changed[ITEM_INDEX][0, 0] = 2 if batch[ITEM_INDEX][0, 0] != 2 else 3
    assert (states(encoder, batch) - states(encoder, changed)).abs().amax(dim=(0, 2)).min() > 1e-6


@every_network
def test_a_user_without_events_has_a_finite_vector_and_scores(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    users, scores = rank(make_encoder(**fields), make_batch(0, 3))
    assert users.isfinite().all()
    assert scores[:, 2:].isfinite().all()


@every_network
def test_padding_and_unknown_are_never_recommended(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    batch = make_batch(4, 2)
    batch[ITEM_INDEX][0, 1] = 1
    _, scores = rank(make_encoder(**fields), batch)
    assert (scores[:, :2] == float("-inf")).all()


@every_network
def test_scores_are_log_probabilities_over_items(
    make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    _, scores = rank(make_encoder(**fields), make_batch(5, 3))
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2))


def test_no_table_learns_its_padding_row(make_encoder: Callable, make_batch: Callable) -> None:
    encoder = make_encoder()
    encoder(**event_inputs(to_tensors(make_batch(2, 6), CPU))).square().sum().backward()
    tables = [encoder.item_table, encoder.event_embedding.action, encoder.event_embedding.gap, encoder.readout.elapsed]
    for table in tables:
        assert (table.weight[0] == 0).all()
        assert (table.weight.grad[0] == 0).all()
        assert table.weight.grad.abs().sum() > 0


@every_network
def test_every_network_comes_back_from_its_folder(
    tmp_path: Path, make_encoder: Callable, make_batch: Callable, fields: dict[str, Any]
) -> None:
    encoder, batch = make_encoder(**fields), make_batch(3, 6)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(rank(loaded, batch), rank(encoder, batch))


def test_places_tell_equal_events_apart(make_encoder: Callable, make_batch: Callable) -> None:
    batch = {name: np.repeat(array[:, :1], 6, axis=1) for name, array in make_batch(1).items()}
    found = states(make_encoder(positions="learned"), batch)[0]
    assert torch.pdist(found).min() > 1e-3


def test_recurrence_does_not_look_both_ways(make_encoder: Callable) -> None:
    with pytest.raises(ValueError, match="block gru sees only what was before"):
        make_encoder(block="gru", attention="bidirectional")


def test_a_turn_depends_on_the_distance_of_positions_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4).expand(1, 1, 6, 4), torch.randn(4).expand(1, 1, 6, 4)
    products = (rotate(query) @ rotate(key).transpose(2, 3))[0, 0]
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])


@every_network
def test_every_fresh_weight_has_a_sensible_spread(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = ClickformerEncoder(ClickformerConfig(vocabulary_size=200, num_actions=4, hidden_size=32, **fields))
    for name, parameter in encoder.named_parameters():
        assert parameter.isfinite().all(), name
        if name == "readout.feed_forward.down.weight":
            assert not parameter.any(), "states pass as they are at first"
        elif parameter.ndim == 2 and parameter.shape[0] > 1:
            assert 0.001 < parameter.std() < 0.5, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_a_gpu_are_those_of_the_cpu(make_encoder: Callable, make_batch: Callable) -> None:
    encoder, batch = make_encoder(), make_batch(3, 6)
    expected = rank(encoder, batch)[1]
    device = torch.device("cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found = encoder.to(device).rank_items(to_tensors(batch, device))[1]
    torch.testing.assert_close(found.float().cpu()[:, 2:], expected[:, 2:], atol=0.2, rtol=0.1)


@pytest.mark.parametrize("block", ["transformer", "ligr"])
def test_a_fresh_attention_passes_on_the_mean_of_what_it_sees(block: str) -> None:
    config = ClickformerConfig(vocabulary_size=9, num_actions=4, hidden_size=16, block=block)
    for attention in (layer.attention for layer in ClickformerEncoder(config).blocks):
        query_key, value = attention.project_in.weight.split([32, 16])
        assert query_key.std() < 0.05
        torch.testing.assert_close(attention.project_out.weight @ value, torch.eye(16), atol=1e-5, rtol=0)
