"""Examples: spans that see the past only, windows that ask each event once, targets as a loop would find them."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.examples import (
    Examples,
    concatenate,
    history_examples,
    next_item_examples,
    question_examples,
    window_examples,
)
from data_io.labels import Question
from data_io.question_config import EventQuestion
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Cutoffs, LastTargets

User = list[tuple[int, int, int]]
"""Time, item index and action index of each event."""
EVENTS = st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(2, 3))
USERS = st.lists(st.lists(EVENTS, max_size=6).map(lambda user: sorted(user, key=lambda event: event[0])), max_size=4)
CUTOFFS = st.tuples(st.integers(0, 10), st.integers(1, 5)).map(
    lambda given: Cutoffs(validation=given[0], test=sum(given), end=100)
)
SPLITS = st.none() | CUTOFFS


def ask(horizon_days: float, actions: np.ndarray | None = None) -> Question:
    """Whether an event of these actions follows."""
    return Question(name="", settings=EventQuestion(horizon_days=horizon_days), actions=actions)


def spans(sequences: Sequences, examples: Examples) -> list[tuple[int, list[int]]]:
    """User's row and item indices of each example."""
    places = zip(examples.row.tolist(), examples.start, examples.end, strict=True)
    return [(row, sequences.item_index[start:end].tolist()) for row, start, end in places]


def assert_only_the_past(sequences: Sequences, examples: Examples, cutoff: int, length: int) -> None:
    for row, start, end in zip(examples.row, examples.start, examples.end, strict=True):
        assert sequences.starts[row] <= start <= end <= sequences.ends[row]
        assert end - start <= length
        assert (sequences.event_time[start:end] < cutoff).all()


@given(USERS, CUTOFFS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_event_at_or_after_the_cutoff_enters_a_span(
    make_sequences: Callable, users: list[User], split: Cutoffs, length: int
) -> None:
    sequences = make_sequences(*users)
    for cutoff in (split.validation, split.test):
        assert_only_the_past(sequences, history_examples(sequences, cutoff, length), cutoff, length)
        outcomes = question_examples(sequences, np.array([cutoff]), length, [ask(1.0)], "training")
        assert_only_the_past(sequences, outcomes, cutoff, length)
        assert (outcomes.now == cutoff).all()
    for stage in ("validation", "test"):
        examples = next_item_examples(sequences, split, stage, length, None)
        assert_only_the_past(sequences, examples, split.of(stage), length)
        assert (examples.now == split.of(stage)).all()


@given(USERS, CUTOFFS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_no_event_at_or_after_the_validation_cutoff_is_trained_on(
    make_sequences: Callable, users: list[User], split: Cutoffs, length: int
) -> None:
    sequences = make_sequences(*users)
    windows = window_examples(sequences, split, length)
    assert_only_the_past(sequences, windows, split.validation, length)
    assert (windows.now < split.validation).all()
    assert (windows.now == sequences.event_time[windows.end]).all()


@given(USERS, SPLITS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_windows_cover_each_pair_of_input_and_target_exactly_once(
    make_sequences: Callable, users: list[User], split: Cutoffs | None, length: int
) -> None:
    sequences = make_sequences(*users)
    windows = window_examples(sequences, split, length)
    asked = [
        (row, place, place + 1)
        for row, start, end in zip(windows.row, windows.start, windows.end, strict=True)
        for place in range(start, end)
    ]
    expected = []
    for row, (user, first) in enumerate(zip(users, sequences.starts, strict=True)):
        size = max(len(user) - 2, 0) if split is None else sum(event[0] < split.validation for event in user)
        expected += [(row, first + place, first + place + 1) for place in range(size - 1)]
    assert sorted(asked) == expected
    assert (windows.end > windows.start).all()


@given(USERS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_of_target_events_the_last_is_tested_the_one_before_validated_and_training_ends_before_both(
    make_sequences: Callable, users: list[User], length: int
) -> None:
    sequences, split = make_sequences(*users), LastTargets(actions=(3,))
    targets = [[place for place, event in enumerate(user) if event[1] != 0 and event[2] == 3] for user in users]
    for stage, from_last in (("validation", 2), ("test", 1)):
        examples = next_item_examples(sequences, split, stage, length, np.array([3]))
        asked = [(row, places[-from_last]) for row, places in enumerate(targets) if len(places) >= 2]
        expected = [(row, users[row][place][1], users[row][place][0], place) for row, place in asked if place]
        ends = examples.end - sequences.starts[examples.row]
        columns = (examples.row, examples.target, examples.now, ends)
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    windows = window_examples(sequences, split, length)
    newest = np.maximum.reduceat(windows.end, np.flatnonzero(np.diff(windows.row, prepend=-1))) if len(windows) else []
    last = {row: int(end - sequences.starts[row]) for row, end in zip(np.unique(windows.row), newest, strict=True)}
    until = [places[-2] if len(places) >= 2 else len(user) for user, places in zip(users, targets, strict=True)]
    assert last == {row: end - 1 for row, end in enumerate(until) if end >= 2}


def test_windows_are_cut_from_the_newest_event_so_that_only_the_oldest_is_short(make_sequences: Callable) -> None:
    sequences = make_sequences([(time, 10 + time) for time in range(6)], [(0, 30)])
    windows = window_examples(sequences, Cutoffs(validation=50, test=60, end=70), 2)
    assert spans(sequences, windows) == [(0, [13, 14]), (0, [11, 12]), (0, [10])]
    assert windows.now.tolist() == [5, 3, 1]


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [[13, 14]]), (2, [[13, 14], [11, 12]]), (9, [[13, 14], [11, 12], [10]])]
)
def test_the_newest_windows_alone_may_be_asked_for(
    make_sequences: Callable, most: int, expected: list[list[int]]
) -> None:
    sequences = make_sequences([(time, 10 + time) for time in range(6)], [(0, 30)])
    windows = window_examples(sequences, Cutoffs(validation=50, test=60, end=70), 2, most)
    assert spans(sequences, windows) == [(0, window) for window in expected]


def test_histories_hold_the_newest_events_of_every_user(make_sequences: Callable) -> None:
    sequences = make_sequences([(1, 10), (2, 11), (3, 12)], [], [(3, 20)])
    examples = history_examples(sequences, 3, 1)
    assert spans(sequences, examples) == [(0, [11]), (1, []), (2, [])]
    assert examples.now.tolist() == [3, 3, 3]


def test_without_a_moment_every_event_counts_and_now_is_just_after_the_last(make_sequences: Callable) -> None:
    sequences = make_sequences([(1, 10), (5, 11)], [(9, 20)])
    examples = history_examples(sequences, None, 8)
    assert spans(sequences, examples) == [(0, [10, 11]), (1, [20])]
    assert examples.now.tolist() == [6, 10]


@pytest.mark.parametrize("now", [None, 5])
@pytest.mark.parametrize("num_users", [0, 2])
def test_a_bucket_without_events_gives_every_user_an_empty_span(
    make_sequences: Callable, num_users: int, now: int | None
) -> None:
    examples = history_examples(make_sequences(*([[]] * num_users)), now, 3)
    assert [len(column) for column in (examples.row, examples.end, examples.now, examples.target)] == [num_users] * 4
    assert (examples.end == examples.start).all()


@given(USERS, SPLITS, st.sampled_from(["validation", "test"]), st.sampled_from([None, [3]]))
@settings(max_examples=40, deadline=None)
def test_the_next_item_is_the_one_a_naive_loop_finds(
    make_sequences: Callable, users: list[User], split: Cutoffs | None, stage: str, actions: list[int] | None
) -> None:
    expected = []
    for row, user in enumerate(users):
        if split is None:
            held_out = 2 if stage == "validation" else 1
            history, rest = user[:-held_out], user[-held_out:][:1]
        else:
            until = split.test if stage == "validation" else split.end
            history = [event for event in user if event[0] < split.of(stage)]
            rest = [event for event in user if split.of(stage) <= event[0] < until]
        targets = [event for event in rest if event[1] != 0 and (actions is None or event[2] in actions)]
        if history and targets:
            now = targets[0][0] if split is None else split.of(stage)
            expected.append((row, [event[1] for event in history][-3:], targets[0][1], now))
    sequences = make_sequences(*users)
    examples = next_item_examples(sequences, split, stage, 3, None if actions is None else np.array(actions))
    found = zip(spans(sequences, examples), examples.target.tolist(), examples.now.tolist(), strict=True)
    assert [(*span, target, now) for span, target, now in found] == expected


@given(USERS, st.lists(st.integers(0, 10), min_size=1, max_size=3), st.integers(1, 4), st.sampled_from([None, [3]]))
@settings(max_examples=40, deadline=None)
def test_outcomes_are_those_a_naive_loop_finds(
    make_sequences: Callable, users: list[User], cutoffs: list[int], horizon: int, actions: list[int] | None
) -> None:
    expected = []
    for cutoff in cutoffs:
        for row, user in enumerate(users):
            inside = [event for event in user if cutoff <= event[0] < cutoff + horizon]
            happens = any(actions is None or event[2] in actions for event in inside)
            if any(event[0] < cutoff for event in user):
                expected.append((row, cutoff * DAY_US, int(happens)))
    sequences = make_sequences(*users, unit_us=DAY_US)
    wanted = None if actions is None else np.array(actions)
    examples = question_examples(sequences, np.array(cutoffs) * DAY_US, 3, [ask(float(horizon), wanted)], "training")
    found = zip(examples.row.tolist(), examples.now.tolist(), examples.target[:, 0].tolist(), strict=True)
    assert list(found) == expected


def test_examples_are_taken_and_joined_in_the_order_asked_for(make_sequences: Callable) -> None:
    examples = history_examples(make_sequences([(1, 10)], [(2, 20)], [(3, 30)]), None, 1)
    joined = concatenate([examples.take(np.array([2, 0])), examples.take(np.array([], np.int64))])
    assert (joined.row.tolist(), joined.now.tolist(), len(joined)) == ([2, 0], [4, 2], 2)
