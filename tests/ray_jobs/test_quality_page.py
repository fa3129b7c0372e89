"""The quality page: one self-contained, well-formed file that shows all of a report and no id of the log."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_io.quality.behaviour import profile_sequences
from data_io.quality.profile import RowProfile, profile_rows
from data_io.quality.report import LogSurvey, Profiles, RunSurvey, add_profiles, count_reasons, count_rows
from data_io.schema import TIME_TYPE, DataContractError
from ray_jobs.quality_page import list_actions, plot_days, plot_log2, write_quality_page

START = datetime(2024, 1, 1, tzinfo=UTC)
ODD_USER, ODD_ITEM, ODD_QUERY, ODD_BAD = "usér-Ω7731", "it€m/4242#x", "zażółć gęślą 99", "b@d-ïd 5150"
NUM_DAYS = 40
SKIPPED_DAY = 11


def make_rows() -> tuple[pa.Table, pa.Table]:
    """Two good rows a day but on one day, and one bad row."""
    days = [day for day in range(NUM_DAYS) if day != SKIPPED_DAY for _ in range(2)]
    size = len(days)
    good = pa.table(
        {
            "user_id": pa.array([ODD_USER] * size, pa.large_string()),
            "item_id": pa.array([ODD_ITEM] * size, pa.large_string()),
            "action": pa.array(["view", "<b>buy & $x$</b>"] * (size // 2), pa.large_string()),
            "event_time": pa.array([START + timedelta(days=day, hours=9) for day in days], TIME_TYPE),
            "query": pa.array([ODD_QUERY] * size, pa.large_string()),
            "price": pa.array([1.5, None] * (size // 2), pa.float32()),
        }
    )
    bad = good.slice(0, 1).set_column(0, "user_id", pa.array([ODD_BAD], pa.large_string()))
    place = {"source_row": [41], "source_file": ["<i>log</i>.parquet"], "reason": ["user_id_too_long"]}
    for name, values in place.items():
        bad = bad.append_column(name, pa.array(values))
    return good, bad


def make_store_rows(good: pa.Table) -> pa.Table:
    columns = {
        "item_index": pa.array([2] * good.num_rows, pa.int32()),
        "action_index": pa.array([2] * good.num_rows, pa.int16()),
        "event_time": good.column("event_time").combine_chunks(),
    }
    lists = {n: pa.LargeListArray.from_arrays(pa.array([0, good.num_rows]), values) for n, values in columns.items()}
    return pa.table({"user_id": pa.array([ODD_USER])} | lists)


def make_report(previous: dict[str, Any] | None = None, files: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    good, bad = make_rows()
    num_good = good.num_rows
    minutes = [int(START.timestamp()) // 60, int(START.timestamp()) // 60 + 1_440 * (NUM_DAYS - 1)]
    log = LogSurvey()
    log.add(
        RunSurvey(
            num_rows=num_good + 2,
            reasons=count_reasons(bad),
            items=pl.DataFrame({"item_id": [ODD_ITEM], "count": [num_good]}),
            actions={"view": num_good // 2, "<b>buy & $x$</b>": num_good // 2},
            minutes=pl.DataFrame({"minute": minutes, "count": [1, num_good - 1]}),
            num_duplicates=1,
        )
    )
    profiles = Profiles(
        rows=profile_rows(good, bad),
        sequences=profile_sequences(make_store_rows(good)),
        item_counts=np.array([num_good]),
        files=files,
    )
    mark = {"num_users": 1, "num_events": num_good, "num_duplicates": 0, "num_truncated": 0}
    return json.loads(json.dumps(add_profiles(count_rows(log, [mark], 1), profiles, previous)))


def page_of(report: dict[str, Any], folder: Path) -> str:
    write_quality_page(str(folder / "quality.html"), report)
    return (folder / "quality.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a second build."""
    files = ({"file": "s3://logs/<torn>.parquet", "num_bytes": 12, "num_rows": 0, "problem": "torn & short"},)
    return page_of(make_report(make_report(), files), tmp_path_factory.mktemp("quality"))


class Elements(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} at {self.getpos()}")


def test_the_page_is_well_formed(page: str) -> None:
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert (elements.faults, elements.open) == ([], [])


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|src=", page)
    assert not re.findall(r"url\((?!#)|href=\"(?!#)", page)


def test_no_id_and_no_query_is_in_the_report_or_on_the_page(page: str) -> None:
    report = json.dumps(make_report(), ensure_ascii=False)
    for odd in (ODD_USER, ODD_ITEM, ODD_QUERY, ODD_BAD, "Ω7731", "m/4242", "gęślą", "d 5150"):
        assert odd not in report
        assert odd not in page
    assert "<code>a@a-ua_9999</code>" in page


def test_text_of_the_log_is_escaped(page: str) -> None:
    assert "&lt;b&gt;buy &amp; $x$&lt;/b&gt;" in page
    assert "&lt;i&gt;log&lt;/i&gt;.parquet" in page
    assert "s3://logs/&lt;torn&gt;.parquet" in page
    assert not re.findall(r"<(?:b>buy|i>log|torn)", page)


def test_every_part_has_its_section(page: str) -> None:
    assert re.findall(r"<h2>([^<]*)</h2>", page) == [
        "Findings",
        "Files",
        "Columns",
        "Time",
        "Actions",
        "Users",
        "Items",
        "Sessions and robots",
        "Drift",
        "Quarantine",
    ]
    assert page.count("<svg ") == 9
    assert "prefers-color-scheme: dark" in page
    assert "#010203" not in page


def test_rows_add_up_on_the_page(page: str) -> None:
    identity = re.sub(r"<[^>]*>|\s+", " ", page.split('<p class="legend">')[1].split("</p>")[0])
    assert " ".join(identity.split()) == "80 rows = 78 kept + 1 quarantined + 1 duplicates"


def test_findings_and_drift_are_on_the_page(page: str) -> None:
    assert "no events on 1 of 40 days between 2024-01-01 and 2024-02-09: 2024-01-12" in page
    assert "torn &amp; short" in page
    assert "There is no earlier build" not in page
    assert page.count("nulls of price") == 1


def test_a_first_build_says_that_nothing_comes_before_it(tmp_path: Path) -> None:
    first = page_of(make_report(), tmp_path)
    assert "There is no earlier build to compare with." in first
    assert "None was left out." in first


def test_a_report_of_counts_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"quality\.html: the report holds counts and no profiles"):
        page_of({"num_rows": 1}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_store_without_events_has_a_page(tmp_path: Path) -> None:
    report = make_report()
    report["rows"] = RowProfile().to_json()
    report["sequences"] |= {"num_users": 0, "num_events": 0, "users_by_events": [], "users_by_log2_events": []}
    assert "<h2>Drift</h2>" in page_of(report, tmp_path)


def test_a_day_without_events_is_marked() -> None:
    hours = profile_rows(*make_rows()).hours
    assert "#ef4444" in plot_days(hours)
    assert "#ef4444" not in plot_days(hours.filter(pl.col("hour") < hours["hour"].min() + 24))


def test_a_log_of_decades_is_drawn_in_few_steps() -> None:
    size = 9_000
    hours = pl.DataFrame({"action": ["view"] * size, "hour": np.arange(size) * 24, "count": [1] * size})
    assert len(plot_days(hours)) < 100_000


def test_the_most_frequent_actions_have_colours_of_their_own() -> None:
    hours = pl.DataFrame({"action": [f"a{n}" for n in range(12)], "hour": [0] * 12, "count": range(12, 0, -1)})
    actions = list_actions(hours)
    assert [action.name for action in actions] == [f"a{n}" for n in range(12)]
    assert len({action.colour for action in actions[:8]}) == 8
    assert {action.colour for action in actions[8:]} == {"#9ca3af"}


def test_ticks_name_where_bins_begin() -> None:
    plot = plot_log2([0, 3, 2, 0, 1], "events of a user", "share of users")
    assert re.findall(r"<!-- (\d+) -->", plot) == ["1", "2", "4", "8"]
    assert plot_log2([], "events", "share").startswith("<svg")
