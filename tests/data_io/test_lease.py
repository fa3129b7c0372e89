"""The lease: one writer at a time, none that died in the way of the next, and one that was overtaken finds out."""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_io import lease as lease_module
from data_io import storage
from data_io.lease import LOCK, Lease, OutputLockedError, write_lease

HOLD = """
import sys
from data_io.lease import write_lease
with write_lease(sys.argv[1], "the other job"):
    print("held", flush=True)
    sys.stdin.read()
"""


def locks(folder: Path) -> list[Path]:
    return sorted((folder / LOCK).glob("*.json"))


def read_lock(folder: Path) -> dict[str, Any]:
    return json.loads(locks(folder)[-1].read_text())


def write_lock(folder: Path, number: int, expires_in_s: float, **changes: Any) -> Path:
    """A lock as a writer on another machine leaves it."""
    place = {"host": "elsewhere", "boot": "b", "namespace": "n"}
    lock = {"job": "append", "place": place, "pid": 1, "token": "t", "expires_at": time.time() + expires_in_s}
    path = folder / LOCK / f"{number:08d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(lock | changes))
    return path


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def refusal(folder: Path) -> str:
    """What a writer is told that would take the folder now; nothing where it gets it."""
    try:
        with write_lease(str(folder), "probe"):
            return ""
    except OutputLockedError as error:
        return str(error)


def is_free(folder: Path) -> bool:
    return not refusal(folder)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def test_who_holds_the_folder_stands_in_its_lock(tmp_path: Path) -> None:
    with write_lease(str(tmp_path), "append", lease_s=60) as lease:
        lease.check()
        lock = read_lock(tmp_path)
        assert (lock["job"], lock["pid"], lock["place"]["host"]) == ("append", os.getpid(), socket.gethostname())
        assert time.time() < lock["expires_at"] <= time.time() + 60
    assert read_lock(tmp_path)["expires_at"] == 0


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    host = socket.gethostname()
    with write_lease(str(tmp_path), "append"):
        message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: append (process {os.getpid()} on {host}) is writing here; let it finish.")


def test_the_message_says_when_the_folder_is_free(tmp_path: Path) -> None:
    write_lock(tmp_path, 1, 42.2)
    assert refusal(tmp_path).endswith(
        "on elsewhere) is writing here; let it finish. If it was killed, the folder is free in 42 s"
    )


def test_a_released_folder_is_free_at_once_and_its_locks_do_not_pile_up(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with write_lease(str(tmp_path), "append"):
            assert [path.name for path in locks(tmp_path)] == [f"{number:08d}.json"]


def test_a_job_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_lease(str(tmp_path), "append"):
        _ = 1 / 0
    assert is_free(tmp_path)


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    before = threading.active_count()
    with write_lease(str(tmp_path), "append"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("expires_in_s", [-0.001, -1e9])
def test_an_expired_lease_is_taken_over(tmp_path: Path, expires_in_s: float) -> None:
    write_lock(tmp_path, 7, expires_in_s)
    with write_lease(str(tmp_path), "append") as lease:
        assert lease.number == 8
        assert [path.name for path in locks(tmp_path)] == ["00000008.json"]


def test_a_process_of_another_machine_is_never_taken_for_dead(tmp_path: Path) -> None:
    write_lock(tmp_path, 1, 600, pid=2**22 + 1)  # more than any process number of this one
    assert not is_free(tmp_path)


def test_a_living_process_of_this_machine_keeps_its_lease(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert f"the other job (process {holder.pid} on " in refusal(tmp_path)
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait()
    assert is_free(tmp_path)


def test_a_killed_process_of_this_machine_is_in_nobody_s_way(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    left = read_lock(tmp_path)["expires_at"] - time.time()
    assert left > 10, "its lease has not expired"
    with write_lease(str(tmp_path), "append") as lease:
        lease.check()
        assert lease.number == 2


def test_a_lease_is_renewed_for_as_long_as_the_job_runs(tmp_path: Path) -> None:
    with write_lease(str(tmp_path), "append", lease_s=0.3) as lease:
        first = read_lock(tmp_path)["expires_at"]
        wait_for(lambda: time.time() > first)
        assert not is_free(tmp_path)
        assert read_lock(tmp_path)["expires_at"] > first
        lease.check()


def test_a_job_that_was_overtaken_finds_out_and_leaves_the_other_s_lock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "renew_until_ended", lambda *_: None)  # as if the process was stopped
    with write_lease(str(tmp_path), "sleeper", lease_s=0.05) as sleeper:
        first = read_lock(tmp_path)["expires_at"]
        wait_for(lambda: time.time() > first)
        with write_lease(str(tmp_path), "next") as following:
            lock = locks(tmp_path)[-1].read_bytes()
            with pytest.raises(OutputLockedError, match="slept past its lease and another one has taken over; nothing"):
                sleeper.check()
            sleeper.end()
            assert locks(tmp_path)[-1].read_bytes() == lock
            following.check()
            assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_a_job_that_was_overtaken_stops_renewing(tmp_path: Path) -> None:
    with write_lease(str(tmp_path), "sleeper", lease_s=0.06) as sleeper:
        path = write_lock(tmp_path, sleeper.number + 1, 600)
        wait_for(lambda: not any("renew_until_ended" in thread.name for thread in threading.enumerate()))
        assert json.loads(path.read_text())["job"] == "append"
    assert json.loads(path.read_text())["expires_at"] > time.time(), "its end does not end the other's lease"


@pytest.mark.parametrize("before", [None, 5], ids=["never held", "an expired lease"])
def test_of_many_writers_at_once_exactly_one_gets_the_folder(tmp_path: Path, before: int | None) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if before:
            write_lock(folder, before, -1)
        assert sorted(race(folder, 6)) == ["got it", *["refused"] * 5]
        assert len(locks(folder)) == 1


def race(folder: Path, num_writers: int) -> list[str]:
    """What became of each of some threads that take the folder at the same moment and hold it until all have tried."""
    start, end = threading.Barrier(num_writers), threading.Barrier(num_writers)
    outcomes: list[str] = []

    def write() -> None:
        start.wait(timeout=20)
        try:
            with write_lease(str(folder), "append"):
                outcomes.append("got it")
                end.wait(timeout=20)
        except OutputLockedError:
            outcomes.append("refused")
            end.wait(timeout=20)

    writers = [threading.Thread(target=write) for _ in range(num_writers)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=30)
    return outcomes


def test_a_writer_that_lost_the_race_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_json", lambda *_: False)
    assert refusal(tmp_path) == f"{tmp_path}: another job began to write here at the same moment; let it finish"


def test_a_writer_that_looked_long_before_it_took_a_number_does_not_get_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its number two others came and went past, so that the number it takes is free again."""
    write_lock(tmp_path, 3, -1)
    monkeypatch.setattr(lease_module, "_refuse_if_held", lambda *_: write_lock(tmp_path, 5, 600))
    with pytest.raises(OutputLockedError, match="at the same moment"), write_lease(str(tmp_path), "late"):
        pass
    assert read_lock(tmp_path)["expires_at"] > time.time()


def test_the_refusal_survives_a_pickle_round_trip() -> None:
    copy = pickle.loads(pickle.dumps(OutputLockedError("who and until when")))
    assert type(copy) is OutputLockedError
    assert str(copy) == "who and until when"
