"""Searches as events: from held-out purchases, and put behind histories."""

import numpy as np
import pyarrow as pa
import pytest

from data_io.columns import encode_column
from data_io.searches import NOBODY, Searches, held_out_searches, places_before, search_sequences, training_searches
from data_io.sequences import Sequences
from data_io.splits import Cutoffs, LastTargets

SEARCH, VIEW, BUY = 2, 3, 4
QUERIES = pa.array(["red", None, "blue", None, None, None, "green", None], pa.large_string())
EVENTS = Sequences(
    user_id=pa.array(["a", "b"]),
    offsets=np.array([0, 5, 8]),
    item_index=np.array([0, 10, 0, 11, 12, 13, 0, 14], np.int32),
    action_index=np.array([SEARCH, BUY, SEARCH, BUY, BUY, VIEW, SEARCH, BUY], np.int16),
    event_time=np.array([0, 1, 2, 3, 4, 0, 1, 9]),
    columns={"query": encode_column("text", QUERIES), "session_id": encode_column("categorical", QUERIES)},
)


def test_only_a_target_right_after_a_search_is_one() -> None:
    split, buy = LastTargets(actions=(BUY,)), np.array([BUY])
    found, targets = held_out_searches(EVENTS, QUERIES, split, "validation", SEARCH, buy)
    assert (found.row.tolist(), found.before.tolist(), targets.tolist()) == ([0], [2], [11])
    assert found.query.to_pylist() == ["blue"]
    _, targets = held_out_searches(EVENTS, QUERIES, split, "test", SEARCH, buy)
    assert targets.tolist() == [], "12 was bought without a search, and b has one purchase"


def test_after_a_cutoff_it_is_the_first_search_that_led_to_one() -> None:
    split = Cutoffs(validation=1, test=2, end=10)
    found, targets = held_out_searches(EVENTS, QUERIES, split, "test", SEARCH, np.array([BUY]))
    assert (found.row.tolist(), targets.tolist(), found.time.tolist()) == ([0, 1], [11, 14], [2, 1])


def test_training_searches_end_where_validation_begins() -> None:
    queries, items = training_searches(EVENTS, QUERIES, LastTargets(actions=(BUY,)), SEARCH, None)
    assert (queries.to_pylist(), items.tolist()) == (["red", "green"], [10, 14])


def asked(*queries: str | None) -> Searches:
    rows, before = np.array([0, NOBODY, 1]), np.array([4, 0, 6])
    return Searches(row=rows, before=before, query=pa.array(queries, pa.large_string()), time=np.array([7, 8, 9]))


def test_a_search_stands_behind_the_newest_events_before_it() -> None:
    made = search_sequences(asked("new", "red", None), EVENTS, SEARCH, length=3)
    assert made.offsets.tolist() == [0, 3, 4, 5]
    assert made.item_index.tolist() == [0, 11, 0, 0, 13]
    assert made.action_index.tolist() == [SEARCH, BUY, SEARCH, SEARCH, VIEW]
    assert made.event_time.tolist() == [2, 3, 7, 8, 0]
    texts = encode_column("text", pa.array(["blue", None, "new", "red", None], pa.large_string()))
    seen, expected = (column.tokens[column.code] for column in (made.columns["query"], texts))
    np.testing.assert_array_equal(seen, expected)
    assert made.columns["session_id"].code[2:].tolist() == [0, 0, 0]


def test_searches_without_their_history_or_query() -> None:
    searches = asked("new", "red", None)
    assert search_sequences(searches.without_history(), EVENTS, SEARCH, 3).offsets.tolist() == [0, 1, 2, 2]
    assert search_sequences(searches.without_query(), EVENTS, SEARCH, 9).item_index.tolist() == [0, 10, 0, 11, 13]
    search, places = places_before(searches, EVENTS)
    assert (search.tolist(), places.tolist()) == ([0, 0, 0, 0, 2], [0, 1, 2, 3, 5])


@pytest.mark.parametrize("most", [0, 2])
def test_a_bucket_without_users_is_no_trouble(most: int) -> None:
    empty = Sequences(
        user_id=pa.array([], pa.string()),
        offsets=np.zeros(1, np.int64),
        item_index=np.zeros(0, np.int32),
        action_index=np.zeros(0, np.int16),
        event_time=np.zeros(0, np.int64),
        columns={"query": encode_column("text", pa.array([], pa.large_string()))},
    )
    nobody = asked("new", "red", None).without_history()
    assert len(places_before(nobody, empty, most)[1]) == 0
    assert search_sequences(nobody, empty, SEARCH, 4).offsets.tolist() == [0, 1, 2, 2]
