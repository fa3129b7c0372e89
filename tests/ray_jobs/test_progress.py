"""Progress: a line now and then, with what is done and what is left."""

from dataclasses import dataclass

import pytest

from ray_jobs.progress import Progress, describe_seconds, say


@dataclass
class Clock:
    """A clock the test turns."""

    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ray_jobs.progress.time", clock)
    return clock


def test_say_writes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("convert: done")
    assert capsys.readouterr().out == "convert: done\n"


@pytest.mark.usefixtures("clock")
def test_fast_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("pretrain", 100, "steps")
    for _ in range(100):
        progress.advance()
    assert capsys.readouterr().out == ""


def test_a_line_tells_what_is_done_and_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("pretrain: epoch 1", 4_000, "steps")
    clock.now += 10
    progress.advance(1_000, note="loss 3.2100")
    assert capsys.readouterr().out == "pretrain: epoch 1: 1,000 of 4,000 steps, 30 s left, loss 3.2100\n"


def test_lines_are_seconds_apart(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score_users", 100, "users")
    for _ in range(12):
        clock.now += 1
        progress.advance()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["score_users: 5 of 100 users", "score_users: 10 of 100 users"]


def test_nothing_done_yet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("score_users", 100, "users")
    clock.now += 60
    progress.advance(0)
    assert capsys.readouterr().out == ""


def test_seconds_are_counted_from_the_start(clock: Clock) -> None:
    progress = Progress("demo", 0, "jobs")
    clock.now += 90
    assert progress.seconds == 90


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5_999, "100 min"), (6_000, "1.7 h"), (36_000, "10.0 h")],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words
