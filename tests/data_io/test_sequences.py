"""Sequences: encoded events become users in order, whatever the order they arrive in, and no event is lost."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.buckets import bucket_of
from data_io.schema import TIME_TYPE, store_schema
from data_io.sequences import build_bucket, encode_events, to_sequences
from data_io.vocabulary import Vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = ["i", "ïtém-🛒"]
ACTIONS = ["buy", "search"]
SCHEMA = store_schema("string", ("price",))

Row = tuple[str, str | None, str, int, float | None]
"""User, item, action, second and price of an event; its place in the list is its position in the log."""
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u", "ü", "Ü-🛒", "用户", "u\0", " u"]),
        st.sampled_from([*ITEMS, "rare", "räre", None]),
        st.sampled_from([*ACTIONS, "other"]),
        st.integers(0, 3),
        st.sampled_from([None, 1.5]),
    ),
    max_size=12,
)


def encode(rows: list[Row], first_position: int = 0, num_buckets: int = 1) -> pa.Table:
    """Rows as the fragment of a log, encoded."""
    users, items, actions, seconds, prices = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
    events = pa.table(
        {
            "source_row": pa.array(range(len(rows)), pa.uint32()),
            "user_id": pa.array(users, pa.large_string()),
            "item_id": pa.array(items, pa.large_string()),
            "action": pa.array(actions, pa.large_string()),
            "event_time": pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE),
            "price": pa.array(prices, pa.float32()),
        }
    )
    return encode_events(events, first_position, Vocabulary(pa.array(ITEMS, pa.large_string())), ACTIONS, num_buckets)


def build_slowly(rows: list[Row], drop_duplicates: bool) -> dict[str, list[tuple[Any, ...]]]:
    """Item index, action index, time and price of each user's events, one row at a time."""
    users: dict[str, list[tuple[Any, ...]]] = {}
    met = set()
    for _, row in sorted(enumerate(rows), key=lambda place: (place[1][3], place[0])):
        user, item, action, second, price = row
        if drop_duplicates and row in met:
            continue
        met.add(row)
        item_index = 0 if item is None else ITEMS.index(item) + 2 if item in ITEMS else 1
        action_index = ACTIONS.index(action) + 2 if action in ACTIONS else 1
        event = (item_index, action_index, START + timedelta(seconds=second), price)
        users.setdefault(user, []).append(event)
    return users


def users_of(table: pa.Table) -> list[tuple[str, list[tuple[Any, ...]]]]:
    names = ("item_index", "action_index", "event_time", "price")
    return [(row["user_id"], list(zip(*(row[name] for name in names), strict=True))) for row in table.to_pylist()]


def test_encoding_gives_indices_buckets_and_positions_in_the_log() -> None:
    encoded = encode(
        [("u", "i", "buy", 0, 1.5), ("ü", "rare", "other", 1, None), ("u", None, "search", 2, None)], 100, 8
    )
    assert encoded.column("item_index").to_pylist() == [2, 1, 0]
    assert encoded.column("action_index").to_pylist() == [2, 1, 3]
    assert encoded.column("position").to_pylist() == [100, 101, 102]
    assert encoded.column("bucket").to_pylist() == bucket_of(pa.array(["u", "ü", "u"]), 8).tolist()
    assert encoded.column("price").to_pylist() == [1.5, None, None]
    assert {"item_id", "action", "source_row"}.isdisjoint(encoded.column_names)


def test_events_of_equal_time_stand_by_position_in_the_log_across_fragments() -> None:
    first = encode([("u", "i", "buy", 5, None), ("u", None, "search", 5, None)], 0)
    second = encode([("u", ITEMS[1], "buy", 5, None), ("u", "i", "search", 4, None)], 2)
    table = build_bucket(pa.concat_tables([second, first]), SCHEMA, drop_duplicates=True)
    assert table.column("item_index").to_pylist() == [[2, 2, 0, 3]]


@given(ROWS, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=40, deadline=None)
def test_order_of_a_bucket_does_not_depend_on_the_order_of_arrival(
    rows: list[Row], shuffle: random.Random, drop_duplicates: bool
) -> None:
    events = encode(rows)
    arrived = events.take(pa.array(shuffle.sample(range(len(rows)), len(rows)), pa.int64()))
    ordered, built = (build_bucket(table, SCHEMA, drop_duplicates=drop_duplicates) for table in (events, arrived))
    assert built.equals(ordered)


@given(ROWS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_build_bucket_equals_a_naive_loop(rows: list[Row], drop_duplicates: bool) -> None:
    table = build_bucket(encode(rows), SCHEMA, drop_duplicates=drop_duplicates)
    users = users_of(table)
    assert table.schema == SCHEMA
    assert dict(users) == build_slowly(rows, drop_duplicates)
    assert len(users) == len({row[0] for row in rows})


@given(ROWS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_union_of_buckets_is_the_data_with_each_user_once(rows: list[Row], num_buckets: int) -> None:
    events = encode(rows, num_buckets=num_buckets)
    bucket = events.column("bucket").to_numpy()
    parts = [events.filter(pa.array(bucket == index)) for index in range(num_buckets)]
    users = [user for part in parts for user in users_of(build_bucket(part, SCHEMA, drop_duplicates=False))]
    assert len(dict(users)) == len(users)
    assert dict(users) == build_slowly(rows, drop_duplicates=False)


def test_different_items_outside_the_vocabulary_are_no_duplicates() -> None:
    rows: list[Row] = [("u", "rare", "buy", 0, None), ("u", "räre", "buy", 0, None), ("u", "rare", "buy", 0, None)]
    assert build_bucket(encode(rows), SCHEMA, drop_duplicates=True).column("item_index").to_pylist() == [[1, 1]]


def test_a_bucket_without_events_has_the_schema_and_no_user() -> None:
    table = build_bucket(encode([]), SCHEMA, drop_duplicates=True)
    assert (table.schema, table.num_rows) == (SCHEMA, 0)
    assert to_sequences(table).num_users == to_sequences(SCHEMA.empty_table()).num_users == 0


@pytest.mark.parametrize("chunks", [(0, 3), (0, 1, 3), (1, 3), (1, 2)], ids=str)
def test_flat_columns_of_chunked_or_sliced_rows_are_those_rows(chunks: tuple[int, ...]) -> None:
    rows: list[Row] = [(user, "i", "buy", second, None) for user in "abc" for second in range(ord(user) - 96)]
    table = build_bucket(encode(rows), SCHEMA, drop_duplicates=False)
    pieces = [table.slice(begin, end - begin) for begin, end in pairwise(chunks)]
    sequences, expected = to_sequences(pa.concat_tables(pieces)), pa.concat_tables(pieces).to_pylist()
    assert sequences.user_id.to_pylist() == [row["user_id"] for row in expected]
    assert np.diff(sequences.offsets).tolist() == [len(row["item_index"]) for row in expected]
    times = [int(time.timestamp()) * 1_000_000 for row in expected for time in row["event_time"]]
    assert sequences.event_time.tolist() == times
    assert len(sequences.item_index) == len(sequences.action_index) == sequences.ends[-1]
