"""Jobs of the store, run in processes that a trap kills or stops at a chosen moment.

A trap watches one function of `data_io.storage`, so a moment is named by what stands on disk just then. Processes are
forked from one that has imported everything: starting anew would take three seconds each time.
"""

import importlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import ray
import yaml

from data_io import lease, storage
from ray_jobs import append, bucket_map, build_sequences, cli, compact, forget, ingest_tasks
from ray_jobs.bucket_map import map_on_threads
from ray_jobs.config import Settings

JOBS = (append, build_sequences, compact, forget)
"""Imported here so that a forked process has them."""
SetAttribute = Callable[[object, str, object], None]
DEADLINE_S = 90.0
"""After which a test gives a process up: it hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """A moment of a job, and the signal that comes then."""

    url: str
    """Pattern of the URL that the function is called with."""
    moment: Literal["before", "after"]
    function: str = "write_bytes"
    """Of `data_io.storage`; `write_bytes` is behind all that is written, `create_bytes` behind locks and snapshots."""
    number: int = 1
    """The how many-th call with such a URL, counted in each process."""
    in_task: bool = False
    """Whether tasks are watched too, not the driver alone."""
    victim: Literal["self", "driver"] = "self"
    """Who gets the signal: the process that walks into the trap, or the driver of its job."""
    marker: str | None = None
    """File that is made when the trap goes off, so that it does so once over all processes; None: once in each."""
    sign: int = signal.SIGKILL


_SET: set[Trap] = set()
"""Traps of this process."""


def spring(trap: Trap, driver: int) -> None:
    """Set a trap in this process, if it is not set yet."""
    if trap in _SET:
        return
    _SET.add(trap)
    original, calls = getattr(storage, trap.function), itertools.count(1)

    def watched(url: str, *arguments: Any) -> Any:
        hit = re.search(trap.url, url) is not None and next(calls) == trap.number
        if hit and trap.moment == "before":
            _go_off(trap, driver)
        result = original(url, *arguments)
        if hit and trap.moment == "after":
            _go_off(trap, driver)
        return result

    setattr(storage, trap.function, watched)


def _go_off(trap: Trap, driver: int) -> None:
    if trap.marker is not None:
        try:
            Path(trap.marker).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(driver if trap.victim == "driver" else os.getpid(), trap.sign)


def watch_tasks(traps: list[Trap], set_attribute: SetAttribute = setattr) -> None:
    """Set traps in every task that this process starts from now on."""
    start, driver = bucket_map.map_tasks, os.getpid()

    def map_tasks(function: Callable[[Any], Any], values: Iterable[Any], *, here: bool = False) -> Iterator[Any]:
        return start(partial(_watched, traps, driver, function), values, here=here)

    _replace_map_tasks(map_tasks, set_attribute)


def _replace_map_tasks(map_tasks: Callable[..., Iterator[Any]], set_attribute: SetAttribute) -> None:
    for module in (bucket_map, ingest_tasks):
        set_attribute(module, "map_tasks", map_tasks)


def _watched(traps: list[Trap], driver: int, function: Callable[[Any], Any], value: Any) -> Any:
    for trap in traps:
        spring(trap, driver)
    return function(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job in a process of its own."""

    process: BaseProcess
    output: Path

    def wait(self) -> int:
        """Exit code; minus the signal where one ended it."""
        self.process.join(DEADLINE_S)
        assert self.process.exitcode is not None, f"still running after {DEADLINE_S} s: {self.said}"
        return self.process.exitcode

    def wait_until_stopped(self) -> None:
        """Return once a trap has stopped the process."""
        wait_until(lambda: self._state() in ("T", "Z"), f"no trap stopped the job: {self.said}")
        assert self._state() == "T", self.said

    def go_on(self) -> int:
        """Exit code of a job that was stopped and goes on now."""
        os.kill(self.pid, signal.SIGCONT)
        return self.wait()

    @property
    def pid(self) -> int:
        """Number of its process."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def said(self) -> str:
        """What it wrote to standard output and error."""
        return self.output.read_text() if self.output.exists() else ""

    def _state(self) -> str:
        stat = Path(f"/proc/{self.pid}/stat")
        return stat.read_text().rsplit(") ", 1)[1][0] if self.process.is_alive() and stat.exists() else "Z"


_STARTED: list[BaseProcess] = []


def wait_until(reached: Callable[[], bool], otherwise: str) -> None:
    """Return once something is so; fail where it is not so in time."""
    until = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < until, otherwise
        time.sleep(0.01)


def start_job(
    job: str,
    settings: Settings,
    folder: Path,
    *traps: Trap,
    in_tasks: bool = False,
    lease_s: float | None = None,
    most_file_bytes: int | None = None,
) -> Job:
    """Start a job as the command line does, in a process of its own.

    Args:
        job: its name.
        settings: of the run.
        folder: where its settings file and its output may stand.
        traps: set before it begins.
        in_tasks: whether its work is spread over the cluster; else the driver's threads do it, for workers of a new job
            take seconds to start.
        lease_s: seconds after which its lease is free; None: what it is.
        most_file_bytes: largest file it may write; None: any.
    """
    place = folder / f"{job}-{len(list(folder.glob('*.yaml')))}"
    file, output = place.with_suffix(".yaml"), place.with_suffix(".log")
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store_jobs"])
    arguments = (job, file, output, dict(os.environ), traps, in_tasks, lease_s, most_file_bytes)
    process = context.Process(target=_be_job, args=arguments)
    process.start()
    _STARTED.append(process)
    return Job(process=process, output=output)


def run_job(job: str, settings: Settings, folder: Path, *traps: Trap, **options: Any) -> tuple[int, str]:
    """Exit code and output of a job; see `start_job`."""
    started = start_job(job, settings, folder, *traps, **options)
    return started.wait(), started.said


def _be_job(
    job: str,
    file: Path,
    output: Path,
    environment: dict[str, str],
    traps: tuple[Trap, ...],
    in_tasks: bool,
    lease_s: float | None,
    most_file_bytes: int | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if lease_s is not None:
        lease.write_lease.__wrapped__.__defaults__ = (lease_s,)  # pyright: ignore[reportFunctionMemberAccess]
    if most_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_file_bytes, most_file_bytes))
    if not in_tasks:
        _replace_map_tasks(lambda function, values, here=False: map_on_threads(function, values), setattr)
    for trap in traps:
        if not trap.in_task:
            spring(trap, os.getpid())
    watch_tasks([trap for trap in traps if trap.in_task])
    importlib.import_module("ray_jobs.cli")
    cli.run_job(job, [str(file)])


@contextmanager
def joined_cluster() -> Iterator[None]:
    """For as long as the block lasts, jobs join the cluster of this process's session; then none of them is left."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        for process in _STARTED:  # one that a failed test left asleep would never end
            process.kill()
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
