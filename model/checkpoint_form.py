"""The form of a checkpoint: what its folder and files are called, and what its manifest holds.

    checkpoints/epoch=0001-step=00000200-5f3a9c11/
        state-00000-of-00002.safetensors ...   what each rank holds (`model.held_state`), keyed by kind, start and name
        part-00000.json ...                    of each of those files: size, hash, and the parts in it
        _MANIFEST.json                         put last: position, settings, counters, and all of the above

Invariant: what has no manifest does not exist.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from data_io import storage
from data_io.schema import DataContractError
from data_io.snapshots import MANIFEST_NAME
from model.held_state import Part

FORMAT_VERSION = 2


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """What a checkpoint must have been made by to be resumed from."""

    fingerprint: str
    settings: dict[str, Any]
    """All that the fingerprint is made of, so that an error can say what differs."""


def newest_position(url: str) -> tuple[int, int]:
    """Epoch and step of the newest checkpoint under a URL, whole or not; -1 and -1 where there is none."""
    names = [name for name in storage.list_folders(url) if is_committed(url, name)]
    if not names:
        return -1, -1
    epoch, step, _ = names[-1].split("-")
    return int(epoch.removeprefix("epoch=")), int(step.removeprefix("step="))


def newest_notes(url: str) -> dict[str, Any]:
    """What the newest checkpoint under a URL notes; empty where there is none, or its manifest cannot be read."""
    names = [name for name in storage.list_folders(url) if is_committed(url, name)]
    try:
        return dict(storage.read_json(storage.join(url, names[-1], MANIFEST_NAME))["notes"]) if names else {}
    except (DataContractError, KeyError, TypeError):
        return {}


def is_committed(url: str, name: str) -> bool:
    """Whether a checkpoint is whole as far as its writers know."""
    return storage.exists(storage.join(url, name, MANIFEST_NAME))


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's content."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, default=str).encode()).hexdigest()


def key_of(part: Part) -> str:
    """What a part is called in its file."""
    return f"{part.kind}/{part.start}/{part.name}"


def record_name(rank: int) -> str:
    """File that says what a rank wrote."""
    return f"part-{rank:05d}.json"
