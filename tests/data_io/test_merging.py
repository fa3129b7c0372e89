"""Merging: a bucket's events become one row per user, and parts of a user's sequence become one, as a loop would do."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_io import merging
from data_io.merging import (
    EVENT_KEY,
    explode,
    merge_bucket,
    merge_parts,
    order_of_users,
    repeated_events,
    spans,
)
from data_io.schema import TIME_TYPE, store_schema

START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = store_schema("string", {"price": "float"}).append(
    pa.field(EVENT_KEY, pa.large_list(pa.int64()), nullable=False)
)
NAMES = ("item_index", "action_index", "event_time", "price", EVENT_KEY)

Row = tuple[str, int, int, int, float | None, int | None]
"""User, item index, action index, second, price and event key; its place in the list is its position in the log."""

USERS = ["u", "ü", "u\u0308", "\u00fc\u0000", "a=b/../c", "%2F", "🛒", "x" * 10_000]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["skewed"] * len(USERS) + USERS),
        st.integers(0, 3),
        st.integers(2, 3),
        st.integers(0, 3),
        st.sampled_from([None, 1.5]),
        st.sampled_from([None, None, 7, 8, 9]),
    ),
    max_size=14,
)
MAX_EVENTS = st.sampled_from([None, 1, 2, 3, 20])


def to_events(rows: list[Row]) -> pa.Table:
    users, items, actions, seconds, prices, keys = (
        (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 6
    )
    return pa.table(
        {
            "user_id": pa.array(users, pa.large_string()),
            "event_time": pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE),
            "price": pa.array(prices, pa.float32()),
            EVENT_KEY: pa.array(keys, pa.int64()),
            "item_index": pa.array(items, pa.int32()),
            "action_index": pa.array(actions, pa.int16()),
        }
    )


def not_repeated(rows: list[Row]) -> list[Row]:
    """Rows that repeat no earlier one of the log: not in every column, and not by the key of the same user."""
    met: set[Any] = set()
    kept = []
    for row in rows:
        marks = {row} | ({(row[0], row[-1])} if row[-1] is not None else set())
        if not marks & met:
            kept.append(row)
        met |= marks
    return kept


def merge_slowly(rows: list[Row], max_events: int | None, *, drop: bool) -> dict[str, list[Row]]:
    """Each user's events by time and then as they stand in the log, the newest of them, one row at a time."""
    users: dict[str, list[Row]] = {}
    for row in sorted(not_repeated(rows) if drop else rows, key=lambda row: row[3]):
        users.setdefault(row[0], []).append(row)
    return {user: events[-max_events:] if max_events else events for user, events in users.items()}


def merge(rows: list[Row], max_events: int | None = None, *, drop: bool = True) -> pa.Table:
    return merge_bucket(to_events(rows), SCHEMA, max_events, drop_duplicates=drop)[0]


def parts_of(rows: list[Row], cuts: list[int], max_events: int | None) -> list[pa.Table]:
    """Parts of a bucket from the rows of a log, cut anywhere."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [merge(rows[begin:end], max_events, drop=False) for begin, end in pairwise(edges)]


def users_of(table: pa.Table) -> dict[str, list[Row]]:
    """The events of each row of the store, as rows of the log."""
    found: dict[str, list[Row]] = {}
    for row in table.to_pylist():
        events = zip(*(row[name] for name in NAMES), strict=True)
        found[row["user_id"]] = [
            (row["user_id"], item, action, int((time - START).total_seconds()), price, key)
            for item, action, time, price, key in events
        ]
    assert len(found) == table.num_rows, "a user has more than one row"
    return found


@given(ROWS, MAX_EVENTS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_merged_bucket_is_what_a_loop_over_its_rows_makes(
    rows: list[Row], max_events: int | None, drop: bool
) -> None:
    table, facts = merge_bucket(to_events(rows), SCHEMA, max_events, drop_duplicates=drop)
    expected = merge_slowly(rows, max_events, drop=drop)
    assert table.schema == SCHEMA
    assert users_of(table) == expected
    assert table.column("user_id").to_pylist() == sorted(expected, key=str.encode)
    assert (facts.num_users, facts.num_events) == (len(expected), sum(map(len, expected.values())))
    assert facts.num_duplicates == (len(rows) - len(not_repeated(rows)) if drop else 0)
    assert facts.num_events + facts.num_duplicates + facts.num_truncated == len(rows)


@given(ROWS, MAX_EVENTS)
@settings(max_examples=30, deadline=None)
def test_number_and_moments_of_a_row_are_those_of_its_events(rows: list[Row], max_events: int | None) -> None:
    for row in merge(rows, max_events).to_pylist():
        times = row["event_time"]
        assert (row["num_events"], row["first_event_time"], row["last_event_time"]) == (len(times), times[0], times[-1])


@given(ROWS, st.lists(st.integers(0, 14), max_size=3), MAX_EVENTS)
@settings(max_examples=150, deadline=None)
def test_merged_parts_are_what_merging_all_events_at_once_makes(
    rows: list[Row], cuts: list[int], max_events: int | None
) -> None:
    parts = parts_of(rows, cuts, max_events)
    assert merge_parts(parts, max_events).equals(merge(rows, max_events, drop=False))


@given(ROWS, st.lists(st.integers(0, 14), min_size=1, max_size=4), MAX_EVENTS)
@settings(max_examples=60, deadline=None)
def test_parts_merged_in_steps_equal_parts_merged_at_once(
    rows: list[Row], cuts: list[int], max_events: int | None
) -> None:
    parts = parts_of(rows, cuts, max_events)
    compacted = parts[0]
    for part in parts[1:]:
        compacted = merge_parts([compacted, part], max_events)
    assert compacted.equals(merge_parts(parts, max_events))


def test_parts_may_be_read_without_the_columns_that_are_not_wanted() -> None:
    rows: list[Row] = [("u", 2, 2, 5, None, None), ("v", 3, 2, 1, None, None), ("u", 3, 2, 4, None, None)]
    parts = [merge(rows[:2]).select(["user_id", "event_time"]), merge(rows[2:]).select(["user_id", "event_time"])]
    merged = merge_parts(parts, None)
    assert merged.column_names == ["user_id", "event_time"]
    assert merged.equals(merge(rows).select(["user_id", "event_time"]))


def test_integer_ids_stand_by_number() -> None:
    events = to_events([("10", 2, 2, 0, None, None), ("9", 2, 2, 0, None, None), ("-1", 2, 2, 0, None, None)])
    numbers = events.set_column(0, "user_id", events.column("user_id").cast(pa.int64()))
    schema = SCHEMA.set(0, pa.field("user_id", pa.int64(), nullable=False))
    table, _ = merge_bucket(numbers, schema, None, drop_duplicates=True)
    assert table.column("user_id").to_pylist() == [-1, 9, 10]
    assert merge_parts([table, table], 1).equals(table)


def test_the_first_of_events_of_one_id_stays_whatever_their_times() -> None:
    rows: list[Row] = [("u", 2, 2, 9, None, 7), ("u", 3, 2, 1, None, 7), ("v", 4, 2, 1, None, 7)]
    assert users_of(merge(rows)) == {"u": [rows[0]], "v": [rows[2]]}, "an id is one of a user's"


def test_events_without_an_id_repeat_each_other_only_in_every_column() -> None:
    rows: list[Row] = [("u", 2, 2, 1, None, None), ("u", 2, 2, 1, 1.5, None), ("u", 2, 2, 1, None, None)]
    assert users_of(merge(rows)) == {"u": rows[:2]}
    assert users_of(merge(rows, drop=False)) == {"u": rows}


def test_events_that_differ_in_their_id_alone_are_different_events() -> None:
    rows: list[Row] = [("u", 2, 2, 1, None, 7), ("u", 2, 2, 1, None, 8), ("u", 2, 2, 1, None, None)]
    assert users_of(merge(rows)) == {"u": rows}


@example([("u", 2, 2, 3, None, None), ("v", 2, 2, 0, None, None), ("u", 2, 2, 1, None, None)])
@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_more_users_than_a_radix_sort_takes_are_ordered_all_the_same(rows: list[Row]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_RADIX_LIMIT", 0)
        found = merge(rows, 2)
    assert found.equals(merge(rows, 2))


def test_rows_in_chunks_and_slices_are_ordered_as_one_table() -> None:
    rows: list[Row] = [("b", 2, 2, 3, None, 1), ("a", 2, 2, 2, None, 2), ("b", 2, 2, 1, None, 1)]
    whole = to_events(rows)
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 2)])
    order, starts = order_of_users(chunked)
    assert (order.tolist(), starts.tolist()) == ([1, 2, 0], [0, 1])
    assert repeated_events(chunked, order, starts).tolist() == [False, True, False]
    assert merge_bucket(chunked, SCHEMA, None, drop_duplicates=True)[0].equals(merge(rows))


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_exploded_rows_are_the_events_again(rows: list[Row]) -> None:
    table = merge(rows, drop=False)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    events = explode(pieces)
    assert sorted(events.column_names) == sorted(to_events([]).column_names)
    assert merge_bucket(events, SCHEMA, None, drop_duplicates=False)[0].equals(table)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_spans_are_the_places_of_ranges_one_after_the_other(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[side] for pair in ranges], np.int64) for side in (0, 1))
    assert spans(starts, lengths).tolist() == [start + step for start, length in ranges for step in range(length)]


def test_a_bucket_without_events_has_the_schema_and_no_user() -> None:
    table, facts = merge_bucket(to_events([]), SCHEMA, 3, drop_duplicates=True)
    assert (table.schema, table.num_rows, facts.num_users, facts.num_events) == (SCHEMA, 0, 0, 0)
    assert merge_parts([table, table], 3).equals(table)
    assert explode(table).num_rows == 0
