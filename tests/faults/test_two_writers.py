"""Two writers at one store (T26, T27): one writes, the other is told who does, and nothing is touched by it.

A writer is held up by SIGSTOP at a moment of its own, so no test depends on who is faster.
"""

import json
import re
import signal
import time
from pathlib import Path
from typing import Literal

import pytest

from data_io import storage
from data_io.store import SequenceStore
from ray_jobs import compact
from ray_jobs.config import Settings
from tests.store_jobs import Job, Trap, run_job, start_job, wait_until
from tests.undisturbed import Stores, check_finished, check_outcome, tree_of

pytestmark = pytest.mark.usefixtures("joined")

ON_THREADS = 100_000
SHORT_LEASE_S = 0.5


def stop_at(url: str, moment: Literal["before", "after"], function: str = "write_bytes") -> Trap:
    return Trap(url=url, moment=moment, function=function, sign=signal.SIGSTOP)


def start_and_stop(job: str, settings: Settings, folder: Path, trap: Trap, lease_s: float | None = None) -> Job:
    """A job that sleeps at a moment of its own."""
    writer = start_job(job, settings, folder, trap, lease_s=lease_s)
    writer.wait_until_stopped()
    return writer


def of_other_buckets(settings: Settings) -> Settings:
    return settings.model_copy(update={"store": settings.store.model_copy(update={"num_buckets": 3})})


BEGUN = stop_at("_lock/", "after", "create_bytes")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("build_sequences", "build_sequences"),
        ("append", "append"),
        ("append", "compact"),
        ("append", "forget"),
        ("compact", "append"),
    ],
)
def test_the_second_writer_is_told_who_holds_the_store(first: str, second: str, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin(first, tmp_path / "run", ON_THREADS)
    writer = start_and_stop(first, settings, tmp_path, BEGUN)
    before = tree_of(settings.run_dir)
    code, said = run_job(second, settings, tmp_path)
    assert code == 2, said
    assert re.search(rf"{first} \(process {writer.pid} on .+\) is writing here; let it finish", said)
    assert tree_of(settings.run_dir) == before, "nothing is touched"
    assert writer.go_on() == 0, writer.said
    check_finished(settings.store_url, stores.outcomes[first])
    code, said = run_job(second, settings, tmp_path)
    assert code == 0, said


def test_a_build_of_other_settings_waits_and_is_then_refused(stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("build_sequences", tmp_path / "run", ON_THREADS)
    writer = start_and_stop("build_sequences", settings, tmp_path, BEGUN)
    code, said = run_job("build_sequences", of_other_buckets(settings), tmp_path)
    assert code == 2
    assert "is writing here" in said
    assert writer.go_on() == 0, writer.said
    before = tree_of(settings.run_dir)
    code, said = run_job("build_sequences", of_other_buckets(settings), tmp_path)
    assert code == 2
    assert "of other settings or input" in said
    assert tree_of(settings.run_dir) == before
    check_finished(settings.store_url, stores.outcomes["build_sequences"])


def test_a_build_while_an_append_runs_touches_nothing(stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    build = stores.settings(tmp_path / "run", "build_sequences", ON_THREADS)
    writer = start_and_stop("append", settings, tmp_path, stop_at("/bucket=", "before"))
    before = tree_of(settings.run_dir)
    assert run_job("build_sequences", build, tmp_path)[0] == 0, "it was built, and to build it again is nothing to do"
    code, said = run_job("build_sequences", of_other_buckets(build), tmp_path)
    assert (code, "of other settings or input" in said) == (2, True)
    assert tree_of(settings.run_dir) == before
    assert writer.go_on() == 0, writer.said
    check_finished(settings.store_url, stores.outcomes["append"])


@pytest.mark.parametrize("job", ["build_sequences", "append"])
def test_of_writers_that_begin_at_the_same_moment_one_writes(job: str, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin(job, tmp_path / "run", ON_THREADS)
    writers = [start_job(job, settings, tmp_path) for _ in range(4)]
    codes = [writer.wait() for writer in writers]
    assert 0 in codes
    for code, writer in zip(codes, writers, strict=True):
        assert code == 0 or (code == 2 and ("is writing here" in writer.said or "at the same moment" in writer.said))
    check_finished(settings.store_url, stores.outcomes[job])
    snapshot = SequenceStore.open(settings.store_url).manifest["snapshot"]
    assert snapshot == (0 if job == "build_sequences" else 1), "published once"


@pytest.mark.parametrize("job", ["build_sequences", "append", "compact"])
def test_a_command_given_again_after_success_does_nothing(job: str, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin(job, tmp_path / "run", ON_THREADS)
    trees = []
    for _ in range(2):
        code, said = run_job(job, settings, tmp_path)
        assert code == 0, said
        trees.append({name: content for name, content in tree_of(settings.store_url).items() if "_lock/" not in name})
    assert trees[0] == trees[1]


def let_lease_expire(settings: Settings) -> None:
    locks = Path(settings.store_url) / "_lock"

    def is_free() -> bool:
        held = [json.loads(file.read_text())["expires_at"] for file in locks.glob("[0-9]*.json")]
        return time.time() > max(held)

    wait_until(is_free, "the lease of a writer that sleeps does not end")


def overtake(moment: Trap, overtaker: str, settings: Settings, folder: Path) -> tuple[int, str]:
    """Exit code and output of an append that slept past its lease while another job did its work."""
    writer = start_and_stop("append", settings, folder, moment, SHORT_LEASE_S)
    let_lease_expire(settings)
    code, said = run_job(overtaker, settings, folder)
    assert code == 0, said
    return writer.go_on(), writer.said


ASLEEP = [
    pytest.param(stop_at("/run=", "before"), id="before a run"),
    pytest.param(stop_at("/marks/", "before"), id="between run and mark"),
    pytest.param(stop_at("/bucket=", "before"), id="among parts"),
    pytest.param(stop_at("tables/", "before"), id="before the tables"),
    pytest.param(stop_at("_snapshots/", "before", "create_bytes"), id="before the snapshot"),
]


@pytest.mark.parametrize("moment", ASLEEP)
def test_a_writer_that_slept_past_its_lease_does_not_publish(moment: Trap, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    code, said = overtake(moment, "append", settings, tmp_path)
    assert SequenceStore.open(settings.store_url).manifest["snapshot"] == 1
    check_outcome(settings.store_url, stores.outcomes["append"])
    assert code == 2, said
    assert "slept past its lease" in said or "another job has published snapshot 1 meanwhile" in said


def test_what_an_overtaken_writer_leaves_goes_with_the_next_job(stores: Stores, tmp_path: Path) -> None:
    """It leaves a part where it wrote one before it saw that its lease was gone."""
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    overtake(stop_at("/bucket=", "before"), "append", settings, tmp_path)
    compact.run(settings)
    check_finished(settings.store_url, stores.outcomes["compact"])


@pytest.mark.parametrize(
    ("moment", "retain_hours"),
    [
        pytest.param(stop_at("_snapshots/", "after", "create_bytes"), 24, id="before readers see it"),
        pytest.param(stop_at("quality_report.json", "after"), 24, id="before it tidies"),
        pytest.param(stop_at("quality_report.json", "after"), 0, id="before it tidies at once"),
    ],
)
def test_a_writer_that_fell_asleep_while_it_published_undoes_nothing(
    moment: Trap, retain_hours: int, stores: Stores, tmp_path: Path
) -> None:
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    store = settings.store.model_copy(update={"retain_hours": retain_hours})
    settings = settings.model_copy(update={"store": store})
    overtake(moment, "forget", settings, tmp_path)
    assert SequenceStore.open(settings.store_url).manifest["snapshot"] == 2, "what the other job published is seen"
    check_outcome(settings.store_url, stores.outcomes["forget"])
    assert len(storage.list_files(storage.join(settings.store_url, "_snapshots"))) == 1
