"""Local files: whole or absent, and a full disk in words.

A file is written under a hidden temporary name, brought safely to disk, and then renamed or linked to its own.
Invariant: whatever fails, the file before it stands and no temporary file stays.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from data_io.config import SettingsError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class OutOfDiskError(OSError):
    """A disk, or the size a file may have, has no room for what was to be written; what stood there before stands."""


def write_file(path: Path, parts: Sequence[bytes | pa.Buffer]) -> None:
    """Put a whole file in one atomic step.

    Raises:
        OutOfDiskError: there is no room for it.
        SettingsError: its folder cannot be made.
    """
    with _temporary_file(path, parts) as temporary:
        temporary.replace(path)


def create_file(path: Path, content: bytes) -> bool:
    """Whether this call made the file; False where one stands there already. See `storage.create_bytes`.

    Raises:
        OutOfDiskError: there is no room for it.
        SettingsError: its folder cannot be made.
    """
    with _temporary_file(path, [content]) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # on NFS the answer of a link that was made can be lost
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _create_exclusively(path, content)
        return True


@contextmanager
def room_for(path: Path, num_bytes: Callable[[], int]) -> Iterator[None]:
    """A block in which a full disk is put into words; `num_bytes` says how much was to be written.

    Raises:
        OutOfDiskError: the disk, or the size a file may have, has no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
        raise OutOfDiskError(
            f"{path}: no room for its {num_bytes():,} bytes ({os.strerror(error.errno)}; the disk has {free:,} free); "
            "make room, or choose a run_dir on another disk, and run the same command again"
        ) from error


@contextmanager
def _temporary_file(path: Path, parts: Sequence[bytes | pa.Buffer]) -> Iterator[Path]:
    """A file beside the one to be, with its content safe on disk; gone after the block, whatever becomes of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with room_for(path, lambda: sum(len(part) for part in parts)):
        _make_folder(path)
        try:
            with temporary.open("wb") as sink:
                _bring_to_disk(sink.fileno(), parts)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise SettingsError(f"{path}: cannot be written ({error.strerror}); choose another run_dir") from None


def _create_exclusively(path: Path, content: bytes) -> bool:
    """What `create_file` does on a disk without hard links: a reader may see part of the file for a moment."""
    try:
        sink = path.open("xb")
    except FileExistsError:
        return False
    try:
        with sink:
            _bring_to_disk(sink.fileno(), [content])
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _bring_to_disk(descriptor: int, parts: Sequence[bytes | pa.Buffer]) -> None:
    for part in parts:
        left = memoryview(part)
        while left:
            left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
