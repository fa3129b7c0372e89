"""Model folders: whole, finite, free of pickles, and usable without us."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModel

from data_io.vocabulary import write_vocabulary
from model.checkpoint import CheckpointError, TrainPosition, load_model, save_model
from model.encoder import ClickformerConfig
from model.heads import ClickformerForOutcome


@pytest.fixture
def vocabulary_folder(tmp_path: Path) -> str:
    folder = str(tmp_path / "store")
    write_vocabulary(folder, pl.DataFrame({"item_id": [f"i{n}" for n in range(10)], "count": range(10, 0, -1)}))
    return folder


def test_a_saved_encoder_comes_back_equal(make_encoder: Callable, vocabulary_folder: str, tmp_path: Path) -> None:
    encoder, url = make_encoder(), str(tmp_path / "model")
    save_model(encoder, vocabulary_folder, url, {"kind": "next_item", "fingerprint": "f"})
    loaded = load_model(url)
    assert loaded.vocabulary.size == 12
    assert loaded.manifest["fingerprint"] == "f"
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(loaded.encoder.state_dict()[name], tensor, atol=0, rtol=0)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["_MANIFEST.json", "config.json", "model.safetensors", "vocabulary.parquet"]
    assert AutoModel.from_pretrained(url).config.hidden_size == 8


def test_a_saved_head_comes_back_with_its_scale(vocabulary_folder: str, tmp_path: Path) -> None:
    config = ClickformerConfig(vocabulary_size=12, num_actions=4, hidden_size=8, num_features=2)
    model = ClickformerForOutcome(config)
    model.head.set_scale(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    save_model(model, vocabulary_folder, str(tmp_path / "task"), {"kind": "outcome"})
    loaded = load_model(str(tmp_path / "task")).model
    assert isinstance(loaded, ClickformerForOutcome)
    assert loaded.head.feature_mean.tolist() == [1.0, 2.0]
    assert loaded.head.feature_std.tolist() == [3.0, 4.0]


def test_a_weight_that_is_not_finite_is_never_published(
    make_encoder: Callable, vocabulary_folder: str, tmp_path: Path
) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.item_table.weight[3, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"item_table\.weight is not finite; nothing was published"):
        save_model(encoder, vocabulary_folder, str(tmp_path / "model"), {"kind": "next_item"})
    assert not (tmp_path / "model").exists()


def test_a_changed_or_missing_file_is_refused(make_encoder: Callable, vocabulary_folder: str, tmp_path: Path) -> None:
    save_model(make_encoder(), vocabulary_folder, str(tmp_path / "model"), {"kind": "next_item"})
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="missing or differs from what was published"):
        load_model(str(tmp_path / "model"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing or differs from what was published"):
        load_model(str(tmp_path / "model"))


def test_a_folder_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run clickformer pretrain or finetune first"):
        load_model(str(tmp_path / "nothing"))


@pytest.mark.parametrize("position", [TrainPosition(), TrainPosition(epoch=2, step=5, best_metric=0.5)])
def test_a_position_survives_its_manifest(position: TrainPosition) -> None:
    assert TrainPosition.from_dict(position.as_dict()) == position


def test_a_swapped_vocabulary_is_refused(make_encoder: Callable, vocabulary_folder: str, tmp_path: Path) -> None:
    save_model(make_encoder(), vocabulary_folder, str(tmp_path / "model"), {"kind": "next_item"})
    write_vocabulary(str(tmp_path / "model"), pl.DataFrame({"item_id": ["other"], "count": [1]}))
    with pytest.raises(CheckpointError, match="missing or differs from what was published"):
        load_model(str(tmp_path / "model"))
