"""Model folders: whole, finite, free of pickles, and usable without us."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel

from data_io.vocabulary import Vocabulary, build_vocabulary, write_vocabulary
from model.checkpoint import CheckpointError, load_model, save_model
from model.checkpoint_form import TrainPosition
from model.encoder import ClickformerConfig
from model.heads import ClickformerForOutcome

VOCABULARY = Vocabulary(pa.array([f"i{number}" for number in range(9, -1, -1)], pa.large_string()))


def test_a_saved_encoder_comes_back_equal(make_encoder: Callable, tmp_path: Path) -> None:
    encoder, url = make_encoder(), str(tmp_path / "model")
    save_model(encoder, VOCABULARY, url, {"kind": "next_item", "fingerprint": "f"})
    loaded = load_model(url)
    assert loaded.vocabulary.item_ids.to_pylist() == VOCABULARY.item_ids.to_pylist()
    assert loaded.manifest["fingerprint"] == "f"
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(loaded.encoder.state_dict()[name], tensor, atol=0, rtol=0)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["_MANIFEST.json", "config.json", "model.safetensors", "vocabulary.parquet"]
    assert AutoModel.from_pretrained(url).config.hidden_size == 8


def test_a_saved_head_comes_back_with_its_scale(tmp_path: Path) -> None:
    config = ClickformerConfig(vocabulary_size=12, num_actions=4, hidden_size=8, num_features=2)
    model = ClickformerForOutcome(config)
    model.head.set_scale(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    save_model(model, VOCABULARY, str(tmp_path / "task"), {"kind": "outcome"})
    loaded = load_model(str(tmp_path / "task")).model
    assert isinstance(loaded, ClickformerForOutcome)
    assert loaded.head.feature_mean.tolist() == [1.0, 2.0]
    assert loaded.head.feature_std.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("data_type", [pa.large_string(), pa.int64()], ids=str)
def test_a_model_knows_the_vocabulary_it_was_trained_on(
    make_encoder: Callable, tmp_path: Path, data_type: pa.DataType
) -> None:
    vocabulary = Vocabulary(pa.array(["3", "1", "2"], pa.large_string()).cast(data_type))
    save_model(make_encoder(vocabulary_size=5), vocabulary, str(tmp_path / "model"), {"kind": "next_item"})
    loaded = load_model(str(tmp_path / "model"))
    known = (loaded.manifest["vocabulary_sha256"], loaded.manifest["vocabulary_size"])
    assert known == (vocabulary.digest(), 5) == (loaded.vocabulary.digest(), loaded.vocabulary.size)
    save_model(loaded.model, loaded.vocabulary, str(tmp_path / "copy"), loaded.manifest)
    copy = load_model(str(tmp_path / "copy"))
    assert (copy.vocabulary.digest(), copy.manifest["vocabulary_sha256"]) == (vocabulary.digest(), known[0])


def test_a_weight_that_is_not_finite_is_never_published(make_encoder: Callable, tmp_path: Path) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.item_table.weight[3, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"item_table\.weight is not finite; nothing was published"):
        save_model(encoder, VOCABULARY, str(tmp_path / "model"), {"kind": "next_item"})
    assert not (tmp_path / "model").exists()


def test_a_changed_or_missing_file_is_refused(make_encoder: Callable, tmp_path: Path) -> None:
    save_model(make_encoder(), VOCABULARY, str(tmp_path / "model"), {"kind": "next_item"})
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


def test_a_swapped_vocabulary_is_refused(make_encoder: Callable, tmp_path: Path) -> None:
    save_model(make_encoder(), VOCABULARY, str(tmp_path / "model"), {"kind": "next_item"})
    other = build_vocabulary(pl.DataFrame({"item_id": ["other"], "count": [1]}), 1)
    write_vocabulary(str(tmp_path / "model"), other)
    with pytest.raises(CheckpointError, match="missing or differs from what was published"):
        load_model(str(tmp_path / "model"))
