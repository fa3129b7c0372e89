"""Row profiles: figures of a small log by hand, parts that add up to the whole, and no value of the log in them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.quality.profile import OTHER_ACTIONS, RowProfile, profile_rows, value_pattern
from data_io.schema import TIME_TYPE

START = datetime(2024, 1, 1, tzinfo=UTC)
START_HOUR = int(START.timestamp()) // 3600
NAN, INF = float("nan"), float("inf")

SCHEMA = pa.schema(
    [
        ("user_id", pa.large_string()),
        ("item_id", pa.large_string()),
        ("action", pa.large_string()),
        ("event_time", TIME_TYPE),
        ("price", pa.float32()),
        ("source_row", pa.int64()),
    ]
)
BAD_SCHEMA = SCHEMA.append(pa.field("reason", pa.large_string())).append(pa.field("source_file", pa.large_string()))

Row = tuple[int, str, float | None, str | None]
"""Hour, action, price and reason of quarantine (None: a good row)."""
ROWS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["view", "buy"]),
        st.sampled_from([None, NAN, INF, -1.0, 0.0, 2.5]),
        st.sampled_from([None, None, "empty_user_id", "event_time_too_early"]),
    ),
    max_size=15,
)


def tables(rows: list[Row], first: int = 0) -> tuple[pa.Table, pa.Table]:
    content: list[dict[str, Any]] = [
        {
            "user_id": f"u-{row % 3}",
            "item_id": None if action == "view" else "i",
            "action": action,
            "event_time": START + timedelta(hours=hour, minutes=row),
            "price": price,
            "source_row": row,
            "reason": reason,
            "source_file": "log.parquet",
        }
        for row, (hour, action, price, reason) in enumerate(rows, first)
    ]
    good = pa.Table.from_pylist([row for row in content if row["reason"] is None], SCHEMA)
    return good, pa.Table.from_pylist([row for row in content if row["reason"] is not None], BAD_SCHEMA)


def profile_of(rows: list[Row], first: int = 0) -> RowProfile:
    return profile_rows(*tables(rows, first))


PROFILE = profile_of(
    [
        (0, "view", 2.0, None),
        (0, "buy", -1.0, None),
        (0, "buy", None, None),
        (30, "buy", NAN, None),
        (30, "view", INF, None),
        (30, "view", 0.0, None),
        (0, "view", 1.0, "empty_user_id"),
    ]
)


def test_rows_nulls_and_numbers_are_counted() -> None:
    assert (PROFILE.num_rows, PROFILE.num_good) == (7, 6)
    assert sorted(PROFILE.columns) == ["action", "event_time", "item_id", "price", "user_id"]
    assert PROFILE.columns["item_id"].num_null == 3
    price = PROFILE.columns["price"]
    assert (price.num_rows, price.num_null, price.num_nan, price.num_infinite) == (6, 1, 1, 1)
    assert (price.num_finite, price.num_negative, price.num_zero) == (3, 1, 1)
    assert (price.minimum, price.mean, price.maximum) == (-1.0, pytest.approx(1 / 3), 2.0)


def test_events_are_counted_by_action_and_hour() -> None:
    assert PROFILE.to_json()["hours"] == {
        "buy": {"hours": [START_HOUR, START_HOUR + 30], "counts": [2, 1]},
        "view": {"hours": [START_HOUR, START_HOUR + 30], "counts": [1, 2]},
    }


@pytest.mark.parametrize("far", [datetime(1900, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)])
def test_an_event_far_away_in_time_is_counted_where_it_is(far: datetime) -> None:
    good, bad = tables([(0, "view", 1.0, None), (0, "view", 1.0, None)])
    times = pa.array([START, far], TIME_TYPE)
    hours = profile_rows(good.set_column(3, "event_time", times), bad).to_json()["hours"]["view"]["hours"]
    assert sorted(hours) == sorted([START_HOUR, int(far.timestamp()) // 3600])


def test_numbers_that_are_ids_are_not_summed_up() -> None:
    good, bad = tables([(0, "view", 1.0, None)])
    good = good.set_column(0, "user_id", pa.array([987_654_321])).append_column("store_id", pa.array([31_415_926]))
    profile = profile_rows(good, bad)
    assert profile.columns["user_id"].maximum is profile.columns["store_id"].maximum is None
    assert "987654321" not in json.dumps(profile.to_json())
    assert "31415926" not in json.dumps(profile.to_json())


def test_actions_past_the_first_thousand_are_counted_together() -> None:
    good, bad = tables([(0, "view", 1.0, None)] * 1_005)
    many = pa.array([f"a{row}" for row in range(1_005)], pa.large_string())
    hours = profile_rows(good.set_column(2, "action", many), bad).to_json()["hours"]
    assert len(hours) == 1_001
    assert sum(sum(part["counts"]) for part in hours.values()) == 1_005
    assert sum(hours[OTHER_ACTIONS]["counts"]) == 5


def test_quarantined_rows_leave_their_place_and_the_shape_of_the_value() -> None:
    _, bad = tables([(0, "view", 1.0, "empty_user_id")] * 5 + [(0, "view", 1.0, "event_time_too_early")])
    users = pa.array(["Ab-9 é", None, "x", "y", "z", "fine"], pa.large_string())
    times = pa.array([START] * 5 + [datetime(1970, 1, 2, tzinfo=UTC)], TIME_TYPE)
    reasons = profile_rows(
        SCHEMA.empty_table(), bad.set_column(0, "user_id", users).set_column(3, "event_time", times)
    ).to_json()["reasons"]
    place = {"file": "log.parquet", "column": "user_id", "type": "large_string"}
    assert reasons["empty_user_id"] == {
        "count": 5,
        "samples": (
            place | {"row": 0, "length": 6, "pattern": "Aa-9_u"},
            place | {"row": 1, "length": None, "pattern": None},
            place | {"row": 2, "length": 1, "pattern": "a"},
        ),
    }
    (sample,) = reasons["event_time_too_early"]["samples"]
    assert (sample["column"], sample["pattern"]) == ("event_time", "year 1970")


def test_a_reason_that_names_no_column_has_no_shape() -> None:
    _, bad = tables([(0, "view", 1.0, "invalid_utf8")])
    (sample,) = profile_rows(SCHEMA.empty_table(), bad).reasons["invalid_utf8"].samples
    assert (sample.row, sample.column, sample.pattern) == (0, None, None)


@given(st.text(max_size=60))
def test_a_pattern_has_no_letter_or_digit_of_the_text(text: str) -> None:
    pattern = value_pattern(text)
    assert {sign for sign in pattern if sign.isalnum()} <= set("aA9u")
    assert len(pattern) <= 33


@given(ROWS, ROWS, ROWS)
@settings(max_examples=60, deadline=None)
def test_profiles_of_parts_add_up_to_the_profile_of_the_whole(a: list[Row], b: list[Row], c: list[Row]) -> None:
    whole = profile_of(a + b + c).to_json()
    parts = [profile_of(a), profile_of(b, len(a)), profile_of(c, len(a) + len(b))]
    assert (parts[2] + (parts[0] + parts[1])).to_json() == whole
    assert sum(parts, RowProfile()).to_json() == whole


@given(ROWS)
@settings(max_examples=30, deadline=None)
def test_a_profile_comes_back_from_its_json(rows: list[Row]) -> None:
    content = profile_of(rows).to_json()
    text = json.dumps(content, allow_nan=False)
    assert json.dumps(RowProfile.from_json(json.loads(text)).to_json()) == text


def test_columns_that_only_some_runs_have_keep_their_own_rows() -> None:
    good, bad = tables([(0, "view", 1.0, None)] * 2)
    profile = profile_rows(good, bad) + profile_rows(good.drop_columns(["price"]), bad)
    assert (profile.num_good, profile.columns["price"].num_rows) == (4, 2)
