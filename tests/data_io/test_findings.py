"""Findings: what a report says in sentences, worst first, and when it says nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_io.quality.behaviour import SequenceProfile, item_curve
from data_io.quality.drift import compare, drift_within
from data_io.quality.findings import SEVERITIES, Finding, findings, percent
from data_io.quality.profile import ColumnProfile, RowProfile

FIRST_DAY = 19_723  # 2024-01-01, a Monday
DAYS = tuple(range(FIRST_DAY, FIRST_DAY + 40))


def hours_of(*rows: tuple[str, int, int]) -> pl.DataFrame:
    schema = {"action": pl.String, "hour": pl.Int64, "count": pl.Int64}
    return pl.DataFrame(list(rows), schema, orient="row").sort("action", "hour")


def make_hours(days: tuple[int, ...] = DAYS, buys: Callable[[int], int] = lambda day: 12) -> pl.DataFrame:
    """A hundred events a day at noon, some of them of action buy."""
    views = [("view", 24 * day + 12, 100 - buys(day)) for day in days]
    return hours_of(*views, *(("buy", 24 * day + 12, buys(day)) for day in days))


def make_report(
    hours: pl.DataFrame | None = None, columns: dict[str, ColumnProfile] | None = None, **parts: Any
) -> Any:
    hours = make_hours() if hours is None else hours
    num_good = int(hours["count"].sum())
    all_columns = {"item_id": ColumnProfile(num_rows=num_good, num_null=0)} | (columns or {})
    rows = RowProfile(num_rows=num_good, num_good=num_good, columns=all_columns, hours=hours)
    sequences = SequenceProfile(num_users=100, num_events=num_good, users_by_events=(0, 1, 99))
    counts = {"num_rows": num_good, "num_duplicates": 0, "num_truncated": 0, "num_forgotten": 0, "reasons": {}}
    report = counts | {
        "rows": rows.to_json(),
        "sequences": sequences.to_json(),
        "items": item_curve(np.full(100, 40)),
        "files_left_out": [],
        "drift": {"previous": None, "recent": drift_within(rows)},
    }
    report["sequences"] |= parts.pop("sequences", {})
    return report | parts


def said(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.text) for finding in findings(report)]


def test_a_clean_log_has_no_findings() -> None:
    assert findings(make_report()) == []


def test_files_and_rows_that_were_left_out_are_said() -> None:
    report = make_report(files_left_out=[{}], num_rows=4_000, num_duplicates=40, num_truncated=2, num_forgotten=8)
    report["reasons"] = {"empty_user_id": 400, "empty_action": 3}
    assert said(report) == [
        ("bad", "1 file is left out: see the list for the problem of each"),
        ("bad", "400 rows (10 %) are quarantined: empty_user_id"),
        ("look", "40 rows (1.0 %) were duplicates of an earlier event"),
        ("look", "3 rows (under 0.1 %) are quarantined: empty_action"),
        ("note", "8 rows (0.2 %) were of users who are to be forgotten"),
        ("note", "2 rows (under 0.1 %) were older than the newest that the store keeps of a user"),
    ]


def test_columns_with_holes_and_absurd_values_are_said() -> None:
    price = ColumnProfile(num_rows=4_000, num_null=120, num_nan=4, num_infinite=1, num_negative=1_336, num_zero=80)
    columns = {"price": price, "session_id": ColumnProfile(num_rows=3_000, num_null=3_000)}
    assert said(make_report(columns=columns)) == [
        ("bad", "1,336 rows (33 %) have a negative price"),
        ("bad", "1 rows (under 0.1 %) have an infinite price"),
        ("look", "session_id is null in every event"),
        ("look", "session_id is absent from files with 25 % of events"),
        ("look", "price is null in 3.0 % of events"),
        ("look", "80 rows (2.0 %) have a price of 0"),
        ("look", "4 rows (0.1 %) have a price that is not a number (NaN)"),
    ]


def test_a_price_that_searches_lack_is_a_note() -> None:
    columns = {name: ColumnProfile(num_rows=4_000, num_null=800) for name in ("item_id", "price")}
    assert {severity for severity, _ in said(make_report(columns=columns))} == {"note"}


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (DAYS[3:5], "no events on 2 of 40 days between 2024-01-01 and 2024-02-09: 2024-01-04, 2024-01-05"),
        (
            DAYS[5:40:7],
            "no events on 5 of 40 days between 2024-01-01 and 2024-02-09; 5 of them are Saturdays: 2024-01-06",
        ),
    ],
)
def test_days_without_events_are_said(missing: tuple[int, ...], text: str) -> None:
    report = make_report(make_hours(tuple(day for day in DAYS if day not in missing)))
    ((severity, found),) = said(report)
    assert severity == "look"
    assert found.startswith(text)


def test_times_that_are_days_are_said() -> None:
    report = make_report(hours_of(*(("view", 24 * day, 100) for day in DAYS)))
    text = "100 % of events lie in the hour after midnight (UTC): their times are days rather than moments"
    assert said(report) == [("look", text)]


def test_robots_and_single_events_are_said() -> None:
    users = {"num_robots": 12, "num_robot_events": 320, "users_by_events": [0, 41, 59]}
    assert said(make_report(sequences=users)) == [
        ("bad", "12 users look like robots and hold 8.0 % of events"),
        ("note", "41 % of users have a single event"),
    ]
    order = said(make_report(sequences={"num_robots": 50, "num_robot_events": 4_000}))
    assert order[0][1].endswith("; so many that event_time may hold an order rather than moments")


def test_items_that_are_mostly_single_or_few_are_said() -> None:
    report = make_report(items=item_curve(np.append(np.ones(99, np.int64), 300)))
    assert said(report) == [
        ("note", "99 items (99 %) have a single event"),
        ("note", "1 % of items have 75 % of events"),
    ]


def test_an_action_that_fell_in_the_last_week_is_said() -> None:
    report = make_report(make_hours(buys=lambda day: 12 if day < DAYS[-7] else 1))
    assert ("bad", "the buy action fell from 12 % to 1.0 % of events in the last 7 days") in said(report)


def test_a_log_that_dries_up_is_said() -> None:
    days = [*DAYS[:-7], DAYS[-1]]
    assert said(make_report(make_hours(tuple(days))))[0] == (
        "bad",
        "events a day fell from 100 to 14 in the last 7 days",
    )


def test_drift_since_the_previous_build_is_said_where_it_is_one() -> None:
    shifted = compare("hour of the day", {"09:00": 900, "10:00": 100}, {"09:00": 100, "10:00": 900})
    stable = compare("actions", {"view": 10}, {"view": 10})
    few = compare("actions", {"view": 3, "buy": 1}, {"view": 1, "buy": 3})
    drifts = [{name: getattr(drift, name) for name in drift.__slots__} for drift in (shifted, stable, few)]
    ((severity, text),) = said(make_report(drift={"previous": drifts, "recent": None}))
    assert severity == "bad"
    assert text.startswith("hour of the day shifted since the previous build: 09:00 went from 90 % to 10 % (PSI 3.")


def test_the_worst_comes_first() -> None:
    report = make_report(num_rows=4_000, num_truncated=3_000, num_duplicates=4, reasons={"empty_action": 1})
    found: list[Finding] = findings(report)
    assert [SEVERITIES.index(finding.severity) for finding in found] == [1, 1, 2]
    assert found[0].share > found[1].share


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0004, "under 0.1 %"), (0.0104, "1.0 %"), (0.123, "12 %"), (1.0, "100 %")]
)
def test_shares_in_words(share: float, text: str) -> None:
    assert percent(share) == text
