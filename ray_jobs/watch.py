"""What a worker watches beside training: whether a step hangs, and whether its machine is about to be taken away.

Invariant: a worker that waits for one that hangs ends itself, with the stacks of all its threads saved, so that Ray
restarts the group; nothing waits for ever.
"""

import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_io import storage


class Watch:
    """Watches the steps of one worker.

    Args:
        hang_timeout_s: longest a step may take.
        work_url: of the run; stacks are saved below it, or where it is no local folder on the standard error stream.
        rank: of the worker.
        is_preempted: asks all workers at once whether any of their machines is about to be taken away; a barrier.
    """

    def __init__(
        self, hang_timeout_s: float, work_url: str, rank: int, is_preempted: Callable[[], bool] = lambda: False
    ) -> None:
        self.is_preempted = is_preempted
        self._hang_timeout_s = hang_timeout_s
        self._path = None if storage.is_remote(work_url) else Path(work_url) / f"stacks-{rank:05d}-{os.getpid()}.txt"
        self._file: IO[Any] | None = None

    def __enter__(self) -> "Watch":
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step: if it takes too long, stacks are saved and the process ends with status 1.

        By a thread that needs no interpreter, so that it works while the interpreter's lock is held.
        """
        faulthandler.dump_traceback_later(self._hang_timeout_s, exit=True, file=self._file or 2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
