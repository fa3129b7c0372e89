"""Writing checkpoints behind training.

Each rank writes the parts that it holds, and beside them a record; the first rank waits for all records and puts the
manifest last. Invariant: nothing that is not finite is written, and no older checkpoint goes before a newer one stands.
"""

import hashlib
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch import distributed as dist

from data_io import storage
from data_io.snapshots import MANIFEST_NAME
from model.checkpoint import CheckpointError
from model.checkpoint_form import (
    FORMAT_VERSION,
    RunIdentity,
    TrainPosition,
    is_committed,
    key_of,
    manifest_checksum,
    record_name,
)
from model.engine import TrainEngine

_POLL_S = 0.05
_MOST_POLL_S = 2.0
_WRITE_TIMEOUT_S = 1800.0


class CheckpointWriter:
    """Writes checkpoints of a run under a URL, one at a time, behind training."""

    def __init__(self, url: str, identity: RunIdentity, keep: int) -> None:
        self._url = url
        self._identity = identity
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._given_up = threading.Event()

    def save(self, engine: TrainEngine, position: TrainPosition, notes: dict[str, Any]) -> None:
        """Copy the state and begin to write it; all ranks call it, and wait for the checkpoint before it first.

        Args:
            engine: whose state.
            position: of the run.
            notes: whatever else is to be known on resuming; small, goes into the manifest.

        Raises:
            CheckpointError: a number is not finite; nothing is written.
            OutOfDiskError, StorageError: the checkpoint before this one could not be written.
        """
        self.wait()
        rank, world_size = dist.get_rank(), dist.get_world_size()
        parts = [part.share(rank, world_size) for part in engine.parts()]
        bad = next((part for part in parts if not part.numbers.isfinite().all()), None)
        if engine.sum_over_ranks(0.0 if bad is None else 1.0):
            where = f"{bad.kind} of {bad.name}" if bad else "a part of another worker"
            raise CheckpointError(f"{where} is not finite after step {position.step}; nothing was saved")
        copies = {key_of(part): part.numbers.detach().to("cpu", copy=True) for part in parts if len(part.numbers)}
        names: list[str | None] = [f"epoch={position.epoch:04d}-step={position.step:08d}-{uuid.uuid4().hex[:8]}"]
        dist.broadcast_object_list(names)
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._identity.fingerprint,
            "settings": self._identity.settings,
            "world_size": world_size,
            "position": position.as_dict(),
            "engine": engine.counters(),
            "notes": notes,
        }
        folder = storage.join(self._url, str(names[0]))
        self._writing = self._pool.submit(self._write, folder, copies, rank, world_size, manifest)

    def wait(self) -> None:
        """Until what was begun is written, on this rank; its manifest is put by the first rank.

        Raises:
            OutOfDiskError, StorageError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raise at once, without waiting, if what was begun could not be written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def close(self) -> None:
        """Give up what is not written yet."""
        self._given_up.set()
        self._pool.shutdown(wait=True)

    def _write(
        self, folder: str, copies: dict[str, Tensor], rank: int, world_size: int, manifest: dict[str, Any]
    ) -> None:
        content = to_safetensors(copies)
        name = f"state-{rank:05d}-of-{world_size:05d}.safetensors"
        storage.write_bytes(storage.join(folder, name), content)
        record = {"name": name, "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record |= {"parts": {key: len(numbers) for key, numbers in copies.items()}}
        storage.write_json(storage.join(folder, record_name(rank)), record)
        if rank == 0:
            manifest["files"] = list(self._records(folder, world_size))
            storage.write_json(
                storage.join(folder, MANIFEST_NAME), manifest | {"checksum": manifest_checksum(manifest)}
            )
            whole = [name for name in storage.list_folders(self._url) if is_committed(self._url, name)]
            for old in whole[: -self._keep]:
                storage.delete_folder(storage.join(self._url, old))

    def _records(self, folder: str, world_size: int) -> Iterator[dict[str, Any]]:
        """What all ranks wrote, as they finish it."""
        waited = 0.0
        pause = _POLL_S
        for rank in range(world_size):
            url = storage.join(folder, record_name(rank))
            while not storage.exists(url):
                if self._given_up.wait(pause) or waited > _WRITE_TIMEOUT_S:
                    raise CheckpointError(f"{folder}: worker {rank} did not write its part; the checkpoint is left out")
                waited, pause = waited + pause, min(2 * pause, _MOST_POLL_S)
            yield storage.read_json(url)
