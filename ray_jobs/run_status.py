"""The mark of a run: running, finished, failed or interrupted, for people and schedulers to look at.

Invariant: a run that was killed outright still says running, but its lease ends; nothing is decided by the mark.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from data_io import storage

STATUS_NAME = "status.json"


@contextmanager
def run_status(work_url: str) -> Iterator[None]:
    """Mark a run's folder as running, and in the end by how the block ended."""
    _mark(work_url, "running")
    try:
        yield
    except Exception as error:
        with suppress(OSError, storage.StorageError):  # what the block raised says more
            _mark(work_url, "failed", str(error))
        raise
    except BaseException:
        with suppress(OSError, storage.StorageError):
            _mark(work_url, "interrupted")
        raise
    _mark(work_url, "finished")


def _mark(work_url: str, state: str, why: str = "") -> None:
    content = {"state": state, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    storage.write_json(storage.join(work_url, STATUS_NAME), content | ({"why": why} if why else {}))
