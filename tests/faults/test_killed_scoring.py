"""Scoring that is killed (T3, T26, T30, T31): every user is scored once, and readers never see a part."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from data_io import storage
from data_io.buckets import WORK, iter_buckets
from data_io.config import SyntheticSettings
from data_io.lease import OutputLockedError, write_lease
from data_io.snapshots import MANIFEST_NAME, SNAPSHOTS, read_manifest
from data_io.synthetic import generate_events
from ray_jobs import build_sequences, rollback, score_users
from ray_jobs.score_users import PublishRefusedError
from tests.faults.scoring_shop import NUM_BUCKETS, NUM_USERS, make_settings, marks_of, publish_encoder
from tests.faults.test_killed_jobs import kill_when

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def shop(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a store and an encoder, to be copied; nothing is scored."""
    folder = tmp_path_factory.mktemp("shop")
    events = generate_events(SyntheticSettings(num_users=NUM_USERS, num_items=80, num_days=40))
    storage.write_parquet(str(folder / "log/0.parquet"), events)
    store = build_sequences.run(make_settings(folder))
    publish_encoder(folder, store.vocabulary, seed=0)
    return folder


@pytest.fixture
def run_folder(shop: Path, tmp_path: Path) -> Path:
    """A run of its own, not scored yet, on the store and the encoder of the module."""
    for name in ("log", "store", "encoder"):
        (tmp_path / name).symlink_to(shop / name)
    return tmp_path


def rows_of(folder: Path) -> Rows:
    return pa.concat_tables(iter_buckets(str(folder / "scores"))).to_pylist()


@pytest.fixture(scope="module")
def expected(shop: Path) -> Rows:
    """What an undisturbed run writes."""
    score_users.run(make_settings(shop))
    rows = rows_of(shop)
    users = [row["user_id"] for row in rows]
    assert len(users) == len(set(users)) == NUM_USERS
    return rows


def check_whole(folder: Path, expected: Rows) -> None:
    """The output equals the undisturbed one, and nothing that attempts left is there."""
    assert rows_of(folder) == expected
    assert not (folder / "scores" / WORK).exists()
    assert len(list((folder / "scores").rglob("*.parquet"))) == NUM_BUCKETS


class Reader(threading.Thread):
    """Reads the scores again and again; whatever it sees is whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.seen, self.stops = folder, set[str](), threading.Event()
        self.torn: list[str] = []

    def run(self) -> None:
        while not self.stops.wait(0.02):
            if (self.folder / "scores" / MANIFEST_NAME).exists():
                rows = rows_of(self.folder)
                versions = {row["model_version"] for row in rows}
                self.seen |= versions
                if len(rows) != NUM_USERS or len(versions) != 1:
                    self.torn.append(f"{len(rows)} rows of {versions}")

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stops.set()
        self.join()


def scorers() -> list[psutil.Process]:
    """Processes of this cluster that score; Ray names them by what they run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        name = " ".join(process.info["cmdline"] or [])
        if name.startswith("ray::") and "MapWorker" in name:
            found.append(process)
    return found


def kill_scorers(folder: Path, times: int, killed: list[int], done: threading.Event) -> None:
    """SIGKILL a scorer at some moment after each of so many numbers of marks."""
    dice = random.Random(0)
    for number in range(times):
        while len(marks_of(folder)) < number * 3 and not done.is_set():
            time.sleep(0.001)
        while not done.is_set():
            alive = scorers()
            if alive:
                time.sleep(dice.random() * 0.05)
                victim = dice.choice(alive)
                try:
                    victim.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                killed.append(victim.pid)
                victim.wait(10)
                break


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_scorers_killed_five_times_in_a_run(run_folder: Path, expected: Rows) -> None:
    killed: list[int] = []
    done = threading.Event()
    harm = threading.Thread(target=kill_scorers, args=(run_folder, 5, killed, done))
    harm.start()
    try:
        score_users.run(make_settings(run_folder))
    finally:
        done.set()
        harm.join()
    assert len(killed) == 5
    check_whole(run_folder, expected)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_driver_killed_five_times_while_others_read(shop: Path, run_folder: Path, expected: Rows) -> None:
    settings = make_settings(run_folder)
    score_users.run(settings)
    vocabulary = build_sequences.run(make_settings(shop)).vocabulary
    (run_folder / "encoder").unlink()
    publish_encoder(run_folder, vocabulary, seed=1)
    with Reader(run_folder) as reader:
        for number in range(5):
            # all but the last leave buckets to the next
            kill_when(
                "score_users", settings, run_folder, lambda least=4 * number + 1: len(marks_of(run_folder)) >= least
            )
            assert reader.seen <= {"of 0"}, "readers see what was published before"
        score_users.run(settings)
    assert not reader.torn
    rows = rows_of(run_folder)
    assert {row["model_version"] for row in rows} == {"of 1"}
    assert [row["user_id"] for row in rows] == [row["user_id"] for row in expected]
    rollback.run(settings)
    assert rows_of(run_folder) == expected, "those before are still there"


@pytest.mark.faults
def test_a_node_that_is_lost_costs_nobody_the_scores(run_folder: Path, expected: Rows) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.faults.lost_scoring_node", str(run_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
    assert int((run_folder / "lost").read_text()) < NUM_BUCKETS, "in the middle"
    check_whole(run_folder, expected)


def fail_on(span: object) -> None:
    pytest.fail(f"{span} was done again")


def die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_cluster")
def test_killed_between_the_last_mark_the_snapshot_and_the_pointer(
    run_folder: Path, expected: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(run_folder)
    scores = run_folder / "scores"
    with monkeypatch.context() as patch:
        patch.setattr("data_io.buckets.publish_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            score_users.run(settings)
    assert len(marks_of(run_folder)) == NUM_BUCKETS
    assert not (scores / MANIFEST_NAME).exists(), "readers see nothing"
    torn = next(scores.glob("run=*/bucket=00003/*.parquet"))
    torn.with_name("part-twin.parquet").write_bytes(torn.read_bytes())  # a move that was cut leaves both
    write_json = storage.write_json

    def die_at_the_pointer(url: str, content: dict[str, Any]) -> None:
        if url.endswith(MANIFEST_NAME):
            raise KeyboardInterrupt
        write_json(url, content)

    with monkeypatch.context() as patch:
        patch.setattr("data_io.storage.write_json", die_at_the_pointer)
        patch.setattr("ray_jobs.score_users.map_actors", lambda _, __, spans, ___: iter(map(fail_on, spans)))
        with pytest.raises(KeyboardInterrupt):
            score_users.run(settings)
    assert len(list((scores / SNAPSHOTS).iterdir())) == 1
    assert not (scores / MANIFEST_NAME).exists()
    score_users.run(settings)
    assert rows_of(run_folder) == expected
    score_users.run(settings)
    assert len(list((scores / SNAPSHOTS).iterdir())) == 1, "a run that is done is not done again"


@pytest.mark.usefixtures("ray_cluster")
def test_a_second_run_is_refused_while_one_is_at_work(run_folder: Path) -> None:
    settings = make_settings(run_folder)
    with write_lease(str(run_folder / "scores"), "score_users"), pytest.raises(OutputLockedError, match="score_users"):
        score_users.run(settings)
    assert not list((run_folder / "scores").rglob("*.parquet"))


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_gate_keeps_readers_at_what_was_published_and_rollback_goes_back(shop: Path, run_folder: Path) -> None:
    score_users.run(make_settings(run_folder))
    before = rows_of(run_folder)
    vocabulary = build_sequences.run(make_settings(shop)).vocabulary
    (run_folder / "encoder").unlink()
    publish_encoder(run_folder, vocabulary, seed=1)
    with pytest.raises(PublishRefusedError, match=r"overlap 0\.\d+ .* is below min_overlap 0\.99\. Readers still see"):
        score_users.run(make_settings(run_folder, gate={"min_overlap": 0.99}))
    assert rows_of(run_folder) == before
    written = {path: path.stat().st_mtime_ns for path in (run_folder / "scores").rglob("*.parquet")}
    score_users.run(make_settings(run_folder, gate={"min_overlap": 0.0, "min_coverage": 1.0}))
    assert written == {path: path.stat().st_mtime_ns for path in (run_folder / "scores").rglob("*.parquet")}
    figures = read_manifest(str(run_folder / "scores"))
    assert 0 < figures["overlap"] < 0.99
    assert figures["drift"] > 0
    assert rows_of(run_folder) != before
    rollback.run(make_settings(run_folder))
    assert rows_of(run_folder) == before
