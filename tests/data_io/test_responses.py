"""Responses: a literal log by hand, the same by naive loops, and what is known of a pair before the moment alone."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.examples import Examples, concatenate, history_examples
from data_io.leaks import check_no_leak
from data_io.responses import ShownItems, by_user, pair_features, response_examples
from data_io.schema import DataContractError
from data_io.sequences import Sequences
from data_io.splits import DAY_US

VIEW, CART, BUY = 2, 3, 4
EVENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(2, 4)), max_size=8).map(
        lambda user: sorted(user, key=lambda event: event[0])
    ),
    max_size=4,
)


def ask(horizon_days: float = 4, most: int = 50) -> ShownItems:
    return ShownItems(
        shown=np.array([VIEW]), actions=np.array([CART, BUY]), horizon_days=horizon_days, most_candidates=most
    )


@pytest.fixture
def sequences(make_sequences: Callable[..., Sequences]) -> Sequences:
    """Times are days; the moment of the tests is day 5."""
    return make_sequences(
        [(1, 3, VIEW), (2, 3, CART), (5, 4, CART), (5, 4, VIEW), (6, 3, VIEW), (7, 3, BUY), (8, 5, VIEW), (9, 5, BUY)],
        [(6, 3, VIEW), (6, 3, BUY)],
        [(4, 0, VIEW), (5, 1, VIEW), (6, 6, VIEW), (7, 6, VIEW), (8, 6, CART), (8, 7, BUY)],
        unit_us=DAY_US,
    )


def told(examples: Examples) -> list[tuple[int, int, float]]:
    """User, candidate and label of each example."""
    return list(zip(examples.row.tolist(), examples.candidate.tolist(), examples.target[:, 0].tolist(), strict=True))


def test_what_is_shown_after_the_moment_is_asked_about(sequences: Sequences) -> None:
    examples = response_examples(sequences, np.array([5 * DAY_US]), 10, ask())
    # User 0: the cart of 4 stands before its showing; 3 is bought; 5 is bought on day 9, past the horizon. User 1 has
    # no history. User 2: an unknown item is no candidate, nor is 7, which is bought without being shown.
    assert told(examples) == [(0, 4, 0), (0, 3, 1), (0, 5, 0), (2, 6, 1)]
    assert (examples.target.dtype, examples.candidate.dtype) == (np.float32, np.int32)
    assert (examples.now == 5 * DAY_US).all()
    assert (sequences.event_time[examples.end - 1] < 5 * DAY_US).all(), "no future in a span"
    assert examples.end.tolist() == [2, 2, 2, 11]


def test_the_first_candidates_by_time_are_kept(sequences: Sequences) -> None:
    moments = np.array([5 * DAY_US, 6 * DAY_US])
    examples = response_examples(sequences, moments, 1, ask(most=1))
    assert told(examples) == [(0, 4, 0), (2, 6, 1), (0, 3, 1), (2, 6, 1)]
    assert (examples.end - examples.start == 1).all()
    assert not len(response_examples(sequences, np.array([0, 99 * DAY_US]), 4, ask()))


def test_an_event_may_show_and_respond(sequences: Sequences) -> None:
    asked = ShownItems(shown=np.array([CART]), actions=np.array([CART]), horizon_days=4, most_candidates=9)
    assert told(response_examples(sequences, np.array([5 * DAY_US]), 10, asked)) == [(0, 4, 1), (2, 6, 1)]


def test_candidates_travel_with_their_examples(sequences: Sequences) -> None:
    examples = response_examples(sequences, np.array([5 * DAY_US]), 10, ask())
    assert told(examples.take(np.array([3, 0]))) == [(2, 6, 1), (0, 4, 0)]
    assert told(concatenate([examples, examples.take(np.array([1]))]))[-1] == (0, 3, 1)
    plain = history_examples(sequences, 5 * DAY_US, 4)
    assert len(plain.take(np.array([0])).candidate) == len(concatenate([plain, plain]).candidate) == 0


def test_pairs_are_known_by_what_was_before(sequences: Sequences) -> None:
    examples = response_examples(sequences, np.array([5 * DAY_US]), 1, ask())
    expected = [[0, 0], [np.log(3), np.exp(-3 / 7)], [0, 0], [0, 0]]
    np.testing.assert_allclose(pair_features(sequences, examples), expected, rtol=1e-6)
    grid, (row, column) = by_user(examples)
    assert grid.candidate.tolist() == [[4, 3, 5], [6, 0, 0]]
    np.testing.assert_array_equal(pair_features(sequences, grid)[row, column], pair_features(sequences, examples))
    nobody = examples.take(np.zeros(0, int))
    assert pair_features(sequences, nobody).shape == (0, 2)
    assert by_user(nobody)[0].candidate.shape == (0, 1)


def test_what_is_told_of_a_pair_does_not_change_without_the_future(sequences: Sequences) -> None:
    examples = response_examples(sequences, np.array([5 * DAY_US, 6 * DAY_US]), 4, ask())

    def told_pairs(of: Sequences, some: Examples) -> dict[str, np.ndarray]:
        return {"pair_features": pair_features(of, some)}

    check_no_leak(sequences, examples, told_pairs, labels=())

    def leaking(of: Sequences, some: Examples) -> dict[str, np.ndarray]:
        return {"last": np.append(of.event_time, 0)[of.ends[some.row] - 1]}

    with pytest.raises(DataContractError, match="leak: last of user u0"):
        check_no_leak(sequences, examples, leaking, labels=())


@given(EVENTS, st.integers(0, 9), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_examples_and_pairs_equal_naive_loops(
    make_sequences: Callable[..., Sequences], users: list[list[tuple[int, int, int]]], day: int, most: int
) -> None:
    sequences, moment = make_sequences(*users, unit_us=DAY_US), day * DAY_US
    expected, pairs = [], []
    for row, events in enumerate(users):
        history = [event for event in events if event[0] < day]
        window = [event for event in events if day <= event[0] < day + 4]
        candidates = list(dict.fromkeys(item for _, item, action in window if action == VIEW and item >= 2))
        for item in candidates[:most] if history else []:
            first = window.index(next(event for event in window if event[1:] == (item, VIEW)))
            label = any(of == item and action in (CART, BUY) for _, of, action in window[first:])
            expected.append((row, item, float(label)))
            days = [time for time, of, _ in history if of == item]
            pairs.append([np.log1p(len(days)), np.exp(-(day - days[-1]) / 7) if days else 0])
    examples = response_examples(sequences, np.array([moment]), 3, ask(most=most))
    assert told(examples) == expected
    np.testing.assert_allclose(pair_features(sequences, examples), np.array(pairs).reshape(-1, 2), atol=1e-6)
