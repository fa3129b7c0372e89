"""Adapters of low rank: what learns, what is published, and what is loaded from base and adapters."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from data_io import storage
from data_io.config import SettingsError
from data_io.vocabulary import Vocabulary
from model.adapters import ADAPTER, describe_base, has_adapters
from model.checkpoint import CheckpointError, load_model, publish_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import ClickformerForOutcome, free_parameters
from model.task_config import LowRankAdapters
from tests.model.test_zero import CPU, make_batch, to_tensors

ITEMS = 30
LORA = LowRankAdapters(rank=2, alpha=4)
BLOCKS = {
    "transformer": {},
    "ligr": {"block": "ligr"},
    "hstu": {"block": "hstu"},
    "gpt2": {"backbone": {"kind": "hugging_face", "model_type": "gpt2"}},
}


def make_config(**network: object) -> ClickformerConfig:
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "sequence_length": 6, "dropout": 0.0}
    return ClickformerConfig(vocabulary_size=ITEMS, num_actions=4, num_features=3, **(shape | network))


def vocabulary() -> Vocabulary:
    return Vocabulary(pa.array([f"item {number}" for number in range(ITEMS - 2)], pa.large_string()))


def move(model: torch.nn.Module) -> None:
    """Something else than the zero that adapters start from."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def states(encoder: ClickformerEncoder) -> Tensor:
    with torch.no_grad():
        return encoder.eval().user_states(to_tensors(make_batch(3, 5), CPU))


def publish_base(folder: Path, **network: object) -> tuple[ClickformerEncoder, str]:
    torch.manual_seed(0)
    encoder = ClickformerEncoder(make_config(**network))
    url = str(folder / "encoder")
    save_model(encoder, vocabulary(), url, {"kind": "next_item", "fingerprint": "base"})
    return encoder, url


@pytest.mark.parametrize("block", BLOCKS)
def test_adapters_are_published_alone_and_loaded_into_their_base(tmp_path: Path, block: str) -> None:
    encoder, base = publish_base(tmp_path, **BLOCKS[block])
    before = states(encoder)
    free_parameters(encoder, LORA)
    torch.testing.assert_close(states(encoder), before, msg="fresh adapters change nothing")
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith(("readout", "repeat_choice")) for name in learning)
    move(encoder)
    url, merged = str(tmp_path / "tasks/task"), str(tmp_path / "tasks/merged")
    save_model(encoder, vocabulary(), url, {"kind": "next_item", "fingerprint": "task"} | describe_base(base))
    names = {Path(name).name for name in storage.list_tree(url)}
    assert {"adapter_model.safetensors", "adapter_config.json", "head.safetensors"} <= names
    assert "model.safetensors" not in names
    loaded = load_model(url)
    assert not has_adapters(loaded.model)
    assert (states(encoder) - before).abs().max() > 0.01
    torch.testing.assert_close(states(loaded.encoder), states(encoder), rtol=1e-4, atol=1e-5)
    publish_model(url, merged, merge=True)
    publish_model(url, f"{url}-copy", merge=False)
    assert ADAPTER not in load_model(merged).manifest
    assert load_model(f"{url}-copy").manifest["files"] == loaded.manifest["files"]
    for again in (merged, f"{url}-copy"):
        torch.testing.assert_close(states(load_model(again).encoder), states(loaded.encoder), rtol=0, atol=0)


def test_a_head_is_published_with_the_adapters(tmp_path: Path) -> None:
    encoder, base = publish_base(tmp_path)
    model = ClickformerForOutcome(make_config())
    model.encoder.load_state_dict(encoder.state_dict())
    model.free_parameters(LORA)
    model.head.set_scale(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    move(model)
    url = str(tmp_path / "tasks/task")
    save_model(model, vocabulary(), url, {"kind": "outcome", "fingerprint": "task"} | describe_base(base))
    batch = to_tensors(make_batch(3, 5), CPU) | {"features": torch.rand(5, 3)}
    loaded = load_model(url).model
    assert isinstance(loaded, ClickformerForOutcome)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), model.eval()(batch), rtol=1e-4, atol=1e-5)


def test_adapters_of_a_base_that_is_gone_or_changed_are_refused(tmp_path: Path) -> None:
    encoder, base = publish_base(tmp_path)
    free_parameters(encoder, LORA)
    url = str(tmp_path / "tasks/task")
    save_model(encoder, vocabulary(), url, {"kind": "next_item", "fingerprint": "task"} | describe_base(base))
    storage.delete_folder(base)
    with pytest.raises(CheckpointError, match="only adapters, and their base cannot be used"):
        load_model(url)
    torch.manual_seed(5)
    other = ClickformerEncoder(make_config())
    save_model(other, vocabulary(), base, {"kind": "next_item", "fingerprint": "base"})
    with pytest.raises(CheckpointError, match="adapters of another model than"):
        load_model(url)


def test_blocks_without_linear_layers_have_no_adapters() -> None:
    with pytest.raises(SettingsError, match="finds no linear layers"):
        free_parameters(ClickformerEncoder(make_config(block="gru")), LORA)
