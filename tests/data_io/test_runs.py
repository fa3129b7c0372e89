"""Runs: planned over the log, encoded, laid out by bucket, read a bucket at a time, and trusted by their marks only."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.buckets import bucket_of, hash64
from data_io.merging import EVENT_KEY
from data_io.quality.report import LogSurvey, RunSurvey
from data_io.runs import (
    Run,
    RunPlan,
    RunReader,
    action_indices_of,
    build_run,
    item_indices_of,
    plan_runs,
    read_marks,
    read_pieces,
    translate,
    write_pieces,
    write_run,
)
from data_io.scan import Fragment
from data_io.schema import TIME_TYPE, DataContractError
from data_io.vocabulary import Vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
START_MINUTE = int(START.timestamp()) // 60
NUM_BUCKETS = 4


def make_fragments(*sizes: int) -> list[Fragment]:
    return [
        Fragment(file=f"f{number}", file_bytes=1, row_group=0, first_row=0, num_rows=size)
        for number, size in enumerate(sizes)
    ]


def encode(events: pa.Table, max_events: int | None = None, *, drop: bool = True) -> Run:
    rows = pa.array(range(events.num_rows), pa.uint32())
    return build_run(events.append_column("source_row", rows), NUM_BUCKETS, max_events, drop_duplicates=drop)


def write(folder: Path, events: pa.Table, number: int = 0, **facts: Any) -> dict[str, Any]:
    plan = RunPlan(number=number, fragments=tuple(make_fragments(events.num_rows)))
    return write_run(str(folder), plan, encode(events), {"reasons": {}} | facts)


def open_run(folder: Path, mark: dict[str, Any]) -> RunReader:
    return RunReader(f"{folder}/{mark['file']}", NUM_BUCKETS)


def strings(*values: str | None) -> pa.Array:
    return pa.array(values, pa.large_string())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_runs_hold_every_fragment_once_in_order_and_no_more_rows_than_asked(sizes: list[int], most: int) -> None:
    fragments = make_fragments(*sizes)
    plans = plan_runs(fragments, most)
    assert [fragment for plan in plans for fragment in plan.fragments] == fragments
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert all(plan.num_rows <= most or len(plan.fragments) == 1 for plan in plans)


def test_a_log_is_spread_over_eight_runs_unless_they_would_be_tiny() -> None:
    assert len(plan_runs(make_fragments(*[200_000] * 16), 10_000_000)) == 8
    assert len(plan_runs(make_fragments(*[10_000] * 16), 10_000_000)) == 2
    assert plan_runs([], 5) == []


def test_buckets_of_a_run_come_back_one_at_a_time_and_together(tmp_path: Path, make_events: Callable) -> None:
    events = make_events(num_users=5)
    reader = open_run(tmp_path, write(tmp_path, events))
    buckets = bucket_of(events.column("user_id").combine_chunks(), NUM_BUCKETS)
    expected = [
        events.filter(pa.array(buckets == bucket)).column("user_id").to_pylist() for bucket in range(NUM_BUCKETS)
    ]
    together = reader.read_buckets(0, NUM_BUCKETS)
    for bucket, table in enumerate(together):
        (alone,) = reader.read_buckets(bucket, bucket + 1)
        assert alone == table
        assert ([] if table is None else table.column("user_id").to_pylist()) == expected[bucket]
    assert reader.buckets_with_rows().tolist() == [bool(users) for users in expected]
    assert reader.read_buckets(1, 3) == together[1:3]
    assert reader.read_items().rows() == [("i0", 5), ("i1", 5), ("i2", 5)]
    assert reader.read_minutes()["count"].sum() == 15


def test_a_run_has_neither_ids_of_items_nor_names_of_actions_in_its_events(make_events: Callable) -> None:
    run = encode(make_events(num_users=9, session_id=["s"] * 27))
    assert sorted(run.events.column_names) == ["action_code", "event_time", "item_code", "session_id", "user_id"]
    assert run.bucket_rows.sum() == 27


def test_a_run_counts_its_items_actions_and_minutes(make_events: Callable) -> None:
    times = pa.array([START + timedelta(seconds=second) for second in (59, 60, 61)], TIME_TYPE)
    events = make_events(1, item_id=strings("i", None, "i"), action=strings("buy", "search", "other"), event_time=times)
    run = encode(events)
    assert run.items.rows() == [("i", 2)]
    assert run.actions == {"buy": 1, "search": 1, "other": 1}
    assert sorted(run.minutes.rows()) == [(START_MINUTE, 1), (START_MINUTE + 1, 2)]


def test_minutes_are_counted_alike_over_a_day_and_over_a_century(make_events: Callable) -> None:
    wide = pa.array([START, START + timedelta(days=40_000), START], TIME_TYPE)
    found = sorted(encode(make_events(1, event_time=wide)).minutes.rows())
    assert found == [(START_MINUTE, 2), (START_MINUTE + 40_000 * 24 * 60, 1)]
    assert encode(make_events(1)).minutes.schema == encode(make_events(1, event_time=wide)).minutes.schema


def test_codes_become_the_indices_all_runs_share(make_events: Callable) -> None:
    ids = strings("new", "b", None, "a", "b", "a")
    run = encode(make_events(item_id=ids, action=strings("y", "x", "y", "x", "x", "y")))
    store = Vocabulary(strings("a", "b"))
    shared = translate(run.events, item_indices_of(run.items, store), action_indices_of(run.actions, ["x", "q", "y"]))
    assert shared.column_names == ["user_id", "event_time", "item_index", "action_index"]
    by_time = shared.sort_by("event_time")
    assert by_time.column("item_index").to_pylist() == [1, 3, 0, 2, 3, 2]
    assert by_time.column("action_index").to_pylist() == [4, 2, 4, 2, 2, 4]
    assert item_indices_of(run.items.clear(), store).tolist() == [0]


@pytest.mark.parametrize("ids", [strings("x", None, "y"), pa.array([7, None, 0], pa.int64())], ids=["string", "int"])
def test_an_event_without_an_id_has_no_key(make_events: Callable, ids: pa.Array) -> None:
    run = encode(make_events(1, event_id=ids))
    keys = hash64(ids.drop_null()).view(np.int64).tolist()
    assert run.events.column(EVENT_KEY).to_pylist() == [keys[0], None, keys[1]]


def test_long_users_are_cut_in_the_run_and_ties_with_the_oldest_kept_stay(make_events: Callable) -> None:
    seconds = [0, 5, 5, 9, 0, 1]
    times = pa.array([START + timedelta(seconds=second) for second in seconds], TIME_TYPE)
    users, items = strings(*"llllss"), strings("a", "b", "c", "d", "a", "a")
    run = encode(make_events(event_time=times, user_id=users, item_id=items), 2)
    left = run.events.column("event_time").to_pylist()
    assert sorted((time - START).seconds for time in left) == [0, 1, 5, 5, 9]
    assert (run.num_truncated, run.num_duplicates) == (1, 0)
    assert run.items["count"].sum() == 6, "the dictionary counts what was cut too"


def test_events_that_repeat_are_dropped_before_a_long_user_is_cut(make_events: Callable) -> None:
    times = pa.array([START + timedelta(seconds=second) for second in (1, 2, 2)], TIME_TYPE)
    events = make_events(1, event_time=times, item_id=strings("i", "i", "i"))
    dropped, kept = encode(events, 2), encode(events, 2, drop=False)
    assert (dropped.events.num_rows, dropped.num_duplicates, dropped.num_truncated) == (2, 1, 0)
    assert (kept.events.num_rows, kept.num_duplicates, kept.num_truncated) == (2, 0, 1)


def test_a_run_without_a_good_row_has_a_mark_and_no_bucket(tmp_path: Path, make_events: Callable) -> None:
    mark = write(tmp_path, make_events().slice(0, 0))
    assert (mark["num_rows"], mark["actions"]) == (0, {})
    assert open_run(tmp_path, mark).read_buckets(0, NUM_BUCKETS) == [None] * NUM_BUCKETS


# Shows a bug: a table without rows comes back without columns, and the survey cannot add it to the others.
@pytest.mark.parametrize("second", ["searches only", "bad rows only"])
def test_a_run_without_items_or_good_rows_is_added_to_the_others(
    tmp_path: Path, make_events: Callable, second: str
) -> None:
    events = make_events(1, action=["search"] * 3, item_id=strings(None, None, None))
    marks = [write(tmp_path, make_events()), write(tmp_path, events if second == "searches only" else events[:0], 1)]
    survey = LogSurvey()
    for mark in marks:
        reader = open_run(tmp_path, mark)
        counts = {name: mark[name] for name in ("num_rows", "actions", "reasons")}
        survey.add(RunSurvey(items=reader.read_items(), minutes=reader.read_minutes(), **counts))
    assert survey.items["count"].sum() == 6
    assert survey.minutes["count"].sum() == (9 if second == "searches only" else 6)


def test_marks_say_what_is_done_by_number(tmp_path: Path, make_events: Callable) -> None:
    assert read_marks(str(tmp_path)) == {}
    marks = {number: write(tmp_path, make_events(), number, quarantine=[]) for number in (2, 0)}
    assert read_marks(str(tmp_path)) == marks
    assert marks[0]["num_rows"] == 6
    assert marks[0]["file"] != write(tmp_path, make_events())["file"], "an attempt overwrites no other's file"


def test_a_killed_writer_s_temporary_mark_is_no_mark(tmp_path: Path, make_events: Callable) -> None:
    mark = write(tmp_path, make_events())
    (tmp_path / "marks" / ".000001.json.0123").write_text(json.dumps(mark)[:9])
    assert list(read_marks(str(tmp_path))) == [0]


def test_pieces_of_any_type_come_back_and_empty_ones_take_no_room(tmp_path: Path) -> None:
    url = str(tmp_path / "file.pieces")
    table = pa.table({"text": strings("a=b/../c", "%2F\0", None), "price": pa.array([1.5, None, 2], pa.float32())})
    write_pieces(url, [table[:0], table, table[:0]])
    assert read_pieces(url, 0, 3) == [None, table, None]
    assert read_pieces(url, 2, 3) == [None]
    assert read_pieces(url, 1, 2) == [table]


@pytest.fixture
def damaged(tmp_path: Path, make_events: Callable) -> Callable[[Callable[[bytes], bytes]], str]:
    """Writes a run, does something to its bytes, and puts them under a name of their own; returns the URL."""
    content = (tmp_path / write(tmp_path, make_events(num_users=1))["file"]).read_bytes()
    number = iter(range(1_000_000))

    def damage(change: Callable[[bytes], bytes]) -> str:
        path = tmp_path / f"{next(number)}.pieces"
        path.write_bytes(change(content))
        return str(path)

    return damage


def flip(place: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def read_everything(url: str) -> None:
    read_pieces(url, 0, NUM_BUCKETS + 2)


HEADER = 12 * (NUM_BUCKETS + 3)
"""Bytes of the places and checks of the pieces of a run."""


def test_a_flipped_bit_anywhere_in_the_pieces_is_found_and_named(damaged: Callable) -> None:
    size = len(Path(damaged(lambda content: content)).read_bytes())
    for place in [*range(HEADER, size, 41), size - 1]:
        url = damaged(flip(place, place % 8))
        with pytest.raises(DataContractError, match=rf"{url}: torn or corrupt; delete its folder and run the job ag"):
            read_everything(url)


def test_a_flipped_bit_in_the_places_or_checks_of_the_pieces_is_found_and_named(damaged: Callable) -> None:
    for place in range(HEADER - 8):  # the upper half of the last place is below, and behind it stands no check
        url = damaged(flip(place, place % 8))
        with pytest.raises(
            DataContractError, match=rf"{url}: .*torn or corrupt; delete its folder and run the job aga"
        ):
            read_everything(url)


# Shows a bug: as many bytes are asked for as the torn header says.
def test_a_run_that_claims_to_be_enormous_is_found_and_named(damaged: Callable) -> None:
    url = damaged(flip(HEADER - 12 + 7, 6))
    with pytest.raises(DataContractError, match="torn or corrupt"):
        read_everything(url)


@pytest.mark.parametrize("left", [0, 5, HEADER - 1, HEADER, HEADER + 9, -1])
def test_a_torn_run_is_found_and_named(damaged: Callable, left: int) -> None:
    url = damaged(lambda content: content[:left])
    with pytest.raises(DataContractError, match=rf"{url}: .*torn or corrupt"):
        read_everything(url)


def test_a_missing_run_is_found_and_named(tmp_path: Path) -> None:
    url = str(tmp_path / "none.pieces")
    with pytest.raises(DataContractError, match=f"{url}: missing, torn or corrupt; delete its folder and run the job"):
        read_everything(url)
    with pytest.raises(DataContractError, match="missing, torn or corrupt"):
        RunReader(url, NUM_BUCKETS).buckets_with_rows()


def test_actions_that_only_bad_rows_had_are_none_of_the_run(make_events: Callable) -> None:
    codes = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int32()), strings("buy", "only bad rows", "view"))
    run = encode(make_events(1, action=codes))
    assert run.actions == {"buy": 1, "view": 2}
    assert run.events.column("action_code").to_pylist() == [2, 1, 2]
