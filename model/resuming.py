"""Resuming: the newest whole checkpoint of a run, read by any number of workers under any ZeRO stage.

Each rank fetches the files that hold what it is to hold (`model.held_state`). Invariant: a state is verified whole on
all ranks before any rank takes it over.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import distributed as dist

from data_io import storage
from data_io.schema import DataContractError
from data_io.snapshots import MANIFEST_NAME
from model.checkpoint import CheckpointError
from model.checkpoint_form import (
    FORMAT_VERSION,
    RunIdentity,
    TrainPosition,
    is_committed,
    key_of,
    manifest_checksum,
)
from model.engine import TrainEngine
from model.held_state import Part

_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a run goes on, and what it knew besides its state."""

    position: TrainPosition
    notes: dict[str, Any]
    """What the caller of `CheckpointWriter.save` gave; empty at the start of a run."""


def resume(
    engine: TrainEngine, url: str, identity: RunIdentity, warn: Callable[[str], None] = lambda text: None
) -> Resumed:
    """Load the newest whole checkpoint under `url`; the start of training where there is none. All ranks call it.

    Args:
        engine: that takes the state over; of any number of workers and any ZeRO stage.
        url: of the run's checkpoints.
        identity: of the run.
        warn: told of checkpoints that are damaged, for which an older one is taken.

    Raises:
        CheckpointError: the newest belongs to other settings or data, or to a newer version; or there are
            checkpoints and all are damaged.
    """
    names: list[Any] = [_list_checkpoints(url, warn) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(names)
    damaged: list[str] = []
    for name in reversed(names[0]):
        folder = storage.join(url, name)
        with tempfile.TemporaryDirectory() as local:
            reading = _Reading(folder, engine.parts(), Path(local))
            problem = reading.fetch(identity)
            problems: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem)
            found = next((text for text in problems if text), None)
            if found:
                warn(f"{found}; an older checkpoint is taken, if there is one")
                damaged.append(found)
                continue
            reading.copy()
            engine.take_over(reading.manifest["engine"])
        return Resumed(TrainPosition.from_dict(reading.manifest["position"]), reading.manifest["notes"])
    if damaged:
        raise CheckpointError(
            f"every checkpoint is damaged: {damaged[0]}; delete {url} to start anew, or bring the file back"
        )
    return Resumed(TrainPosition(), {})


class _Reading:
    """Reading of one checkpoint by one rank: first all that it needs is fetched and verified, then it is copied."""

    def __init__(self, folder: str, wanted: list[Part], local: Path) -> None:
        self.manifest: dict[str, Any] = {}
        self._folder = folder
        self._wanted = [part for part in wanted if len(part.numbers)]
        self._local = local

    def fetch(self, identity: RunIdentity) -> str | None:
        """What is wrong with the files that this rank needs; None if they are whole.

        Raises:
            CheckpointError: the checkpoint is of another run or version.
        """
        try:
            self.manifest = storage.read_json(storage.join(self._folder, MANIFEST_NAME))
            version, checksum = self.manifest["format_version"], self.manifest.pop("checksum")
        except (DataContractError, KeyError, AttributeError):
            return f"{self._folder}/{MANIFEST_NAME} cannot be read"
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self._folder} is of checkpoint format {version} and this version of clickformer reads "
                f"{FORMAT_VERSION}: go on with the version that wrote it, or delete the checkpoints"
            )
        if checksum != manifest_checksum(self.manifest):
            return f"{self._folder}/{MANIFEST_NAME} differs from what was written"
        _check_same_run(self._folder, self.manifest, identity)
        covered = {key_of(part): 0 for part in self._wanted}
        for number, record in enumerate(self.manifest["files"]):
            overlaps = list(self._overlaps(record))
            if not overlaps:
                continue
            problem = self._fetch_file(record, self._copy_of(number))
            if problem:
                return problem
            for key, size in overlaps:
                covered[key] += size
        for part in self._wanted:
            if covered[key_of(part)] != len(part.numbers):
                return f"{self._folder} lacks part of {part.kind} of {part.name}"
        return None

    def copy(self) -> None:
        """Take over what was fetched."""
        for number, record in enumerate(self.manifest["files"]):
            if not self._copy_of(number).is_file():
                continue
            with safe_open(self._copy_of(number), framework="pt") as source:
                for part in self._wanted:
                    for key, start, size in _stretches(record, part):
                        first, last = max(start, part.start), min(start + size, part.start + len(part.numbers))
                        if first < last:
                            numbers = source.get_slice(key)[first - start : last - start]
                            part.numbers[first - part.start : last - part.start].copy_(numbers)

    def _overlaps(self, record: dict[str, Any]) -> Iterator[tuple[str, int]]:
        for part in self._wanted:
            for _, start, size in _stretches(record, part):
                common = min(start + size, part.start + len(part.numbers)) - max(start, part.start)
                if common > 0:
                    yield key_of(part), common

    def _copy_of(self, number: int) -> Path:
        return self._local / f"{number}.safetensors"

    def _fetch_file(self, record: dict[str, Any], copy: Path) -> str | None:
        url = storage.join(self._folder, record["name"])
        try:
            content = storage.read_bytes(url)
        except FileNotFoundError:
            return f"{url} is missing"
        if len(content) != record["num_bytes"] or hashlib.sha256(content).hexdigest() != record["sha256"]:
            return f"{url} differs from what was written"
        copy.write_bytes(content)
        return None


def _list_checkpoints(url: str, warn: Callable[[str], None]) -> list[str]:
    """Those with a manifest, oldest first; what a killed run left half written is deleted."""
    whole, torn = [], []
    for name in storage.list_folders(url):
        (whole if is_committed(url, name) else torn).append(name)
    for name in torn:
        warn(f"{storage.join(url, name)} was never finished and is deleted")
        storage.delete_folder(storage.join(url, name))
    return whole


def _check_same_run(folder: str, manifest: dict[str, Any], identity: RunIdentity) -> None:
    if manifest["fingerprint"] == identity.fingerprint:
        return
    now = dict(_flat(json.loads(json.dumps(identity.settings, default=str))))
    then = dict(_flat(manifest["settings"]))
    differing = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    listed = [f"{name} {then.get(name)!r} then, {now.get(name)!r} now" for name in differing[:_SHOWN_DIFFERENCES]]
    more = [f"and {len(differing) - len(listed)} more"] if len(differing) > len(listed) else []
    raise CheckpointError(
        f"{folder} belongs to other settings or data ({'; '.join([*listed, *more])}); choose another run_dir or name, "
        "or delete the checkpoints"
    )


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    if not isinstance(content, dict):
        yield name, content
        return
    for key, value in content.items():
        yield from _flat(value, f"{name}.{key}" if name else str(key))


def _stretches(record: dict[str, Any], part: Part) -> Iterator[tuple[str, int, int]]:
    """Key, start and size of what a file has of a part's parameter."""
    for key, size in record["parts"].items():
        kind, start, name = key.split("/", 2)
        if (kind, name) == (part.kind, part.name):
            yield key, int(start), size
