"""The lease of an output folder: one writer at a time, and none that died in the way of the next.

    _lock/00000001.json ...   who holds it and until when; the highest number counts

A lease is taken by creating the next number, which only one can, and renewed by a thread. Invariant: who holds the
highest number is the only one that may publish; one that was overtaken, because it slept past its lease, finds out
before it publishes and stops.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_io import storage

LOCK = "_lock"
LEASE_S = 60.0
_RENEWALS_PER_LEASE = 6


class OutputLockedError(Exception):
    """Another job writes to the output, or has taken it over; the message says who and until when."""


@dataclass
class Lease:
    """A folder held for writing."""

    url: str
    number: int
    holder: dict[str, Any]
    _ended: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Fail where the lease was lost: to be called right before anything is published.

        Raises:
            OutputLockedError: another writer has taken over.
        """
        newest = max(_numbers(self.url), default=0)
        if newest != self.number:
            raise OutputLockedError(
                f"{self.url}: this job slept past its lease and another one has taken over; nothing was published, "
                "run it again when the other has ended"
            )

    def renew_until_ended(self, lease_s: float) -> None:
        """Renew again and again; runs on a thread of its own."""
        while not self._ended.wait(lease_s / _RENEWALS_PER_LEASE):
            with suppress(OSError, storage.StorageError):  # the next may do better
                if max(_numbers(self.url), default=0) != self.number:
                    return
                self.write(time.time() + lease_s)

    def end(self) -> None:
        """Let go: the next writer need not wait."""
        self._ended.set()
        if max(_numbers(self.url), default=0) == self.number:
            self.write(0.0)

    def write(self, expires_at: float) -> None:
        """Say until when the folder is held."""
        storage.write_json(_lock_url(self.url, self.number), self.holder | {"expires_at": expires_at})


@contextmanager
def write_lease(url: str, job: str, lease_s: float = LEASE_S) -> Iterator[Lease]:
    """Hold an output folder for as long as the block runs.

    Args:
        url: folder of the output.
        job: who writes, for the message another writer gets.
        lease_s: seconds after which the folder is free although the holder never said so.

    Raises:
        OutputLockedError: another job holds it.
    """
    lease = _take(url, job, lease_s)
    thread = threading.Thread(target=lease.renew_until_ended, args=(lease_s,), daemon=True)
    thread.start()
    try:
        yield lease
    except Exception:
        lease.check()  # whatever failed after another writer took over failed because of that
        raise
    finally:
        lease._ended.set()
        thread.join()
        with suppress(OSError, storage.StorageError):  # what the block raised says more; the lease ends by itself
            lease.end()


def _take(url: str, job: str, lease_s: float) -> Lease:
    numbers = _numbers(url)
    if numbers:
        _refuse_if_held(url, numbers[-1])
    holder = {"job": job, "place": _place(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    number = (numbers[-1] if numbers else 0) + 1
    if not storage.create_json(_lock_url(url, number), holder | {"expires_at": time.time() + lease_s}):
        raise OutputLockedError(f"{url}: another job began to write here at the same moment; let it finish")
    lease = Lease(url=url, number=number, holder=holder)
    if max(_numbers(url), default=0) != number:  # it was free because its holder had come and gone meanwhile
        storage.delete_file(_lock_url(url, number))
        raise OutputLockedError(f"{url}: another job began to write here at the same moment; let it finish")
    for old in numbers:
        storage.delete_file(_lock_url(url, old))
    return lease


def _refuse_if_held(url: str, number: int) -> None:
    try:
        held = storage.read_json(_lock_url(url, number))
    except FileNotFoundError:
        return
    left = held["expires_at"] - time.time()
    if left > 0 and not _is_dead(held):
        raise OutputLockedError(
            f"{url}: {held['job']} (process {held['pid']} on {held['place']['host']}) is writing here; let it finish. "
            f"If it was killed, the folder is free in {left:.0f} s"
        )


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether the holder is known to be gone: only a process of this very machine can be."""
    if held["place"] != _place():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _place() -> dict[str, str]:
    """Where a process number means something: host, boot and process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "namespace": str(namespace.readlink()) if namespace.exists() else "",
    }


def _numbers(url: str) -> list[int]:
    names = (file.rsplit("/", 1)[1] for file in storage.list_files(storage.join(url, LOCK)))
    return sorted(int(name.removesuffix(".json")) for name in names)


def _lock_url(url: str, number: int) -> str:
    return storage.join(url, LOCK, f"{number:08d}.json")
