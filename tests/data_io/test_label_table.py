"""Labels of a table: by user and time, bad tables refused."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.config import SettingsError
from data_io.label_table import LabelTable, most_frequent, read_label_table
from data_io.question_config import TableQuestion
from data_io.schema import DataContractError

IDS = pa.array(["k", "b", "c"], pa.large_string())
"""Users that labels for good are trained on (not kept for validation or test)."""
TEXT = pa.large_string()


def write(folder: Path, **columns: object) -> str:
    url = str(folder / "labels.parquet")
    pq.write_table(pa.table(columns), url)
    return url


def test_labels_without_a_time_hold_always(tmp_path: Path) -> None:
    url = write(tmp_path, user_id=["c", "x", "k", None], label=[1, 0, 0, 1])
    table, classes = read_label_table(TableQuestion(path=url), TEXT)
    np.testing.assert_equal(table.labels(IDS, 5, 10, "training"), [0, np.nan, 1])
    assert classes == ()


def test_the_earliest_label_within_the_horizon_counts() -> None:
    users = pa.array(["k", "k", "k", "b"], TEXT)
    table = LabelTable.of(users, np.array([3.0, 1.0, 2.0, 5.0]), np.array([30, 10, 20, 9]))
    np.testing.assert_equal(table.labels(IDS, 10, 10, "training"), [1, np.nan, np.nan])
    np.testing.assert_equal(table.labels(IDS, 11, 20, "training"), [2, np.nan, np.nan])
    np.testing.assert_equal(table.labels(IDS, 0, 10, "training"), [np.nan, 5, np.nan])


def test_times_are_read_as_utc(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 2, tzinfo=UTC)
    url = write(tmp_path, user_id=["k"], label=[2.5], at=pa.array([moment], pa.timestamp("ns", "Europe/Berlin")))
    table, _ = read_label_table(TableQuestion(path=url, time="at", answer="value"), TEXT)
    micros = int(moment.timestamp() * 1e6)
    np.testing.assert_equal(table.labels(IDS, micros - 1, 2, "training"), [2.5, np.nan, np.nan])
    np.testing.assert_equal(table.labels(IDS, micros + 1, 2, "training"), [np.nan] * 3)


def test_classes_are_the_most_frequent_texts(tmp_path: Path) -> None:
    url = write(tmp_path, user_id=["k", "b", "c", "d"], label=["y", "x", "y", "z"])
    table, classes = read_label_table(TableQuestion(path=url, answer="classes", num_classes=2), TEXT)
    assert classes == ("y", "x")
    np.testing.assert_equal(table.labels(IDS, 0, 1, "training"), [0, 1, 0])
    again, _ = read_label_table(TableQuestion(path=url, answer="classes"), TEXT, classes=("x", "y"))
    np.testing.assert_equal(again.labels(IDS, 0, 1, "training"), [1, 0, 1])


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"user_id": ["a"]}, {}, "no column label"),
        ({"user_id": ["a"], "label": ["much"]}, {}, "label is string, expected numbers"),
        ({"user_id": ["a"], "label": [2]}, {}, "other values than 0 and 1"),
        ({"user_id": ["a"], "label": [1], "at": [5]}, {"time": "at"}, "at is int64, expected a timestamp"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, columns: dict, settings: dict, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        read_label_table(TableQuestion(path=write(tmp_path, **columns), **settings), TEXT)


def test_one_class_is_no_question() -> None:
    with pytest.raises(SettingsError, match="needs two of them"):
        most_frequent([pa.array(["x", "x", None]).value_counts()], 5)


def test_labels_for_good_are_asked_of_other_users_in_each_stage() -> None:
    users = pa.array([f"u{row}" for row in range(2_000)], TEXT)
    table = LabelTable.of(users, np.ones(2_000))
    asked = np.stack([table.labels(users, 0, 0, stage) == 1 for stage in ("training", "validation", "test")])
    assert (asked.sum(axis=0) == 1).all()
    assert asked.sum(axis=1) == pytest.approx([1_600, 200, 200], rel=0.15)
    timed = LabelTable.of(users, np.ones(2_000), np.full(2_000, 5))
    assert (timed.labels(users, 0, 9, "test") == 1).all()
