"""Splits: cutoffs from shares or as given, and histories that end strictly before them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_io.config import LeaveOneOut, TimeSplit
from data_io.schema import DataContractError
from data_io.splits import Cutoffs, LastTargets, Stage, ends_before, history_ends, resolve_split, target_ends
from data_io.store import MINUTE_US

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
USERS = st.lists(st.lists(st.integers(-3, 9), max_size=5).map(sorted), max_size=4)
MINUTES = np.arange(100, 110)


def explicit(validation: datetime, test: datetime) -> TimeSplit:
    return TimeSplit(validation_cutoff_time=validation, test_cutoff_time=test)


def at_minute(minute: float) -> datetime:
    return EPOCH + timedelta(minutes=minute)


def resolve(split: TimeSplit, counts: list[int] | None = None) -> Cutoffs:
    cutoffs = resolve_split(split, MINUTES, np.array(counts or [1] * 10, np.uint32))
    assert cutoffs is not None
    return cutoffs


@given(USERS, st.integers(-4, 10), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_event_at_or_after_the_cutoff_enters_a_history(
    make_sequences: Callable, users: list[list[int]], validation: int, between: int
) -> None:
    sequences = make_sequences(*([(time, 2) for time in user] for user in users))
    cutoffs = Cutoffs(validation=validation, test=validation + between, end=100)
    for stage, cutoff in (("validation", cutoffs.validation), ("test", cutoffs.test)):
        lengths = history_ends(sequences, cutoffs, stage) - sequences.starts
        assert lengths.tolist() == [sum(time < cutoff for time in user) for user in users]
    lengths = target_ends(sequences, cutoffs, "validation") - history_ends(sequences, cutoffs, "validation")
    assert lengths.tolist() == [sum(validation <= time < cutoffs.test for time in user) for user in users]
    assert target_ends(sequences, cutoffs, "test").tolist() == sequences.ends.tolist()


def test_an_event_at_the_very_cutoff_is_a_target(make_sequences: Callable) -> None:
    sequences = make_sequences([(9, 2), (10, 3), (11, 4)], [], [(10, 2), (10, 3)])
    assert ends_before(sequences, 10).tolist() == [1, 3, 3]


@pytest.mark.parametrize(
    ("stage", "histories"), [("validation", [["a"], [], [], []]), ("test", [["a", "b"], [], ["e"], []])]
)
def test_leave_one_out_holds_out_the_last_events(
    make_sequences: Callable, stage: Stage, histories: list[list[str]]
) -> None:
    sequences = make_sequences([(1, 2), (2, 3), (3, 4)], [(1, 2)], [(1, 2), (2, 3)], [])
    ends = history_ends(sequences, None, stage)
    spans = zip(sequences.starts, ends, strict=True)
    assert [list("abcdef"[start:end]) for start, end in spans] == histories
    assert (target_ends(sequences, None, stage) - ends).tolist() == [1, 1, 1, 0]


def test_leave_one_out_needs_no_cutoffs() -> None:
    assert resolve_split(LeaveOneOut(), MINUTES, np.ones(10)) is None
    assert resolve_split(LeaveOneOut(), MINUTES, np.ones(10), np.array([3, 5])) == LastTargets(actions=(3, 5))


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(2, 4)), max_size=7), max_size=4))
@settings(max_examples=60, deadline=None)
def test_with_target_actions_the_last_two_of_their_events_are_held_out(
    make_sequences: Callable, users: list[list[tuple[int, int]]]
) -> None:
    sequences = make_sequences(*([(time, *event) for time, event in enumerate(user)] for user in users))
    split = LastTargets(actions=(3, 4))
    for stage, from_last in (("validation", 2), ("test", 1)):
        expected = []
        for user in users:
            targets = [place for place, (item, action) in enumerate(user) if item != 0 and action in (3, 4)]
            held_out = len(targets) >= 2
            history = targets[-from_last] if held_out else len(user)
            expected.append((history, history + 1 if held_out else len(user)))
        found = (ends(sequences, split, stage) - sequences.starts for ends in (history_ends, target_ends))
        assert list(zip(*(lengths.tolist() for lengths in found), strict=True)) == expected


def test_shares_become_cutoffs_at_the_end_of_a_minute() -> None:
    cutoffs = resolve(TimeSplit(validation_share=0.25, test_share=0.25), [1, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    assert cutoffs == Cutoffs(validation=105 * MINUTE_US, test=108 * MINUTE_US, end=110 * MINUTE_US)
    busy = resolve(TimeSplit(validation_share=0.25, test_share=0.25), [60, 1, 1, 1, 20, 1, 1, 1, 1, 13])
    assert (busy.validation, busy.test) == (101 * MINUTE_US, 105 * MINUTE_US)


@example(datetime(2004, 2, 1, 0, 0, 0, 480))
@given(st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)))
@settings(max_examples=40, deadline=None)
def test_explicit_cutoffs_are_taken_to_the_microsecond(moment: datetime) -> None:
    micros = (moment.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    log = np.array([0, micros // MINUTE_US, 10**9])
    cutoffs = resolve_split(explicit(moment, moment + timedelta(microseconds=1)), log, np.ones(3))
    assert cutoffs is not None
    assert (cutoffs.validation, cutoffs.test) == (micros, micros + 1)


def test_explicit_cutoffs_with_and_without_a_zone_mean_the_same_moment() -> None:
    naive = explicit(at_minute(103).replace(tzinfo=None), at_minute(106).replace(tzinfo=None))
    elsewhere = explicit(
        datetime.fromisoformat("1970-01-01T03:43:00+02:00"), datetime.fromisoformat("1970-01-01T03:46:00+02:00")
    )
    assert resolve(naive) == resolve(elsewhere) == resolve(explicit(at_minute(103), at_minute(106)))


def test_one_cutoff_with_a_zone_and_one_without_are_both_utc() -> None:
    mixed = explicit(at_minute(103).replace(tzinfo=None), at_minute(106))
    assert resolve(mixed) == resolve(explicit(at_minute(103), at_minute(106)))


@pytest.mark.parametrize(("validation", "test"), [(90, 105), (105, 110), (105, 200)])
def test_a_cutoff_outside_the_log_is_refused_with_both_ends_of_the_log(validation: int, test: int) -> None:
    message = (
        r"the time split leaves a part without events: log from 1970-01-01T01:40:00\+00:00 "
        r"to 1970-01-01T01:50:00\+00:00, validation cutoff .*, test cutoff .*; set split\.validation_cutoff_time"
    )
    with pytest.raises(DataContractError, match=message):
        resolve(explicit(at_minute(validation), at_minute(test)))


def test_explicit_cutoffs_with_no_event_between_them_are_refused() -> None:
    minutes = np.array([100, 101, 150, 151])
    with pytest.raises(DataContractError, match="the time split leaves a part without events"):
        resolve_split(explicit(at_minute(110), at_minute(140)), minutes, np.ones(4))


def test_a_log_of_one_busy_minute_cannot_be_split() -> None:
    with pytest.raises(DataContractError, match="the time split leaves a part without events"):
        resolve_split(TimeSplit(), np.array([7]), np.array([1_000]))


def test_cutoffs_are_described_as_text() -> None:
    cutoffs = Cutoffs(validation=0, test=MINUTE_US, end=2 * MINUTE_US)
    assert cutoffs.describe()["test"] == "1970-01-01T00:01:00+00:00"
    assert (cutoffs.of("validation"), cutoffs.of("test")) == (0, MINUTE_US)


def test_all_actions_as_targets_hold_out_the_last_two_events_with_an_item(make_sequences: Callable) -> None:
    sequences = make_sequences([(1, 2), (2, 3), (3, 4)], [(1, 2), (2, 3)])
    for stage in ("validation", "test"):
        for ends in (history_ends, target_ends):
            assert ends(sequences, LastTargets(actions=(2,)), stage).tolist() == ends(sequences, None, stage).tolist()
