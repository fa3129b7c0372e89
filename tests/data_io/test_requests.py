"""Requests: what is read, what cannot be used and is counted, and which history each sees."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.requests import Requests, read_requests, searches_of
from data_io.schema import DataContractError
from data_io.sequences import Sequences

TIME = datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC)
ROWS = {
    "user_id": ["a", None, "b", "stranger", "a"],
    "query": ["red", "blue", " ", "green", None],
    "candidates": [["x", "y"], [], None, ["x", None], ["x", "y"]],
    "relevance": [[1.0, 2.0], None, [1.0], [3.0], [1.0, float("nan")]],
    "request_time": [TIME, None, None, None, None],
}


def read(folder: Path, **columns: list[object]) -> Requests:
    pq.write_table(pa.table(columns), folder / "requests.parquet")
    return read_requests(str(folder), pa.large_string(), pa.large_string())


def test_what_cannot_be_used_is_left_out_and_counted_and_no_request_is_dropped(tmp_path: Path) -> None:
    requests = read(tmp_path, **ROWS)
    assert requests.table.column("request").to_pylist() == [0, 1, 2, 3, 4]
    assert requests.table.column("query").to_pylist() == ["red", "blue", None, "green", None]
    assert requests.table.column("relevance").to_pylist() == [[1.0, 2.0], None, None, None, None]
    assert requests.table.column("request_time").to_pylist() == [3_000_000, None, None, None, None]
    assert requests.counts == {
        "requests": 5,
        "without_user": 1,
        "without_query": 2,
        "with_empty_candidates": 1,
        "with_unfit_relevance": 3,
    }


def test_every_request_is_in_one_bucket(tmp_path: Path) -> None:
    parts = read(tmp_path, **ROWS).by_bucket(4)
    assert sorted(number for part in parts.values() for number in part.column("request").to_pylist()) == [0, 1, 2, 3, 4]
    assert any({0, 4} <= set(part.column("request").to_pylist()) for part in parts.values()), "those of one user"


def test_columns_that_may_be_missing_are_null(tmp_path: Path) -> None:
    requests = read(tmp_path, user_id=["a"], query=["red"])
    assert requests.table.column("candidates").to_pylist() == [None]
    assert requests.counts["with_empty_candidates"] == 0


def test_files_that_break_the_contract_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"there is no column query; requests need user_id and query"):
        read(tmp_path, user_id=["a"])
    with pytest.raises(DataContractError, match=r"candidates is string, and cannot be read as large_list"):
        read(tmp_path, user_id=["a"], query=["red"], candidates=["x"])


def test_a_request_sees_what_was_before_it(tmp_path: Path) -> None:
    sequences = Sequences(
        user_id=pa.array(["b", "a"]),
        offsets=np.array([0, 1, 4]),
        item_index=np.array([5, 6, 7, 8], np.int32),
        action_index=np.array([2, 2, 2, 2], np.int16),
        event_time=np.array([0, 1, 3_000_000, 4_000_000]),
    )
    searches = searches_of(read(tmp_path, **ROWS).table, sequences, end_time=9_000_000)
    assert searches.row.tolist() == [1, -1, 0, -1, 1]
    assert searches.before[searches.row >= 0].tolist() == [2, 1, 4], "an event at the moment itself is not before it"
    assert searches.time.tolist() == [3_000_000, *[9_000_000] * 4]
