"""Arrival: after any number of appends readers see what they would of a store built from all logs at once."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.arrival import MEETING_COLUMNS, Meeting, count_arrival, drop_known, may_repeat, meet, users_that_meet
from data_io.merging import EVENT_KEY, INDEX_COLUMNS, BucketFacts, merge_bucket, merge_parts
from data_io.schema import TIME_TYPE, store_schema

START = datetime(2024, 1, 1, tzinfo=UTC)
PLAIN = store_schema("string", {"price": "float"})
KEYED = PLAIN.append(pa.field(EVENT_KEY, pa.large_list(pa.int64()), nullable=False))

Row = tuple[str, int, int, float | None, int | None]
"""User, item index, second, price and event key; its place in the list is its position in the log."""


def rows_with(keys: st.SearchStrategy[int | None]) -> st.SearchStrategy[list[Row]]:
    """Logs in which half of the events are one user's; events repeat, tie and come late."""
    users, seconds = st.sampled_from(["skewed", "skewed", "ü", "🛒"]), st.integers(0, 5)
    return st.lists(st.tuples(users, st.integers(2, 3), seconds, st.sampled_from([None, 1.5]), keys), max_size=10)


NO_KEYS = rows_with(st.none())
ANY_KEYS = rows_with(st.sampled_from([None, 7, 8, 9]))
KEYS_OF_A_MOMENT = rows_with(st.sampled_from([None, 0, 1])).map(
    lambda rows: [(*row[:4], None if row[4] is None else row[2] * 10 + row[4]) for row in rows]
)
"""Keys that an event has again only when it comes again with its time."""


def to_events(rows: list[Row], schema: pa.Schema) -> pa.Table:
    users, items, seconds, prices, keys = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
    columns = {
        "user_id": pa.array(users, pa.large_string()),
        "event_time": pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE),
        "price": pa.array(prices, pa.float32()),
        "item_index": pa.array(items, pa.int32()),
        "action_index": pa.array([2] * len(rows), pa.int16()),
    }
    return pa.table(columns | ({EVENT_KEY: pa.array(keys, pa.int64())} if EVENT_KEY in schema.names else {}))


def build(
    rows: list[Row], schema: pa.Schema = PLAIN, max_events: int | None = None, *, drop: bool = True
) -> tuple[pa.Table, BucketFacts]:
    return merge_bucket(to_events(rows, schema), schema, max_events, drop_duplicates=drop)


def arrive(
    parts: list[pa.Table], rows: list[Row], schema: pa.Schema, max_events: int | None, *, drop: bool = True
) -> tuple[pa.Table, BucketFacts]:
    """The part that new rows become beside the parts a bucket has, as an append makes it."""
    table, merged = build(rows, schema, max_events, drop=drop)
    known_users = [part.select(INDEX_COLUMNS) for part in parts]
    met, num_known = meet(known_users, table), 0
    if drop and may_repeat(met, by_id=EVENT_KEY in schema.names):
        old = pa.concat_tables(parts)
        users = users_that_meet(table, old.select([name for name in MEETING_COLUMNS if name in old.column_names]))
        table, num_known = drop_known(table, users_in(old, users))
        met = meet(known_users, table)
    num_users, num_events, num_truncated = count_arrival(met, max_events)
    duplicates, truncated = merged.num_duplicates + num_known, merged.num_truncated + num_truncated
    return table, BucketFacts(
        num_users=num_users, num_events=num_events, num_duplicates=duplicates, num_truncated=truncated
    )


def users_in(table: pa.Table, users: pa.Array) -> pa.Table:
    chosen = set(users.to_pylist())
    return table.filter(pa.array([user in chosen for user in table.column("user_id").to_pylist()], pa.bool_()))


def append_all(
    logs: list[list[Row]], schema: pa.Schema, max_events: int | None, compacted_after: Iterable[int] = (), **how: bool
) -> tuple[list[pa.Table], list[BucketFacts]]:
    """Parts of a bucket built from the first log, to which the others were appended."""
    table, facts = build(logs[0], schema, max_events, **how)
    parts, found = [table], [facts]
    for number, log in enumerate(logs[1:], 1):
        table, facts = arrive(parts, log, schema, max_events, **how)
        parts, found = [*parts, table], [*found, facts]
        if number in compacted_after:
            parts = [merge_parts(parts, max_events)]
    return parts, found


def total(facts: list[BucketFacts], name: str) -> int:
    return sum(getattr(fact, name) for fact in facts)


def in_the_corner(rows: list[Row], kept: pa.Table, max_events: int) -> set[str]:
    """Users who were cut at a moment at which they have several events.

    The documented corner: what was cut from the store is not known any more, so of events at exactly the microsecond of
    the oldest one kept, those that tie with one that was cut, or repeat it, may be others than a build of all would
    keep. How many are kept is the same.
    """
    found = set()
    for row in kept.to_pylist():
        seconds = [second for user, _, second, *_ in rows if user == row["user_id"]]
        oldest = int((row["event_time"][0] - START).total_seconds())
        if len(seconds) > max_events and seconds.count(oldest) > 1:
            found.add(row["user_id"])
    return found


def check(logs: list[list[Row]], schema: pa.Schema, max_events: int, compacted_after: set[int]) -> None:
    """What readers see, and the facts of all steps, against a build of all logs."""
    everything = [row for log in logs for row in log]
    parts, facts = append_all(logs, schema, max_events, compacted_after)
    seen, (expected, _) = merge_parts(parts, max_events), build(everything, schema, max_events)
    assert seen.select(["user_id", "num_events"]).equals(expected.select(["user_id", "num_events"]))
    corner = in_the_corner(everything, expected, max_events)
    for found, wanted in zip(seen.to_pylist(), expected.to_pylist(), strict=True):
        assert found == wanted or found["user_id"] in corner
    num_events = sum(seen.column("num_events").to_pylist())
    assert (total(facts, "num_users"), total(facts, "num_events")) == (seen.num_rows, num_events)
    left_out = total(facts, "num_duplicates") + total(facts, "num_truncated")
    assert num_events + left_out == len(everything)


LOGS_WITHOUT_KEYS, LOGS_WITH_KEYS = (st.lists(rows, min_size=2, max_size=4) for rows in (NO_KEYS, KEYS_OF_A_MOMENT))


@given(LOGS_WITHOUT_KEYS, st.sampled_from([1, 2, 3, 50]), st.sets(st.integers(1, 3)))
@settings(max_examples=150, deadline=None)
def test_appended_logs_read_as_one_built_at_once(
    logs: list[list[Row]], max_events: int, compacted_after: set[int]
) -> None:
    check(logs, PLAIN, max_events, compacted_after)


@given(LOGS_WITH_KEYS, st.sampled_from([1, 2, 3, 50]), st.sets(st.integers(1, 3)))
@settings(max_examples=150, deadline=None)
def test_appended_logs_with_event_ids_read_as_one_built_at_once(
    logs: list[list[Row]], max_events: int, compacted_after: set[int]
) -> None:
    check(logs, KEYED, max_events, compacted_after)


@given(st.lists(ANY_KEYS, min_size=2, max_size=4), st.sets(st.integers(1, 3)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_where_nothing_is_cut_appends_are_exact_in_every_row_and_number(
    logs: list[list[Row]], compacted_after: set[int], drop: bool
) -> None:
    everything = [row for log in logs for row in log]
    parts, facts = append_all(logs, KEYED, None, compacted_after, drop=drop)
    expected, whole = build(everything, KEYED, drop=drop)
    assert merge_parts(parts, None).equals(expected)
    for name in ("num_users", "num_events", "num_duplicates", "num_truncated"):
        assert total(facts, name) == getattr(whole, name)


def test_a_cut_history_forgets_the_ids_of_what_was_cut() -> None:
    # Not a wish but a limit to know: an id that comes again later in time is only known while its event is kept.
    first: list[Row] = [("u", 2, 0, None, 7), ("u", 2, 1, None, None)]
    again: list[Row] = [("u", 2, 2, None, 7)]
    seen = merge_parts(append_all([first, again], KEYED, 1)[0], 1)
    assert seen.column("event_key").to_pylist() == [[7]]
    assert build(first + again, KEYED, 1)[0].column("event_key").to_pylist() == [[None]]


def test_a_log_appended_again_brings_nothing() -> None:
    rows: list[Row] = [("u", 2, 1, None, None), ("u", 3, 1, None, None), ("v", 2, 5, 1.5, None)]
    old, _ = build(rows)
    table, facts = arrive([old], rows, PLAIN, None)
    assert (table.num_rows, table.schema) == (0, PLAIN)
    assert facts == BucketFacts(num_users=0, num_events=0, num_duplicates=3, num_truncated=0)
    assert merge_parts([old, table], None).equals(old)


def test_a_new_day_needs_no_look_at_old_events() -> None:
    old, _ = build([("u", 2, 1, None, None), ("v", 2, 3, None, None)])
    known = [old.select(INDEX_COLUMNS)]
    later, _ = build([("u", 2, 2, None, None), ("new", 2, 0, None, None)])
    tied, _ = build([("v", 3, 3, None, None)])
    assert not may_repeat(meet(known, later), by_id=False)
    assert may_repeat(meet(known, tied), by_id=False)
    keyed, _ = build([("u", 2, 9, None, 7)], KEYED)
    assert may_repeat(meet(known, keyed), by_id=True), "an event of the same id may have any time"


def test_known_users_are_added_up_over_their_parts() -> None:
    parts = [build([("u", 2, 5, None, None), ("v", 2, 0, None, None)])[0], build([("u", 2, 1, None, None)])[0]]
    fresh, _ = build([("new", 2, 1, None, None), ("u", 2, 1, None, None)])
    met = meet([part.select(INDEX_COLUMNS) for part in parts], fresh)
    assert fresh.column("user_id").to_pylist() == ["new", "u"]
    assert met.before.tolist() == [0, 2], "in the order of the rows"
    assert met.last_before[1] == int((START + timedelta(seconds=5)).timestamp()) * 1_000_000


def test_users_meet_by_moment_or_by_id() -> None:
    old, _ = build([("t", 2, 1, None, 1), ("i", 2, 1, None, 2), ("n", 2, 1, None, None), ("x", 2, 1, None, 2)], KEYED)
    fresh, _ = build([("t", 3, 1, None, 9), ("i", 2, 5, None, 2), ("n", 2, 5, None, None), ("y", 2, 1, None, 2)], KEYED)
    assert sorted(users_that_meet(fresh, old).to_pylist()) == ["i", "t"]
    assert sorted(users_that_meet(fresh, old.select(MEETING_COLUMNS)).to_pylist()) == ["i", "t"]


@pytest.mark.parametrize(("max_events", "expected"), [(None, (1, 6, 0)), (3, (1, 4, 2)), (1, (1, 1, 5))])
def test_events_that_no_longer_fit_are_counted(max_events: int | None, expected: tuple[int, int, int]) -> None:
    moments = np.zeros(3, np.int64)
    met = Meeting(new=np.array([3, 2, 1]), before=np.array([0, 2, 7]), first_new=moments, last_before=moments)
    assert count_arrival(met, max_events) == expected


@pytest.mark.parametrize("kind", ["string", "int"])
def test_ids_of_either_kind_arrive(kind: str) -> None:
    schema = store_schema(kind, {})
    rows = [{"user_id": 7, "item_index": [2], "action_index": [2], "event_time": [START]}]
    times = {"num_events": 1, "first_event_time": START, "last_event_time": START}
    table = pa.Table.from_pylist([row | times | {"user_id": 7 if kind == "int" else "7"} for row in rows], schema)
    users = users_that_meet(table, table)
    assert users.type == schema.field("user_id").type
    assert drop_known(table, table) == (schema.empty_table(), 1)
