"""Backbones of the transformers library: what their events see, what they save, and which are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_io.batch import Batch
from data_io.config import SettingsError
from model.encoder import ClickformerConfig, ClickformerEncoder, event_inputs
from model.engine import parameter_groups, to_tensors
from model.heads import free_parameters
from model.loss_config import FullSoftmax
from model.objectives import ItemLoss, MaskedItemObjective, NextItemObjective
from model.task_config import FullEncoder, TopLayers

CPU = torch.device("cpu")
NETWORKS: dict[str, dict[str, Any]] = {
    **{name: {"model_type": name} for name in ("llama", "qwen2", "mistral", "gpt2", "bert")},
    **{f"both ways {name}": {"model_type": name, "attention": "bidirectional"} for name in ("bert", "modernbert")},
}
every_family = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture(scope="module")
def build(make_encoder: Callable) -> Callable[..., ClickformerEncoder]:
    def make(model_type: str, settings: dict[str, Any] | None = None, **fields: Any) -> ClickformerEncoder:
        backbone = {"kind": "hugging_face", "model_type": model_type, "settings": settings or {}}
        return make_encoder(backbone=backbone, **fields)

    return make


def states(encoder: ClickformerEncoder, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**event_inputs(to_tensors(batch, CPU)))


@every_family
def test_states_see_the_future_exactly_if_asked_to(
    build: Callable, make_batch: Callable, network: dict[str, Any]
) -> None:
    encoder = build(**network)
    for lengths in ((6,), (6, 4)):  # without padding and with
        batch, changed = make_batch(*lengths), make_batch(*lengths)
        changed["item_index"][0, 4] = 2 + (batch["item_index"][0, 4] == 2)
        same = (states(encoder, batch)[0] - states(encoder, changed)[0]).abs().amax(dim=1) < 1e-6
        assert same.tolist() == [encoder.config.attention == "causal"] * 4 + [False] * 2


@every_family
def test_padding_changes_no_state(build: Callable, make_batch: Callable, network: dict[str, Any]) -> None:
    encoder, batch = build(**network), make_batch(3, 6, 1, 0)
    together = states(encoder, batch)
    assert together.isfinite().all()
    for row, length in enumerate((3, 6, 1)):
        alone = {name: array[row : row + 1, :length] for name, array in batch.items()}
        torch.testing.assert_close(together[row, :length], states(encoder, alone)[0], atol=1e-5, rtol=1e-5)


@every_family
def test_a_network_comes_back_from_its_folder_without_a_table_of_tokens(
    tmp_path: Path, build: Callable, make_batch: Callable, network: dict[str, Any]
) -> None:
    encoder, batch = build(**network), to_tensors(make_batch(3, 8, 0), CPU)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    assert loaded.config.backbone == encoder.config.backbone
    for mine, other in zip(loaded.rank_items(batch), encoder.rank_items(batch), strict=True):
        assert torch.equal(mine, other)
    names = [name for name, _ in encoder.named_parameters()]
    assert not [name for name in names if "wte" in name or "embed_tokens" in name or "word_embed" in name]


@every_family
def test_every_weight_learns_and_the_loss_falls(build: Callable, make_batch: Callable, network: dict[str, Any]) -> None:
    encoder, batch = build(**network).train(), to_tensors(make_batch(4, 8, 8, 5), CPU)
    item_loss = ItemLoss(FullSoftmax(), torch.ones(12))
    masked = encoder.config.attention == "bidirectional"
    objective = MaskedItemObjective(encoder, item_loss, 0.4) if masked else NextItemObjective(encoder, item_loss)
    optimizer = torch.optim.AdamW(parameter_groups(objective, 0.0), lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = objective(batch, seed=0)
        loss.backward()
        without = {name for name, weight in encoder.named_parameters() if weight.grad is None}
        assert without <= {"event_embedding.mask.weight"}, "the mask vector is for masked items only"
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@every_family
def test_weights_are_drawn_as_the_family_draws_them(network: dict[str, Any]) -> None:
    network = dict(network)
    backbone = {"kind": "hugging_face", "model_type": network.pop("model_type")}
    shape = {"hidden_size": 64, "num_layers": 4, "num_heads": 4}
    encoder = ClickformerEncoder(ClickformerConfig(backbone=backbone, **shape, **network))
    assert encoder.backbone is not None
    for name, weight in encoder.backbone.named_parameters():
        if weight.ndim == 1:
            assert weight.eq(1).all() or weight.eq(0).all(), name
        else:
            assert 0.005 < weight.std() < 0.03, name


@every_family
def test_the_last_layers_can_be_freed(build: Callable, network: dict[str, Any]) -> None:
    encoder = build(num_layers=3, **network)
    free_parameters(encoder, TopLayers(num_layers=2))
    learns = [all(weight.requires_grad for weight in layer.parameters()) for layer in encoder.layers]
    assert learns == [False, True, True]
    free_parameters(encoder, FullEncoder())
    assert all(weight.requires_grad for weight in encoder.parameters())


def test_sizes_and_dropout_reach_a_family_under_its_own_names(build: Callable) -> None:
    encoder = build("gpt2", {"n_inner": 24}, dropout=0.25)
    config = encoder.backbone.network.config
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.n_inner) == (8, 2, 2, 10, 24)
    assert (config.resid_pdrop, config.attn_pdrop, config.embd_pdrop) == (0.25, 0.25, 0.0)


def test_the_inner_width_keeps_the_familys_ratio(build: Callable) -> None:
    built = [build("bert", hidden_size=16), build("llama", hidden_size=16), build("llama", {"intermediate_size": 20})]
    assert [encoder.backbone.network.config.intermediate_size for encoder in built] == [64, 40, 20]


def test_shared_layers_learn_all_or_not_at_all(build: Callable) -> None:
    encoder = build("albert", attention="bidirectional")
    with pytest.raises(SettingsError, match="has 0 blocks that can be told apart"):
        free_parameters(encoder, TopLayers())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"model_type": "lama"}, "model_type lama is no family of the transformers library; did you mean llama?"),
        ({"model_type": "t5"}, "t5 cannot be a backbone: it is an encoder and a decoder"),
        ({"model_type": "clip"}, "clip cannot be a backbone: it has no hidden_size, num_hidden_layers"),
        ({"model_type": "vit"}, "model_type vit does not run on vectors of events: "),
        ({"model_type": "llama", "settings": {"n_embd": 4}}, "settings.n_embd: llama has no such field"),
        ({"model_type": "llama", "settings": {"rms_norm_ep": 1}}, "did you mean rms_norm_eps?"),
        ({"model_type": "gpt2", "settings": {"n_embd": 4}}, "settings.n_embd: hidden_size follows from encoder and"),
        ({"model_type": "llama", "settings": {"num_key_value_heads": 3}}, "model_type llama does not run on vectors"),
        ({"model_type": "bert", "settings": {"max_position_embeddings": 3}}, "model_type bert does not run on vectors"),
        ({"model_type": "bert", "settings": {"hidden_act": "nose"}}, "bert cannot be built with these settings: "),
        ({"model_type": "bert", "settings": {"layer_norm_eps": "x"}}, "model_type bert refuses these settings: "),
        ({"model_type": "llama", "attention": "bidirectional"}, "llama sees earlier events only, and objective masked"),
        ({"model_type": "modernbert"}, "modernbert sees later events, which objective next_item must not"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_by_name(build: Callable, network: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(**network)
    assert message in str(caught.value)


def test_our_own_blocks_keep_their_names(make_encoder: Callable) -> None:
    encoder = make_encoder()
    assert encoder.backbone is None
    assert encoder.layers == list(encoder.blocks)
    assert "blocks.1.attention.project_in.weight" in encoder.state_dict()
    assert not [name for name in encoder.state_dict() if "backbone" in name]
