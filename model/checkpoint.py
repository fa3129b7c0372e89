"""Checkpoints to resume from, and folders to use.

A checkpoint is DeepSpeed's state of all ranks plus a manifest, put last; resuming takes the newest whose manifest and
files agree. A model is a Hugging Face folder, also with its manifest last. Invariant: what has no manifest does not
exist; nothing that others use is a pickle.
"""

import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import distributed as dist
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_io import storage
from data_io.schema import ITEM_ID, DataContractError
from data_io.snapshots import MANIFEST_NAME, read_manifest
from data_io.vocabulary import VOCABULARY_NAME, Vocabulary, read_vocabulary
from model.encoder import ClickformerEncoder
from model.engine import TrainEngine
from model.heads import ClickformerForOutcome

transformers_logging.disable_progress_bar()


class CheckpointError(Exception):
    """A checkpoint or model folder cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPosition:
    """How far a training run has come."""

    epoch: int = 0
    """Epoch under way, from 0."""
    step: int = 0
    """Steps done in that epoch."""
    best_metric: float = float("-inf")
    """Best validation metric so far."""
    epochs_without_gain: int = 0
    """Epochs since then."""

    def as_dict(self) -> dict[str, Any]:
        """For a manifest; the best metric is None before the first validation."""
        best = None if self.best_metric == float("-inf") else self.best_metric
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_metric": best,
            "epochs_without_gain": self.epochs_without_gain,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "TrainPosition":
        """The reverse of `as_dict`."""
        best = content["best_metric"]
        return cls(
            epoch=content["epoch"],
            step=content["step"],
            best_metric=float("-inf") if best is None else best,
            epochs_without_gain=content["epochs_without_gain"],
        )


def save_checkpoint(engine: TrainEngine, position: TrainPosition, url: str, fingerprint: str, keep: int) -> None:
    """Write a checkpoint under `url`; all ranks call it, the last thing written is its manifest."""
    names: list[str | None] = [f"epoch={position.epoch:04d}-step={position.step:08d}-{uuid.uuid4().hex[:8]}"]
    dist.broadcast_object_list(names)
    folder = storage.join(url, str(names[0]))
    with tempfile.TemporaryDirectory() as local:
        engine.save(Path(local))
        records = storage.upload_folder(Path(local), folder)
    gathered: list[list[dict[str, Any]] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, records)
    if dist.get_rank() == 0:
        manifest = {
            "format_version": 1,
            "fingerprint": fingerprint,
            "world_size": dist.get_world_size(),
            "position": position.as_dict(),
            "files": [record for part in gathered if part for record in part],
        }
        storage.write_json(storage.join(folder, MANIFEST_NAME), manifest)
        for old in storage.list_folders(url)[:-keep]:
            storage.delete_folder(storage.join(url, old))
    dist.barrier()


def resume(engine: TrainEngine, url: str, fingerprint: str) -> TrainPosition:
    """Load the newest whole checkpoint under `url`; the start of training where there is none.

    Raises:
        CheckpointError: it belongs to other settings or to another number of workers.
    """
    for name in reversed(storage.list_folders(url)):
        folder = storage.join(url, name)
        if not storage.exists(storage.join(folder, MANIFEST_NAME)):
            continue
        manifest = read_manifest(folder)
        _check_resumable(folder, manifest, fingerprint)
        with tempfile.TemporaryDirectory() as local:
            storage.download_folder(folder, Path(local))
            if not _is_whole(Path(local), manifest):
                continue
            engine.load(Path(local))
        return TrainPosition.from_dict(manifest["position"])
    return TrainPosition()


def _check_resumable(folder: str, manifest: dict[str, Any], fingerprint: str) -> None:
    if manifest["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{folder} belongs to other settings or data (its fingerprint {manifest['fingerprint']}, this run's "
            f"{fingerprint}); choose another run_dir or delete the checkpoints"
        )
    if manifest["world_size"] != dist.get_world_size():
        raise CheckpointError(
            f"{folder} was written by {manifest['world_size']} workers and this run has {dist.get_world_size()}; "
            f"resume with --cluster.num-workers {manifest['world_size']}"
        )


def _is_whole(local: Path, manifest: dict[str, Any]) -> bool:
    return all(
        (local / file["name"]).is_file() and storage.file_sha256(local / file["name"]) == file["sha256"]
        for file in manifest["files"]
    )


def save_model(model: PreTrainedModel, vocabulary: Vocabulary, url: str, manifest: dict[str, Any]) -> None:
    """Publish a Hugging Face folder with its vocabulary; the manifest is put last.

    Args:
        model: whole and finite.
        vocabulary: the model was trained with.
        url: of the folder.
        manifest: kind (next_item or outcome), fingerprint, settings and whatever a user of the model should know.

    Raises:
        CheckpointError: a weight is not finite.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite; nothing was published at {url}")
    with tempfile.TemporaryDirectory() as local:
        model.save_pretrained(local)
        storage.write_parquet(f"{local}/{VOCABULARY_NAME}", pa.table({ITEM_ID: vocabulary.item_ids}))
        files = storage.upload_folder(Path(local), url)
    known = {"vocabulary_sha256": vocabulary.digest(), "vocabulary_size": vocabulary.size}
    storage.write_json(storage.join(url, MANIFEST_NAME), {"format_version": 1} | manifest | known | {"files": files})


@dataclass(frozen=True)
class SavedModel:
    """A model folder, loaded."""

    model: ClickformerEncoder | ClickformerForOutcome
    vocabulary: Vocabulary
    manifest: dict[str, Any]

    @property
    def encoder(self) -> ClickformerEncoder:
        """The encoder, with or without a head beside it."""
        return self.model if isinstance(self.model, ClickformerEncoder) else self.model.encoder


def load_model(url: str) -> SavedModel:
    """Load a model folder, its files verified against the manifest.

    Raises:
        CheckpointError: nothing is published there, or a file differs from what was published.
    """
    try:
        manifest = read_manifest(url, made_by="clickformer pretrain or finetune")
    except DataContractError as error:
        raise CheckpointError(str(error)) from None
    with tempfile.TemporaryDirectory() as local:
        storage.download_folder(url, Path(local))
        if not _is_whole(Path(local), manifest):
            raise CheckpointError(f"{url}: a file is missing or differs from what was published; train it again")
        kind = ClickformerForOutcome if manifest["kind"] == "outcome" else ClickformerEncoder
        model = kind.from_pretrained(local)
        model.eval()
    return SavedModel(model, read_vocabulary(url), manifest)
