"""Jobs of the store killed with SIGKILL, driver or worker (T3, T6, T30, T37): the same command brings them to the end.

After every kill readers see the old snapshot whole, or the new one, or that there is none; after the same command the
store holds what an undisturbed job leaves, to the event, and no file that nothing names.
"""

import re
import shutil
import signal
from pathlib import Path
from typing import Literal

import pytest
from _pytest.mark import ParameterSet

from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact, forget
from ray_jobs.config import Settings
from tests.integration.stores import files_with
from tests.store_jobs import Trap, run_job, watch_tasks
from tests.undisturbed import FORGOTTEN, Stores, check_finished, content_of

pytestmark = pytest.mark.usefixtures("joined")

JOBS = {"build_sequences": build_sequences, "append": append, "compact": compact, "forget": forget}
ON_THREADS, IN_TASKS = 100_000, 100
"""Rows of a run: an append of fewer is done on threads of the driver, one of more in tasks."""


@pytest.fixture(scope="module")
def nearly_done(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For jobs that work in tasks, a run in which it was killed when nothing but the last steps was left."""
    place = tmp_path_factory.mktemp("nearly")
    for job in ("build_sequences", "compact"):
        settings = stores.begin(job, place / job, IN_TASKS)
        kill(job, settings, place, at("tables/", "before"))
    return {job: place / job for job in ("build_sequences", "compact")}


def at(
    url: str,
    moment: Literal["before", "after"],
    function: str = "write_bytes",
    *,
    in_task: bool = False,
    number: int = 1,
) -> Trap:
    """A trap for the driver: in its own code, or where a task has come to that point."""
    return Trap(url=url, moment=moment, function=function, in_task=in_task, victim="driver", number=number)


def kill(job: str, settings: Settings, folder: Path, trap: Trap) -> None:
    code, said = run_job(job, settings, folder, trap, in_tasks=trap.in_task)
    assert code == -signal.SIGKILL, said


def check_readers(job: str, settings: Settings, stores: Stores) -> None:
    """What they see is the store before the job or after it, whole."""
    before, after = stores.around(job)
    if before is None and not (Path(settings.store_url) / "_MANIFEST.json").exists():
        with pytest.raises(DataContractError, match="nothing is published here yet"):
            SequenceStore.open(settings.store_url)
        return
    seen = content_of(settings.store_url)
    assert seen.equals(after.content) or (before is not None and seen.equals(before.content))


def finish(job: str, settings: Settings, stores: Stores) -> None:
    """Run the same command, undisturbed this time; then nothing tells that there was a kill."""
    JOBS[job].run(settings)
    check_finished(settings.store_url, stores.around(job)[1])


@pytest.mark.parametrize("job", ["build_sequences", "append"])
def test_a_job_that_was_killed_goes_on_with_larger_runs(job: str, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin(job, tmp_path / "run", IN_TASKS)
    kill(job, settings, tmp_path, at("_work/.*/buckets[^/]*/", "after", number=5))
    finish(job, stores.settings(tmp_path / "run", job, ON_THREADS), stores)


RUNS = (
    at("/run=", "before", in_task=True),
    at("/marks/", "before", in_task=True),
    at("/marks/", "after", in_task=True),
)
BUCKETS = (
    at("/bucket=", "before", in_task=True),
    at("_work/.*/buckets[^/]*/", "before", in_task=True),
    at("_work/.*/buckets[^/]*/", "after", in_task=True),
)
"""Before a file, between it and the mark that names it, and after the mark."""


@pytest.mark.parametrize(
    ("job", "traps"),
    [
        ("build_sequences", (*RUNS[1:], *BUCKETS[1:])),
        pytest.param("append", (RUNS[0], BUCKETS[1]), marks=pytest.mark.faults),
        ("compact", BUCKETS[:1]),
    ],
    ids=["build_sequences", "append", "compact"],
)
def test_a_job_whose_driver_is_killed_again_and_again_while_tasks_run(
    job: str, traps: tuple[Trap, ...], stores: Stores, tmp_path: Path
) -> None:
    settings = stores.begin(job, tmp_path / "run", IN_TASKS)
    for trap in traps:
        kill(job, settings, tmp_path, trap)
        check_readers(job, settings, stores)
    finish(job, settings, stores)


BEFORE_PUBLISHING = (
    at("tables/", "after"),
    at("tables/quality_report", "after"),
    at("_snapshots/", "before", "create_bytes"),
)
PUBLISHED = (
    at("_snapshots/", "after", "create_bytes"),
    at("_MANIFEST.json", "after"),
    at("quality_report.json", "after"),
    at("_work", "before", "delete_folder"),
)


def named(trap: Trap) -> str:
    return f"{trap.moment} {trap.function} {trap.url} {trap.number}".removesuffix(" 1")


def publishing(job: str, traps: tuple[Trap, ...], *marks: pytest.MarkDecorator) -> list[ParameterSet]:
    return [pytest.param(job, trap, id=f"{job} {named(trap)}", marks=marks) for trap in traps]


@pytest.mark.parametrize(
    ("job", "trap"),
    [
        *publishing("build_sequences", BEFORE_PUBLISHING),
        *publishing("build_sequences", PUBLISHED),
        *publishing("compact", BEFORE_PUBLISHING[2:] + PUBLISHED),
    ],
)
def test_a_job_whose_driver_is_killed_while_it_publishes(
    job: str, trap: Trap, stores: Stores, nearly_done: dict[str, Path], tmp_path: Path
) -> None:
    settings = stores.settings(tmp_path / "run", job, IN_TASKS)
    shutil.copytree(nearly_done[job], tmp_path / "run")
    kill(job, settings, tmp_path, trap)
    check_readers(job, settings, stores)
    finish(job, settings, stores)


ON_THE_WAY = (
    at("_lock/", "after", "create_bytes"),
    at("/quarantine/", "after"),
    at("/run=", "before"),
    at("/marks/", "before"),
    at("/marks/", "after"),
    at("/bucket=", "before"),
    at("/bucket=", "after"),
    at("/bucket=", "after", number=4),
)


@pytest.mark.parametrize(
    ("job", "trap"),
    publishing("append", ON_THE_WAY + BEFORE_PUBLISHING) + publishing("append", PUBLISHED),
)
def test_an_append_on_threads_that_is_killed(job: str, trap: Trap, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin(job, tmp_path / "run", ON_THREADS)
    kill(job, settings, tmp_path, trap)
    check_readers(job, settings, stores)
    finish(job, settings, stores)


ERASING = (
    at("tombstones", "before"),
    at("tombstones", "after"),
    at("/bucket=", "after"),
    at("_snapshots/", "before", "create_bytes"),
    at("_snapshots/", "after", "create_bytes"),
    at("_MANIFEST.json", "after"),
    at("_snapshots/", "after", "delete_file"),
    at("/bucket=", "after", "delete_file", number=2),
    at("/receipts/", "before"),
)


@pytest.mark.parametrize("trap", ERASING, ids=named)
def test_an_erasure_that_is_killed(trap: Trap, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("forget", tmp_path / "run", ON_THREADS)
    assert files_with(settings.run_dir, FORGOTTEN)
    kill("forget", settings, tmp_path, trap)
    check_readers("forget", settings, stores)
    finish("forget", settings, stores)
    assert files_with(settings.run_dir, FORGOTTEN) == {}
    assert len(list(tmp_path.glob("run/receipts/*.json"))) == 1
    append.run(stores.settings(tmp_path / "run", "build_sequences", ON_THREADS))
    assert files_with(settings.run_dir, FORGOTTEN) == {}, "they do not come back"


@pytest.mark.parametrize("trap", [at("/run=", "after"), at("/bucket=", "after")], ids=named)
def test_an_erasure_after_an_append_that_was_killed(trap: Trap, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    kill("append", settings, tmp_path, trap)
    forget.run(settings)
    assert files_with(settings.run_dir, FORGOTTEN) == {}
    append.run(settings)
    assert files_with(settings.run_dir, FORGOTTEN) == {}
    assert content_of(settings.store_url).equals(stores.outcomes["forget"].content)


@pytest.mark.parametrize("job", ["build_sequences", pytest.param("append", marks=pytest.mark.faults)])
def test_workers_killed_wherever_they_are_are_replaced(
    job: str, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stores.begin(job, tmp_path / "run", IN_TASKS)
    points: list[tuple[str, Literal["before", "after"]]] = [
        ("/run=000000", "before"),
        ("/run=000001", "after"),
        ("/marks/000002", "before"),
        ("/marks/000003", "after"),
        ("/quarantine/.*000004", "after"),
        ("/bucket=00000/", "before"),
        ("/bucket=00001/", "after"),
        ("/buckets[^/]*/00002", "before"),
        ("/buckets[^/]*/00003", "after"),
        ("/buckets[^/]*/00004", "before"),
    ]
    here = re.escape(settings.store_url)
    traps = [
        Trap(url=f"{here}.*{url}", moment=moment, in_task=True, marker=str(tmp_path / f"sprung-{number}"))
        for number, (url, moment) in enumerate(points)
    ]
    watch_tasks(traps, monkeypatch.setattr)
    finish(job, settings, stores)
    assert len(list(tmp_path.glob("sprung-*"))) == len(traps), "ten workers were killed, each where it should be"
