"""Model folders: what training publishes and others use.

A model is a Hugging Face folder with its manifest put last. Checkpoints to resume from are in `model.resuming`.
Invariant: what has no manifest does not exist; nothing is a pickle.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_io import storage
from data_io.schema import ITEM_ID, DataContractError
from data_io.snapshots import MANIFEST_NAME, read_manifest
from data_io.vocabulary import VOCABULARY_NAME, Vocabulary, read_vocabulary
from model.adapters import ADAPTER, BASE, has_adapters, load_adapters, save_adapters
from model.blend import Blend
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.response import ClickformerForResponse

transformers_logging.disable_progress_bar()
_BLENDS = "blends.json"
_CLASSES = {"outcome": ClickformerForOutcome, "response": ClickformerForResponse}
"""By the kind in a manifest; any other is of an encoder."""


class CheckpointError(Exception):
    """A checkpoint or model folder cannot be used; the message says which, why and what to do."""


def _is_whole(local: Path, manifest: dict[str, Any]) -> bool:
    return all(
        (local / file["name"]).is_file() and storage.file_sha256(local / file["name"]) == file["sha256"]
        for file in manifest["files"]
    )


def save_model(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    url: str,
    manifest: dict[str, Any],
    blends: Mapping[str, Blend] | None = None,
) -> None:
    """Publish a Hugging Face folder with its vocabulary; the manifest is put last.

    Of a model with adapters just these are published, and what learned beside them.

    Args:
        model: whole and finite.
        vocabulary: the model was trained with.
        url: of the folder.
        manifest: kind (next_item, outcome or response), fingerprint, settings and whatever a user of the model should
            know.
        blends: by question; what its probability is put together with.

    Raises:
        CheckpointError: a weight is not finite.
        OutOfDiskError: the disk has no room for it, or the one for temporary files.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite; nothing was published at {url}")
    with tempfile.TemporaryDirectory() as local:
        with _room_for(model, Path(local)):
            if has_adapters(model):
                save_adapters(model, Path(local))
            else:
                model.save_pretrained(local)
        _write_blends(Path(local), blends or {})
        storage.write_parquet(f"{local}/{VOCABULARY_NAME}", pa.table({ITEM_ID: vocabulary.item_ids}))
        files = storage.upload_folder(Path(local), url)
    known = {"vocabulary_sha256": vocabulary.digest(), "vocabulary_size": vocabulary.size}
    storage.write_json(storage.join(url, MANIFEST_NAME), {"format_version": 1} | manifest | known | {"files": files})


@contextmanager
def _room_for(model: PreTrainedModel, folder: Path) -> Iterator[None]:
    """A block in which a full disk is put into words; safetensors tells its number in a text only."""
    with storage.room_for(folder / "model.safetensors", lambda: sum(t.nbytes for t in model.state_dict().values())):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(number[1]), str(error)) if number else error from error


@dataclass(frozen=True)
class SavedModel:
    """A model folder, loaded."""

    model: ClickformerEncoder | ClickformerForOutcome | ClickformerForResponse
    vocabulary: Vocabulary
    manifest: dict[str, Any]
    blends: dict[str, Blend] = field(default_factory=dict)
    """By question, what its probability is put together with."""

    @property
    def encoder(self) -> ClickformerEncoder:
        """The encoder, with or without a head beside it."""
        return self.model if isinstance(self.model, ClickformerEncoder) else self.model.encoder


def _base_of(url: str, manifest: dict[str, Any]) -> ClickformerEncoder:
    """The model that adapters stand on.

    Raises:
        CheckpointError: it is gone, or is another one by now.
    """
    known = manifest[ADAPTER]
    try:
        base = load_model(known[BASE])
    except CheckpointError as error:
        raise CheckpointError(f"{url} has only adapters, and their base cannot be used: {error}") from None
    if base.manifest["fingerprint"] != known["fingerprint"] or base.manifest["files"] != known["files"]:
        raise CheckpointError(f"{url} has adapters of another model than {known[BASE]} is by now; fine-tune it again")
    return base.encoder


def publish_model(source: str, target: str, *, merge: bool, blends: Mapping[str, Blend] | None = None) -> None:
    """Publish elsewhere what `save_model` published, verified.

    Args:
        source, target: URLs of folders.
        merge: whether adapters become part of the weights.
        blends: that are published with it.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    saved = load_model(source)
    manifest = {name: value for name, value in saved.manifest.items() if name != "files"}
    if ADAPTER not in manifest or merge:
        without = {name: value for name, value in manifest.items() if name != ADAPTER}
        save_model(saved.model, saved.vocabulary, target, without, blends)
        return
    with tempfile.TemporaryDirectory() as local:
        storage.download_folder(source, Path(local))
        (Path(local) / MANIFEST_NAME).unlink(missing_ok=True)
        _write_blends(Path(local), blends or {})
        files = storage.upload_folder(Path(local), target)
    storage.write_json(storage.join(target, MANIFEST_NAME), manifest | {"files": files})


def load_model(url: str) -> SavedModel:
    """Load a model folder, its files verified against the manifest.

    Raises:
        CheckpointError: nothing is published there, a file differs from what was published, or the base of adapters is
            not what it was.
    """
    try:
        manifest = read_manifest(url, made_by="clickformer pretrain or finetune")
    except DataContractError as error:
        raise CheckpointError(str(error)) from None
    with tempfile.TemporaryDirectory() as local:
        storage.download_folder(url, Path(local))
        if not _is_whole(Path(local), manifest):
            raise CheckpointError(f"{url}: a file is missing or differs from what was published; train it again")
        kind = _CLASSES.get(manifest["kind"], ClickformerEncoder)
        if ADAPTER in manifest:
            model = kind(ClickformerConfig.from_pretrained(local))
            load_adapters(model, _base_of(url, manifest), Path(local))
        else:
            model = kind.from_pretrained(local)
        model.eval()
        blends = _read_blends(Path(local))
    return SavedModel(model, read_vocabulary(url), manifest, blends)


def _write_blends(folder: Path, blends: Mapping[str, Blend]) -> None:
    if blends:
        content = {name: {"weights": blend.weights, "trees": blend.trees} for name, blend in blends.items()}
        (folder / _BLENDS).write_text(json.dumps(content))


def _read_blends(folder: Path) -> dict[str, Blend]:
    if not (folder / _BLENDS).exists():
        return {}
    content = json.loads((folder / _BLENDS).read_text())
    return {name: Blend(tuple(known["weights"]), known["trees"]) for name, known in content.items()}
