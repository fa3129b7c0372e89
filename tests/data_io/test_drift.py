"""Drift: the index against hand-computed numbers, chance against draws, and windows inside a log."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_io.quality.drift import (
    chance_psi,
    compare,
    count_actions,
    count_hours_of_day,
    count_weekdays,
    drift_between,
    drift_within,
    psi,
)
from data_io.quality.profile import ColumnProfile, RowProfile

MONDAY = 24 * 4  # 1970-01-05, in hours


def hours_of(*rows: tuple[str, int, int]) -> pl.DataFrame:
    schema = {"action": pl.String, "hour": pl.Int64, "count": pl.Int64}
    return pl.DataFrame(list(rows), schema, orient="row").sort("action", "hour")


def make_report(actions: dict[str, int], lengths: list[int], ranks: list[int], num_null: int = 0) -> dict[str, Any]:
    rows = RowProfile(
        columns={"price": ColumnProfile(num_rows=10_000, num_null=num_null)},
        hours=hours_of(*((name, MONDAY, count) for name, count in actions.items())),
    )
    sequences = {"users_by_log2_events": lengths}
    return {"rows": rows.to_json(), "sequences": sequences, "items": {"events_by_rank": ranks}}


def test_the_index_is_that_of_a_hand() -> None:
    before, after = (0.5, 0.25, 0.25), (0.4, 0.4, 0.2)
    by_hand = sum((p - q) * math.log(p / q) for p, q in zip(after, before, strict=True))
    assert psi(1e9 * np.array(before), 1e9 * np.array(after)) == pytest.approx(by_hand, abs=1e-6)
    assert by_hand == pytest.approx(0.1040, abs=1e-4)


def test_an_empty_bin_costs_what_half_an_event_costs() -> None:
    before, after = np.array([99, 0]), np.array([49, 50])
    q, p = (99.5 / 100, 0.5 / 100), (49.5 / 100, 50.5 / 100)
    by_hand = (p[0] - q[0]) * math.log(p[0] / q[0]) + (p[1] - q[1]) * math.log(p[1] / q[1])
    assert psi(before, after) == pytest.approx(by_hand)
    assert psi(after, before) == pytest.approx(by_hand)
    assert psi(before, before) == 0.0


def test_chance_stays_below_its_bound_in_about_95_of_100_draws() -> None:
    generator = np.random.default_rng(0)
    shares = np.arange(1, 25) / np.arange(1, 25).sum()
    draws = [(generator.multinomial(2_000, shares), generator.multinomial(3_000, shares)) for _ in range(400)]
    below = np.mean([psi(before, after) <= chance_psi(before, after) for before, after in draws])
    assert 0.9 < below < 0.99


@pytest.mark.parametrize(
    ("after", "reading"),
    [
        ({"view": 880, "buy": 120}, "stable"),
        ({"view": 970, "buy": 30}, "look"),
        ({"view": 800, "buy": 100, "new": 100}, "shifted"),
    ],
)
def test_readings(after: dict[str, int], reading: str) -> None:
    assert compare("actions", {"view": 880, "buy": 120}, after).reading == reading


def test_a_handful_of_events_is_no_shift() -> None:
    drift = compare("actions", {"view": 3, "buy": 1}, {"view": 1, "buy": 3})
    assert drift.psi > 0.25
    assert drift.reading == "too few"


def test_the_bin_that_changed_most_is_named() -> None:
    drift = compare("actions", {"view": 900, "buy": 100}, {"cart": 60, "buy": 20, "view": 920})
    assert (drift.bin, drift.before, drift.after) == ("buy", 0.1, 0.02)
    assert compare("nothing", {}, {}).reading == "stable"


def test_snapshots_are_compared_in_every_respect() -> None:
    before = make_report({"view": 9_000, "buy": 1_000}, [0, 500, 500], [10, 10, 10, 10, 10, 10, 40])
    after = make_report({"view": 9_900, "buy": 100}, [0, 900, 100], [10, 10, 10, 10, 10, 10, 40], num_null=3_000)
    drifts = {drift["what"]: drift for drift in drift_between(before, after)}
    assert list(drifts) == [
        "actions",
        "events per user",
        "hour of the day",
        "day of the week",
        "popularity of items",
        "nulls of price",
    ]
    assert drifts["events per user"]["reading"] == "shifted"
    assert (drifts["events per user"]["bin"], drifts["events per user"]["after"]) == ("1", 0.9)
    assert drifts["popularity of items"]["psi"] == 0.0
    assert (drifts["nulls of price"]["bin"], drifts["nulls of price"]["after"]) == ("null", 0.3)
    assert all(drift["psi"] == 0.0 for drift in drift_between(before, before))


def test_the_last_week_is_held_against_the_four_before_it() -> None:
    rows = [("view", MONDAY + 24 * day + 9, 90) for day in range(36)]
    rows += [("buy", MONDAY + 24 * day + 9, 10 if day < 29 else 40) for day in range(36)]
    found = drift_within(RowProfile(hours=hours_of(*rows)))
    assert found is not None
    assert (found["events_a_day_before"], found["events_a_day"]) == (100.0, 130.0)
    assert found["actions_before"] == {"view": 0.9, "buy": 0.1}
    assert found["actions"] == {"view": pytest.approx(90 / 130), "buy": pytest.approx(40 / 130)}
    actions, hour = found["drifts"]
    assert (actions["what"], actions["reading"]) == ("actions", "shifted")
    assert (hour["what"], hour["reading"]) == ("hour of the day", "stable")


@pytest.mark.parametrize("days", [0, 1, 34])
def test_a_young_log_has_nothing_to_compare(days: int) -> None:
    rows = [("view", MONDAY + 24 * day, 5) for day in range(days)]
    assert drift_within(RowProfile(hours=hours_of(*rows))) is None


def test_hours_fold_into_days_and_weeks() -> None:
    hours = hours_of(("view", MONDAY + 9, 3), ("buy", MONDAY + 24 * 6 + 23, 4), ("buy", -1, 1))
    assert {name: count for name, count in count_hours_of_day(hours).items() if count} == {"09:00": 3, "23:00": 5}
    assert {day: count for day, count in count_weekdays(hours).items() if count} == {
        "Monday": 3,
        "Sunday": 4,
        "Wednesday": 1,
    }
    assert count_actions(hours) == {"buy": 5, "view": 3}
