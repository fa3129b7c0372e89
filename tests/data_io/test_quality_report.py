"""The quality report: surveys that add up, and rows that are all accounted for before anything is published."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.quality.behaviour import SequenceProfile
from data_io.quality.profile import RowProfile
from data_io.quality.report import (
    MAX_ACTIONS,
    LogSurvey,
    Profiles,
    RunSurvey,
    add_counts,
    add_profiles,
    count_reasons,
    count_rows,
    describe,
)
from data_io.schema import DataContractError

START = datetime(2024, 1, 1, tzinfo=UTC)
START_MINUTE = int(START.timestamp()) // 60

Row = tuple[str | None, str, int, str | None]
"""Item, action, second and reason of quarantine (None: a good row)."""
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["i", "ï", None]),
        st.sampled_from(["view", "search"]),
        st.integers(0, 200),
        st.sampled_from([None, None, "empty_user_id", "empty_action"]),
    ),
    max_size=12,
)


def survey(rows: list[Row]) -> RunSurvey:
    good = [row for row in rows if row[3] is None]
    items = Counter(row[0] for row in good if row[0] is not None)
    minutes = Counter(START_MINUTE + row[2] // 60 for row in good)
    return RunSurvey(
        num_rows=len(rows),
        reasons=Counter(row[3] for row in rows if row[3] is not None),
        items=pl.DataFrame({"item_id": list(items), "count": list(items.values())}, {"item_id": str, "count": int}),
        actions=Counter(row[1] for row in good),
        minutes=pl.DataFrame({"minute": list(minutes), "count": list(minutes.values())}, {"minute": int, "count": int}),
    )


def survey_of(*runs: list[Row]) -> LogSurvey:
    log = LogSurvey()
    for rows in runs:
        log.add(survey(rows))
    return log


def content(log: LogSurvey) -> tuple[Any, ...]:
    return log.num_rows, log.reasons, log.actions, sorted(log.items.rows()), sorted(log.minutes.rows())


def make_mark(num_events: int, num_duplicates: int = 0, num_truncated: int = 0, **facts: Any) -> dict[str, Any]:
    counts = {"num_events": num_events, "num_duplicates": num_duplicates, "num_truncated": num_truncated}
    return (
        {
            "num_users": 1,
        }
        | counts
        | facts
    )


LOG = survey_of([("i", "view", 0, None)] * 6 + [("j", "buy", 120, None)] * 2 + [("i", "view", 0, "empty_user_id")] * 2)


def test_reasons_are_counted() -> None:
    bad = pa.table({"reason": pa.array(["empty_user_id", "empty_action", "empty_user_id"], pa.large_string())})
    assert count_reasons(bad) == {"empty_user_id": 2, "empty_action": 1}
    assert count_reasons(bad.slice(0, 0)) == {}


@given(ROWS, st.lists(st.integers(0, 12), max_size=3).map(sorted))
@settings(max_examples=40, deadline=None)
def test_surveys_of_runs_add_up_to_a_survey_of_the_whole(rows: list[Row], cuts: list[int]) -> None:
    edges = [0, *(min(cut, len(rows)) for cut in cuts), len(rows)]
    split = survey_of(*(rows[begin:end] for begin, end in pairwise(edges)))
    assert content(split) == content(survey_of(rows))


def test_the_report_says_what_was_read_and_kept() -> None:
    report = count_rows(LOG, [make_mark(4), make_mark(2, 1, 1), make_mark(0, num_users=0)], 2)
    assert report == {
        "num_rows": 10,
        "num_events": 6,
        "num_quarantined": 2,
        "num_duplicates": 1,
        "num_truncated": 1,
        "num_forgotten": 0,
        "num_users": 2,
        "num_items": 2,
        "reasons": {"empty_user_id": 2},
        "actions": {"view": 6, "buy": 2},
        "first_minute": START_MINUTE,
        "last_minute": START_MINUTE + 2,
    }
    assert describe(report) == '10 rows = 6 kept + 2 quarantined + 1 duplicates + 1 truncated; {"empty_user_id": 2}'


def test_forgotten_rows_are_part_of_the_identity() -> None:
    log = survey_of([("i", "view", 0, None)] * 10)
    log.num_forgotten = 2
    report = count_rows(log, [make_mark(5, num_forgotten=3)], 2)
    assert report["num_forgotten"] == 5
    assert describe(report) == "10 rows = 5 kept + 0 quarantined + 0 duplicates + 0 truncated + 5 forgotten; {}"
    with pytest.raises(DataContractError, match=r"0 truncated, 2 forgotten; nothing was published"):
        count_rows(log, [make_mark(5)], 2)


def test_surveys_carry_what_was_forgotten() -> None:
    log = LogSurvey()
    log.add(replace(survey([("i", "view", 0, None)]), num_forgotten=1))
    log.add(replace(survey([("i", "view", 0, None)]), num_forgotten=2))
    assert log.num_forgotten == 3


@pytest.mark.parametrize("marks", [[make_mark(7)], [make_mark(8, 1)], [make_mark(4), make_mark(5)], []])
def test_a_report_whose_rows_are_not_conserved_is_refused(marks: list[dict[str, Any]]) -> None:
    with pytest.raises(DataContractError, match=r"row conservation broken: 10 rows read, .* nothing was published"):
        count_rows(LOG, marks, 2)


def test_a_log_with_few_bad_rows_passes_the_check() -> None:
    LOG.check("log", 0.2)


def test_too_many_bad_rows_name_share_reasons_and_remedy() -> None:
    message = r"log: 20\.00% of rows are bad \(empty_user_id 2\), more than events\.max_bad_share 10\.00%; see the quar"
    with pytest.raises(DataContractError, match=message):
        LOG.check("log", 0.1)


def test_a_log_without_a_good_row_is_refused_whatever_the_share() -> None:
    with pytest.raises(DataContractError, match=r"log: all 2 rows are bad \(empty_action 2\)"):
        survey_of([("i", "view", 0, "empty_action")] * 2).check("log", 1.0)


def test_too_many_actions_mean_the_wrong_column() -> None:
    log = LogSurvey(num_rows=2_000)
    log.actions.update({str(action): 1 for action in range(MAX_ACTIONS)})
    log.check("log", 0.0)
    log.actions["one more"] = 1
    with pytest.raises(DataContractError, match=r"log: 1,001 different actions, more than 1,000; map the right column"):
        log.check("log", 0.0)


def make_profiles(num_rows: int = 10, **parts: Any) -> Profiles:
    """Profiles of the same rows as `LOG`."""
    hours = pl.DataFrame({"action": ["view"], "hour": [START_MINUTE // 60], "count": [num_rows - 2]})
    sequences = SequenceProfile(num_users=2, num_events=8, users_by_events=(0, 0, 1, 0, 0, 0, 1))
    rows = RowProfile(num_rows=num_rows, num_good=num_rows - 2, hours=hours)
    return replace(Profiles(rows=rows, sequences=sequences, item_counts=np.array([6, 2])), **parts)


MARKS = [make_mark(8, num_users=2)]


def test_a_report_with_profiles_is_json_and_keeps_the_counts() -> None:
    files = ({"file": "a", "problem": None}, {"file": "b", "num_bytes": 0, "num_rows": 0, "problem": "empty"})
    report = add_profiles(count_rows(LOG, MARKS, 2), make_profiles(files=files), None)
    counts = count_rows(LOG, MARKS, 2)
    assert {key: report[key] for key in counts} == counts
    assert report["median_events_per_user"] == 2.0
    assert report["files_left_out"] == [files[1]]
    assert report["items"]["num_events"] == 8
    assert report["drift"] == {"previous": None, "recent": None}
    assert [finding["severity"] for finding in report["findings"]] == ["bad", "bad", "look"]
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))


def test_a_report_is_compared_with_the_one_before_it_if_that_has_profiles() -> None:
    before = json.loads(json.dumps(add_profiles(count_rows(LOG, MARKS, 2), make_profiles(), None)))
    report = add_profiles(count_rows(LOG, MARKS, 2), make_profiles(item_counts=np.array([800, 1, 1])), before)
    drifts = {drift["what"]: drift for drift in report["drift"]["previous"]}
    assert drifts["actions"]["psi"] == 0.0
    assert drifts["popularity of items"]["psi"] > 0
    counts_only = count_rows(LOG, MARKS, 2)
    assert add_profiles(count_rows(LOG, MARKS, 2), make_profiles(), counts_only)["drift"]["previous"] is None


@given(ROWS, ROWS)
@settings(max_examples=40, deadline=None)
def test_counts_of_an_append_add_up_to_those_of_one_build(old: list[Row], new: list[Row]) -> None:
    old, new = [*old, ("i", "view", 0, None)], [*new, ("ï", "view", 9, None)]
    kept = [sum(row[3] is None for row in rows) for rows in (old, new)]
    parts = [
        count_rows(survey_of(rows), [make_mark(n, num_users=n)], 2) for rows, n in zip((old, new), kept, strict=True)
    ]
    whole = count_rows(survey_of(old, new), [make_mark(n, num_users=n) for n in kept], 2)
    added = add_counts(*parts)
    assert added == whole
