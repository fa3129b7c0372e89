"""Features: counts and recencies of the whole history, and of nothing at or after the moment of prediction."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.examples import history_examples
from data_io.features import FEATURE_NAMES, WINDOW_DAYS, history_features, scale_features
from data_io.sequences import Sequences
from data_io.splits import DAY_US

LENGTH = 2
"""Of the spans: features must look beyond it."""
TIMES = st.builds(lambda quarter, edge: quarter * DAY_US // 4 + edge, st.integers(-8, 400), st.integers(-1, 1))
USERS = st.lists(st.lists(TIMES, max_size=8).map(sorted), min_size=1, max_size=4)


def make(make_sequences: Callable, users: list[list[int]]) -> Sequences:
    return make_sequences(*([(time, 2) for time in user] for user in users))


def features_at(sequences: Sequences, now: int) -> np.ndarray:
    return history_features(sequences, history_examples(sequences, now, LENGTH))


def features_slowly(times: list[int], now: int) -> list[float]:
    """One user's features, one event at a time."""
    history = [time for time in times if time < now]
    recency = min((now - history[-1]) / DAY_US, 3650.0) if history else 3650.0
    tenure = (now - history[0]) / DAY_US if history else 0.0
    active = len({time // DAY_US for time in history})
    inside = [[time for time in history if time >= now - days * DAY_US] for days in WINDOW_DAYS]
    counts = [len(times) for times in inside]
    days = [len({time // DAY_US for time in times}) for times in inside]
    return [recency, tenure, len(history), active, tenure / max(active, 1), *counts, *days]


@given(USERS, TIMES)
@settings(max_examples=40, deadline=None)
def test_history_features_equal_a_naive_loop(make_sequences: Callable, users: list[list[int]], now: int) -> None:
    sequences = make(make_sequences, [*users, [0]])
    expected = np.array([features_slowly(times, now) for times in [*users, [0]]], np.float32)
    found = features_at(sequences, now)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@given(USERS, TIMES)
@settings(max_examples=40, deadline=None)
def test_events_at_or_after_now_change_no_feature(make_sequences: Callable, users: list[list[int]], now: int) -> None:
    earlier = [[time for time in user if time < now] for user in users]
    steady = [now - 1]
    found = features_at(make(make_sequences, [*users, steady]), now)
    assert np.array_equal(found, features_at(make(make_sequences, [*earlier, steady]), now))


@pytest.mark.parametrize("users", [[[]], [[], [5]], [[5], []], [[1], [], [5]]], ids=str)
def test_an_empty_history_has_the_same_features_whatever_the_other_users(
    make_sequences: Callable, users: list[list[int]]
) -> None:
    found = features_at(make(make_sequences, users), 10)[users.index([])]
    assert dict(zip(FEATURE_NAMES, found.tolist(), strict=True)) == dict.fromkeys(FEATURE_NAMES, 0.0) | {
        "recency_days": 3650.0
    }


def test_an_event_exactly_at_the_edge_of_a_window_is_inside_it(make_sequences: Callable) -> None:
    now = 100 * DAY_US
    edges = [now - days * DAY_US for days in WINDOW_DAYS]
    inside = features_at(make(make_sequences, [[edge] for edge in edges]), now)
    outside = features_at(make(make_sequences, [[edge - 1] for edge in edges]), now)
    first = FEATURE_NAMES.index("events_1d")
    size = len(WINDOW_DAYS)
    for columns in (slice(first, first + size), slice(first + size, first + 2 * size)):
        assert np.array_equal(inside[:, columns], np.triu(np.ones((size, size))))
        assert np.array_equal(outside[:, columns], np.triu(np.ones((size, size)), 1))


def test_a_day_that_a_window_cuts_counts_as_active(make_sequences: Callable) -> None:
    hour = DAY_US // 24
    sequences = make(make_sequences, [[6 * hour, 20 * hour, 25 * hour]])
    found = dict(zip(FEATURE_NAMES, features_at(sequences, 36 * hour)[0].tolist(), strict=True))
    assert (found["num_events"], found["num_active_days"]) == (3, 2)
    assert (found["events_1d"], found["active_days_1d"]) == (2, 2)
    assert (found["recency_days"], found["tenure_days"]) == (pytest.approx(11 / 24), pytest.approx(30 / 24))


def test_no_examples_give_a_matrix_without_rows(make_sequences: Callable) -> None:
    for users in ([], [[5]]):
        sequences = make(make_sequences, users)
        examples = history_examples(sequences, 10, LENGTH).take(np.zeros(0, np.int64))
        assert history_features(sequences, examples).shape == (0, len(FEATURE_NAMES))


def test_scaled_features_are_log1p_and_finite() -> None:
    scaled = scale_features(np.array([[0.0, np.e - 1, -1.0, 3650.0]], np.float32))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0.0, 1.0, 0.0, np.log(3651.0)]], rtol=1e-6)
