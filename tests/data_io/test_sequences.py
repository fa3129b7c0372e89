"""Sequences: a log becomes users in order, however it is cut into runs, and no event is lost on the way."""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import storage
from data_io.buckets import bucket_of
from data_io.merging import EVENT_KEY, BucketFacts, merge_bucket
from data_io.runs import RunPlan, RunReader, action_indices_of, build_run, item_indices_of, translate, write_run
from data_io.scan import Fragment
from data_io.schema import TIME_TYPE, store_schema
from data_io.sequences import Sequences, event_micros, flat_values, to_sequences
from data_io.vocabulary import Vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
HOSTILE = ["a=b/../c", "%2F", "nul\0", "\0", " ", "🛒", "\u00fc", "u\u0308", "用户", "x" * 10_000]
ITEMS = ["i", "ïtém-🛒", *HOSTILE[:3]]
ACTIONS = ["buy", "search"]
KEY = pa.field(EVENT_KEY, pa.large_list(pa.int64()), nullable=False)
STRING_SCHEMA, INT_SCHEMA = (store_schema(kind, {"price": "float"}).append(KEY) for kind in ("string", "int"))

Row = tuple[Any, str | None, str, int, float | None, str | None]
"""User, item, action, second, price and id of an event; its place in the list is its position in the log."""


def rows_of(users: list[Any]) -> st.SearchStrategy[list[Row]]:
    """Logs in which half of the events are one user's; an id that comes again does so with its time."""
    rows = st.tuples(
        st.sampled_from(users[:1] * len(users) + users),
        st.sampled_from([*ITEMS, None]),
        st.sampled_from(ACTIONS),
        st.integers(0, 4),
        st.sampled_from([None, 1.5]),
        st.sampled_from([None, None, "", "%2F"]),
    )
    timed = rows.map(lambda row: (*row[:5], None if row[5] is None else f"{row[5]}{row[3]}"))
    return st.lists(timed, max_size=16)


STRING_LOGS, INT_LOGS = rows_of(["skewed", *HOSTILE]), rows_of([7, 0, -1, 2**63 - 1, -(2**63)])
LOGS = st.one_of(STRING_LOGS.map(lambda rows: (rows, "string")), INT_LOGS.map(lambda rows: (rows, "int")))
CUTS = st.lists(st.integers(0, 16), max_size=4)


def to_events(rows: list[Row], kind: str) -> pa.Table:
    """Rows as the good part of a log."""
    users, items, actions, seconds, prices, ids = (
        (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 6
    )
    return pa.table(
        {
            "source_row": pa.array(range(len(rows)), pa.uint32()),
            "user_id": pa.array(users, pa.int64() if kind == "int" else pa.large_string()),
            "item_id": pa.array(items, pa.large_string()),
            "action": pa.array(actions, pa.large_string()),
            "event_time": pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE),
            "price": pa.array(prices, pa.float32()),
            "event_id": pa.array(ids, pa.large_string()),
        }
    )


def write_runs(
    folder: str, rows: list[Row], cuts: list[int], kind: str, num_buckets: int, max_events: int | None, *, drop: bool
) -> list[dict[str, Any]]:
    """Marks of the runs that a log becomes when it is cut at these rows."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    marks = []
    for number, (begin, end) in enumerate(pairwise(edges)):
        fragment = Fragment(file="f", file_bytes=1, row_group=number, first_row=begin, num_rows=end - begin)
        run = build_run(to_events(rows[begin:end], kind), num_buckets, max_events, drop_duplicates=drop)
        marks.append(write_run(folder, RunPlan(number=number, fragments=(fragment,)), run, {}))
    return marks


def read_bucket(folder: str, marks: list[dict[str, Any]], bucket: int, num_buckets: int) -> pa.Table | None:
    """A bucket's events from all runs, in indices they share."""
    items = Vocabulary(pa.array(ITEMS, pa.large_string()))
    found = []
    for mark in marks:
        reader = RunReader(storage.join(folder, mark["file"]), num_buckets)
        (events,) = reader.read_buckets(bucket, bucket + 1)
        if events is not None:
            codes = item_indices_of(reader.read_items(), items), action_indices_of(mark["actions"], ACTIONS)
            found.append(translate(events, *codes))
    return pa.concat_tables(found) if found else None


def merge_log(
    rows: list[Row], cuts: list[int], kind: str, num_buckets: int, max_events: int | None = None, *, drop: bool = True
) -> tuple[list[pa.Table], list[BucketFacts], list[dict[str, Any]]]:
    """The way of a log into a store: rows and facts of each bucket, and the marks of the runs."""
    schema = INT_SCHEMA if kind == "int" else STRING_SCHEMA
    tables, facts = [], []
    with tempfile.TemporaryDirectory() as folder:
        marks = write_runs(folder, rows, cuts, kind, num_buckets, max_events, drop=drop)
        for bucket in range(num_buckets):
            events = read_bucket(folder, marks, bucket, num_buckets)
            if events is not None:
                table, fact = merge_bucket(events, schema, max_events, drop_duplicates=drop)
                tables.append(table)
                facts.append(fact)
                assert set(bucket_of(table.column("user_id").combine_chunks(), num_buckets).tolist()) == {bucket}
    return tables, facts, marks


def users_of(tables: list[pa.Table]) -> dict[Any, list[Row]]:
    """Item index, action index, second and price of each user's events; each user has one row in all buckets."""
    names = ("item_index", "action_index", "event_time", "price")
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["user_id"]: list(zip(*(row[name] for name in names), strict=True)) for row in rows}
    assert len(found) == len(rows), "a user stands twice"
    return found


def build_slowly(rows: list[Row], max_events: int | None, *, drop: bool) -> dict[Any, list[Any]]:
    """What `users_of` a store should be, one row at a time."""
    users: dict[Any, list[Any]] = {}
    met: set[Any] = set()
    repeated = []
    for row in rows:
        signs = {row} | ({(row[0], row[5])} if row[5] is not None else set())
        repeated.append(drop and bool(signs & met))
        met |= signs
    for row, again in sorted(zip(rows, repeated, strict=True), key=lambda pair: pair[0][3]):
        user, item, action, second, price, _ = row
        indices = 0 if item is None else ITEMS.index(item) + 2, ACTIONS.index(action) + 2
        if not again:
            users.setdefault(user, []).append((*indices, START + timedelta(seconds=second), price))
    return {user: events[-max_events:] if max_events else events for user, events in users.items()}


@given(LOGS, CUTS, st.integers(1, 5), st.sampled_from([None, 1, 2, 3, 40]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_log_becomes_what_a_loop_over_its_rows_makes_however_it_is_cut_into_runs(
    log: tuple[list[Row], str], cuts: list[int], num_buckets: int, max_events: int | None, drop: bool
) -> None:
    rows, kind = log
    tables, facts, marks = merge_log(rows, cuts, kind, num_buckets, max_events, drop=drop)
    expected = build_slowly(rows, max_events, drop=drop)
    assert users_of(tables) == expected
    assert sum(fact.num_users for fact in facts) == len(expected)
    left_out = sum(part["num_duplicates"] + part["num_truncated"] for part in marks)
    left_out += sum(fact.num_duplicates + fact.num_truncated for fact in facts)
    assert sum(fact.num_events for fact in facts) == sum(map(len, expected.values())) == len(rows) - left_out


@given(STRING_LOGS, CUTS, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_cutting_long_users_in_the_runs_gives_what_cutting_at_the_end_gives(
    rows: list[Row], cuts: list[int], max_events: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        marks = write_runs(folder, rows, cuts, "string", 1, None, drop=True)
        events = read_bucket(folder, marks, 0, 1)
    late = [] if events is None else [merge_bucket(events, STRING_SCHEMA, max_events, drop_duplicates=True)[0]]
    early, _, _ = merge_log(rows, cuts, "string", 1, max_events)
    assert early == late


def test_events_of_equal_time_stand_by_position_in_the_log_across_runs() -> None:
    events = ((ITEMS[0], 5), (ITEMS[1], 5), (ITEMS[0], 4))
    rows: list[Row] = [("u", item, "buy", second, None, None) for item, second in events]
    tables, _, _ = merge_log(rows, [1, 2], "string", 1)
    assert tables[0].column("item_index").to_pylist() == [[2, 2, 3]]


def test_different_items_are_no_duplicates_though_models_may_know_neither() -> None:
    rows: list[Row] = [("u", item, "buy", 0, None, None) for item in (*ITEMS[:2], ITEMS[0])]
    tables, facts, _ = merge_log(rows, [2], "string", 1)
    assert tables[0].column("item_index").to_pylist() == [[2, 3]]
    assert facts[0].num_duplicates == 1


def test_an_id_that_comes_back_later_in_time_is_known_in_one_run_only_if_nothing_was_cut() -> None:
    # Not a wish but a limit to know: a run cuts long users before it knows which of their ids other runs have.
    rows: list[Row] = [("u", "i", "buy", second, None, key) for second, key in ((0, "k"), (1, None), (2, "k"))]
    whole, _, _ = merge_log(rows, [1], "string", 1)
    cut, _, _ = merge_log(rows, [1], "string", 1, 1)
    assert users_of(whole)["u"] == build_slowly(rows, None, drop=True)["u"]
    assert users_of(cut)["u"][0][2] == START, "the run of the last two events left out the one that should stand"


def make_rows(*lengths: int) -> pa.Table:
    """Rows of the store of users a, b, ... with these numbers of events."""
    users = [user for user, length in zip("abcdef", lengths, strict=False) for _ in range(length)]
    rows: list[Row] = [(user, "i", "buy", second, None, None) for second, user in enumerate(users)]
    tables, _, _ = merge_log(rows, [], "string", 1)
    return tables[0] if tables else STRING_SCHEMA.empty_table()


@pytest.mark.parametrize("chunks", [(0, 3), (0, 1, 3), (1, 3), (1, 2), (1, 1)], ids=str)
def test_flat_columns_of_chunked_or_sliced_rows_are_those_rows(chunks: tuple[int, ...]) -> None:
    table = make_rows(1, 2, 3)
    pieces = pa.concat_tables([table.slice(begin, end - begin) for begin, end in pairwise(chunks)])
    flat, expected = to_sequences(pieces), pieces.to_pylist()
    assert flat.user_id.to_pylist() == [row["user_id"] for row in expected]
    assert np.diff(flat.offsets).tolist() == [len(row["item_index"]) for row in expected]
    times = [int(time.timestamp()) * 1_000_000 for row in expected for time in row["event_time"]]
    assert flat.event_time.tolist() == times
    assert len(flat.item_index) == len(flat.action_index) == flat.offsets[-1]
    offsets, values = flat_values(pieces.column("event_time"))
    assert (offsets.tolist(), len(values)) == (flat.offsets.tolist(), len(times))


def test_a_bucket_without_users_is_flat_too() -> None:
    flat = to_sequences(STRING_SCHEMA.empty_table())
    assert (flat.num_users, flat.offsets.tolist(), len(flat.event_time)) == (0, [0], 0)


def test_microseconds_are_those_since_1970_and_negative_before() -> None:
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros) for micros in (-1, 0, 1_500_000)]
    assert event_micros(pa.chunked_array([pa.array(moments, TIME_TYPE)])).tolist() == [-1, 0, 1_500_000]


def test_what_came_up_after_a_model_was_trained_is_unknown_to_it(make_sequences: Any) -> None:
    sequences: Sequences = make_sequences([(0, 2, 2), (1, 5, 3)], [(0, 0, 4), (1, 1, 2)])
    known = sequences.known_to(5, 4)
    assert known.item_index.tolist() == [2, 1, 0, 1]
    assert known.action_index.tolist() == [2, 3, 1, 2]
    assert (known.item_index.dtype, known.action_index.dtype) == (np.int32, np.int16)
    assert known.event_time is sequences.event_time
    assert sequences.item_index.tolist() == [2, 5, 0, 1], "the store's own are as they were"
    assert sequences.known_to(6, 5) is sequences
    assert make_sequences().known_to(2, 2).num_users == 0


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=4))
def test_first_times_are_those_of_a_naive_loop(make_sequences: Callable, users: list[list[int]]) -> None:
    sequences = make_sequences(*([(time, item) for time, item in enumerate(user)] for user in users))
    naive = [item < 2 or item not in user[:place] for user in users for place, item in enumerate(user)]
    assert sequences.first_times.tolist() == naive
