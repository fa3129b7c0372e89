"""Sequences: encoded events become users in order, whatever the order they arrive in, and no event is lost."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import sequences
from data_io.buckets import bucket_of
from data_io.runs import Run, action_indices_of, build_run, item_indices_of, translate
from data_io.schema import TIME_TYPE, store_schema
from data_io.sequences import BucketFacts, merge_bucket, to_sequences
from data_io.vocabulary import Vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = ["i", "ïtém-🛒"]
ACTIONS = ["buy", "search"]
SCHEMA = store_schema("string", ("price",))

Merged = tuple[pa.Table, BucketFacts]
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


def to_events(rows: list[Row]) -> pa.Table:
    """Rows as the good part of a log."""
    users, items, actions, seconds, prices = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
    return pa.table(
        {
            "source_row": pa.array(range(len(rows)), pa.uint32()),
            "user_id": pa.array(users, pa.large_string()),
            "item_id": pa.array(items, pa.large_string()),
            "action": pa.array(actions, pa.large_string()),
            "event_time": pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE),
            "price": pa.array(prices, pa.float32()),
        }
    )


ALL_ITEMS = Vocabulary(pa.array([*ITEMS, "rare", "räre"], pa.large_string()))
"""Every item of these logs, the rare ones after those of the vocabulary."""


def encode(rows: list[Row], num_buckets: int = 1, max_events: int | None = None, *, drop: bool = False) -> Run:
    return build_run(to_events(rows), num_buckets, max_events, drop_duplicates=drop)


def bucket_part(run: Run, bucket: int = 0) -> pa.Table:
    """A bucket's events of a run, in indices all runs share."""
    first = int(run.bucket_rows[:bucket].sum())
    items = item_indices_of(run.items.to_arrow().column("item_id").combine_chunks(), ALL_ITEMS)
    events = run.events.slice(first, int(run.bucket_rows[bucket]))
    return translate(events, items, action_indices_of(run.actions, [*ACTIONS, "other"]))


def merge(runs: list[Run], drop_duplicates: bool, max_events: int | None = None, bucket: int = 0) -> Merged:
    events = pa.concat_tables([bucket_part(run, bucket) for run in runs])
    return merge_bucket(events, SCHEMA, len(ITEMS) + 2, max_events, drop_duplicates=drop_duplicates)


def parted(rows: list[Row], cuts: list[int]) -> list[list[Row]]:
    """The rows of a log, cut into the parts that become its runs."""
    edges = [0, *(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [rows[begin:end] for begin, end in pairwise(edges)]


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
        action_index = [*ACTIONS, "other"].index(action) + 2
        event = (item_index, action_index, START + timedelta(seconds=second), price)
        users.setdefault(user, []).append(event)
    return users


def users_of(table: pa.Table) -> list[tuple[str, list[tuple[Any, ...]]]]:
    names = ("item_index", "action_index", "event_time", "price")
    return [(row["user_id"], list(zip(*(row[name] for name in names), strict=True))) for row in table.to_pylist()]


def test_a_run_has_its_rows_by_bucket_in_the_order_of_the_log() -> None:
    rows: list[Row] = [(user, "i", "buy", second, 1.5) for second, user in enumerate("abcabcaab")]
    run = encode(rows, 8)
    buckets = bucket_of(pa.array([row[0] for row in rows]), 8)
    expected = [
        (row[0], row[3]) for bucket in range(8) for row, own in zip(rows, buckets, strict=True) if own == bucket
    ]
    seconds = [int((time - START).total_seconds()) for time in run.events.column("event_time").to_pylist()]
    assert list(zip(run.events.column("user_id").to_pylist(), seconds, strict=True)) == expected
    assert run.bucket_rows.tolist() == np.bincount(buckets, minlength=8).tolist()
    assert {"item_id", "action", "source_row"}.isdisjoint(run.events.column_names)


def test_a_run_counts_its_items_actions_and_minutes() -> None:
    run = encode([("u", "i", "buy", 59, 1.5), ("ü", None, "search", 60, None), ("u", "i", "other", 61, None)])
    assert run.items.rows() == [("i", 2)]
    assert run.actions == {"buy": 1, "search": 1, "other": 1}
    assert sorted(count for _, count in run.minutes.rows()) == [1, 2]
    assert bucket_part(run).column("item_index").to_pylist() == [2, 0, 2]
    assert bucket_part(run).column("action_index").to_pylist() == [2, 3, 4]


def test_events_of_equal_time_stand_by_position_in_the_log_across_runs() -> None:
    first = encode([("u", "i", "buy", 5, None), ("u", None, "search", 5, None)])
    second = encode([("u", ITEMS[1], "buy", 5, None), ("u", "i", "search", 4, None)])
    table, _ = merge([first, second], drop_duplicates=True)
    assert table.column("item_index").to_pylist() == [[2, 2, 0, 3]]


@given(ROWS, st.lists(st.integers(0, 12), max_size=3).map(sorted), st.booleans())
@settings(max_examples=60, deadline=None)
def test_merged_runs_equal_a_naive_loop_however_the_log_is_cut(
    rows: list[Row], cuts: list[int], drop_duplicates: bool
) -> None:
    table, facts = merge([encode(part) for part in parted(rows, cuts)], drop_duplicates)
    users = users_of(table)
    assert table.schema == SCHEMA
    assert dict(users) == build_slowly(rows, drop_duplicates)
    assert [user for user, _ in users] == sorted({row[0] for row in rows}, key=str.encode)
    assert facts.num_events + facts.num_duplicates == len(rows)
    assert facts.num_users == len(users)


@given(ROWS, st.lists(st.integers(0, 12), max_size=3).map(sorted), st.integers(1, 4), st.booleans())
@settings(max_examples=80, deadline=None)
def test_long_users_keep_their_newest_events_and_every_row_is_counted(
    rows: list[Row], cuts: list[int], max_events: int, drop_duplicates: bool
) -> None:
    runs = [encode(part, 1, max_events, drop=drop_duplicates) for part in parted(rows, cuts)]
    table, facts = merge(runs, drop_duplicates, max_events)
    expected = {user: events[-max_events:] for user, events in build_slowly(rows, drop_duplicates).items()}
    assert dict(users_of(table)) == expected
    left_out = sum(run.num_duplicates + run.num_truncated for run in runs) + facts.num_duplicates + facts.num_truncated
    assert facts.num_events + left_out == len(rows)


@given(ROWS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_union_of_buckets_is_the_data_with_each_user_once(rows: list[Row], num_buckets: int) -> None:
    run = encode(rows, num_buckets)
    users = [user for bucket in range(num_buckets) for user in users_of(merge([run], False, bucket=bucket)[0])]
    assert len(dict(users)) == len(users)
    assert dict(users) == build_slowly(rows, drop_duplicates=False)


def test_different_items_outside_the_vocabulary_are_no_duplicates() -> None:
    rows: list[Row] = [("u", "rare", "buy", 0, None), ("u", "räre", "buy", 0, None), ("u", "rare", "buy", 0, None)]
    table, facts = merge([encode(rows[:2]), encode(rows[2:])], drop_duplicates=True)
    assert table.column("item_index").to_pylist() == [[1, 1]]
    assert facts.num_duplicates == 1


def test_more_users_than_a_radix_sort_takes_are_ordered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [(user, "i", "buy", second, None) for second, user in enumerate("cabcab")]
    expected = merge([encode(rows)], drop_duplicates=True)[0]
    monkeypatch.setattr(sequences, "_RADIX_LIMIT", 1)
    assert merge([encode(rows)], drop_duplicates=True)[0].equals(expected)


def test_a_bucket_without_events_has_the_schema_and_no_user() -> None:
    table, facts = merge([encode([])], drop_duplicates=True)
    assert (table.schema, table.num_rows, facts.num_users) == (SCHEMA, 0, 0)
    assert to_sequences(table).num_users == to_sequences(SCHEMA.empty_table()).num_users == 0


@pytest.mark.parametrize("chunks", [(0, 3), (0, 1, 3), (1, 3), (1, 2)], ids=str)
def test_flat_columns_of_chunked_or_sliced_rows_are_those_rows(chunks: tuple[int, ...]) -> None:
    rows: list[Row] = [(user, "i", "buy", second, None) for user in "abc" for second in range(ord(user) - 96)]
    table, _ = merge([encode(rows)], drop_duplicates=False)
    pieces = [table.slice(begin, end - begin) for begin, end in pairwise(chunks)]
    flat, expected = to_sequences(pa.concat_tables(pieces)), pa.concat_tables(pieces).to_pylist()
    assert flat.user_id.to_pylist() == [row["user_id"] for row in expected]
    assert np.diff(flat.offsets).tolist() == [len(row["item_index"]) for row in expected]
    times = [int(time.timestamp()) * 1_000_000 for row in expected for time in row["event_time"]]
    assert flat.event_time.tolist() == times
    assert len(flat.item_index) == len(flat.action_index) == flat.ends[-1]
