"""Runs: planned over the log, written by bucket, read a bucket at a time, and trusted by their marks only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.buckets import bucket_of
from data_io.events import Fragment
from data_io.runs import (
    RunPlan,
    build_run,
    delete_runs,
    plan_runs,
    read_marks,
    read_run_bucket,
    read_run_items,
    read_run_minutes,
    write_run,
)
from data_io.schema import DataContractError


def make_fragments(*sizes: int) -> list[Fragment]:
    return [
        Fragment(file=f"f{number}", row_group=0, first_row=0, first_position=0, num_rows=size)
        for number, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_runs_hold_every_fragment_once_in_order_and_no_more_rows_than_asked(sizes: list[int], most: int) -> None:
    fragments = make_fragments(*sizes)
    plans = plan_runs(fragments, most)
    assert [fragment for plan in plans for fragment in plan.fragments] == fragments
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert all(plan.num_rows <= most or len(plan.fragments) == 1 for plan in plans)


def write(folder: Path, events: pa.Table, number: int = 0, **facts: Any) -> dict[str, Any]:
    rows = pa.array(range(events.num_rows), pa.uint32())
    run = build_run(events.append_column("source_row", rows), 4, None, drop_duplicates=True)
    plan = RunPlan(number=number, fragments=tuple(make_fragments(events.num_rows)))
    return write_run(str(folder), plan, run, {"fingerprint": "this", "reasons": {}} | facts)


def test_buckets_of_a_run_come_back_one_at_a_time(tmp_path: Path, make_events: Callable) -> None:
    events = make_events(num_users=5)
    mark = write(tmp_path, events)
    expected = bucket_of(events.column("user_id").combine_chunks(), 4)
    for bucket in range(4):
        found = read_run_bucket(str(tmp_path), mark, bucket)
        users = [] if found is None else found.column("user_id").to_pylist()
        assert users == events.filter(pa.array(expected == bucket)).column("user_id").to_pylist()
    assert read_run_items(str(tmp_path), mark["files"]["items"]["name"]).rows() == [("i0", 5), ("i1", 5), ("i2", 5)]
    assert read_run_minutes(str(tmp_path), mark)["count"].sum() == 15


def test_a_run_without_a_good_row_has_a_mark_and_no_bucket(tmp_path: Path, make_events: Callable) -> None:
    mark = write(tmp_path, make_events().slice(0, 0))
    assert [read_run_bucket(str(tmp_path), mark, bucket) for bucket in range(4)] == [None] * 4


def test_marks_say_what_is_done_and_deleting_takes_all(tmp_path: Path, make_events: Callable) -> None:
    marks = {number: write(tmp_path, make_events(), number) for number in (0, 2)}
    assert read_marks(str(tmp_path), "this") == marks
    delete_runs(str(tmp_path))
    assert read_marks(str(tmp_path), "this") == {}


def test_runs_of_other_settings_are_refused(tmp_path: Path, make_events: Callable) -> None:
    write(tmp_path, make_events())
    with pytest.raises(DataContractError, match=r"part-built store of other settings .* choose another run_dir"):
        read_marks(str(tmp_path), "other")


def test_a_flipped_bit_in_a_run_is_found_and_named(tmp_path: Path, make_events: Callable) -> None:
    mark = write(tmp_path, make_events(num_users=1))
    path = tmp_path / "_runs" / mark["files"]["events"]["name"]
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    bucket = int(np.argmax(mark["bucket_rows"]))
    with pytest.raises(DataContractError, match="cannot be read as Parquet"):
        read_run_bucket(str(tmp_path), mark, bucket)
