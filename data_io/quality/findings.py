"""Findings: what a quality report says in sentences, for the people who own the log.

Each rule looks at one part of the report and stays silent below its threshold. Invariant: a sentence names what, how
many and what share, and no id or query.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from data_io.quality.drift import WEEKDAYS
from data_io.quality.profile import HOUR, ColumnProfile, RowProfile
from data_io.schema import COUNT, ITEM_ID, PRICE, QUANTITY, QUERY, RATING

Severity = Literal["bad", "look", "note"]
SEVERITIES: tuple[Severity, ...] = ("bad", "look", "note")
"""Worst first: mend it, look at it, know it."""
_MOSTLY_NULL = (ITEM_ID, QUERY)
"""Columns that only some actions fill."""
_NEVER_NEGATIVE = (PRICE, QUANTITY, RATING)
_NAMED_DAYS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence on the log."""

    severity: Severity
    text: str
    share: float = 0.0
    """Of rows, events, users or days: the larger, the earlier among findings of one severity."""


def findings(report: dict[str, Any]) -> list[Finding]:
    """What the figures of a report say, worst first.

    Args:
        report: as `data_io.quality.report.add_profiles` makes it.
    """
    rows = RowProfile.from_json(report["rows"])
    rules: tuple[Callable[[dict[str, Any], RowProfile], Iterator[Finding]], ...] = (
        _on_files,
        _on_rows,
        _on_columns,
        _on_days,
        _on_hours,
        _on_users,
        _on_items,
        _on_snapshots,
        _on_recent_days,
    )
    found = [finding for rule in rules for finding in rule(report, rows)]
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share))


def percent(share: float) -> str:
    """A share in words: 12 %, 1.0 %, under 0.1 %."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or not share else f"{100 * share:.1f} %"


def _grade(share: float, bad: float, look: float) -> Severity:
    return "bad" if share >= bad else "look" if share >= look else "note"


def _on_files(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    if number := len(report["files_left_out"]):
        files = "1 file is" if number == 1 else f"{number:,} files are"
        yield Finding(severity="bad", text=f"{files} left out: see the list for the problem of each", share=1.0)


def _on_rows(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    total = max(report["num_rows"], 1)
    for reason, count in report["reasons"].items():
        share = count / total
        text = f"{count:,} rows ({percent(share)}) are quarantined: {reason}"
        yield Finding(severity=_grade(share, 0.01, 0), text=text, share=share)
    for key, text, bad in (
        ("num_duplicates", "were duplicates of an earlier event", 0.1),
        ("num_truncated", "were older than the newest that the store keeps of a user", 1.0),
        ("num_forgotten", "were of users who are to be forgotten", 2.0),
    ):
        share = report[key] / total
        if report[key]:
            yield Finding(
                severity=_grade(share, bad, bad / 10),
                text=f"{report[key]:,} rows ({percent(share)}) {text}",
                share=share,
            )


def _on_columns(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    for name, column in rows.columns.items():
        if missing := rows.num_good - column.num_rows:
            share = missing / rows.num_good
            yield Finding(
                severity="look", text=f"{name} is absent from files with {percent(share)} of events", share=share
            )
        yield from _on_values(name, column, rows.columns[ITEM_ID].num_null)


def _on_values(name: str, column: ColumnProfile, num_no_item: int) -> Iterator[Finding]:
    total = max(column.num_rows, 1)
    if column.num_null:
        share = column.num_null / total
        expected = name in _MOSTLY_NULL or column.num_null <= num_no_item  # a search has neither item nor price
        severity = "note" if expected else _grade(share, 2, 0.01)
        often = "every event" if column.num_null == total else f"{percent(share)} of events"
        yield Finding(severity=severity, text=f"{name} is null in {often}", share=share)
    for number, what, bad, look in (
        (column.num_nan, f"a {name} that is not a number (NaN)", 0.01, 0.0),
        (column.num_infinite, f"an infinite {name}", 0.0, 0.0),
        (column.num_negative if name in _NEVER_NEGATIVE else 0, f"a negative {name}", 0.1, 0.0),
        (column.num_zero if name == PRICE else 0, f"a {name} of 0", 2.0, 0.01),
    ):
        if number:
            share = number / total
            text = f"{number:,} rows ({percent(share)}) have {what}"
            yield Finding(severity=_grade(share, bad, look), text=text, share=share)


def _on_days(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    days = np.unique(rows.hours[HOUR].to_numpy() // 24)
    if not len(days):
        return
    empty = np.setdiff1d(np.arange(days[0], days[-1]), days)
    if not len(empty):
        return
    span = int(days[-1] - days[0] + 1)
    text = f"no events on {len(empty):,} of {span:,} days between {day_text(days[0])} and {day_text(days[-1])}"
    (weekday, times), *_ = Counter(((empty + 3) % 7).tolist()).most_common(1)
    if times > 4 and times > len(empty) / 2:
        text += f"; {times} of them are {WEEKDAYS[weekday]}s"
    if len(empty) <= _NAMED_DAYS:
        text += ": " + ", ".join(day_text(day) for day in empty)
    yield Finding(severity="look", text=text, share=len(empty) / span)


def day_text(day: int) -> str:
    """The date of a day since 1970, such as 2024-02-29."""
    return datetime.fromtimestamp(int(day) * 86_400, UTC).date().isoformat()


def _on_hours(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    at_midnight = rows.hours[COUNT].to_numpy()[rows.hours[HOUR].to_numpy() % 24 == 0].sum()
    share = float(at_midnight) / max(rows.num_good, 1)
    if share > 0.9:
        text = (
            f"{percent(share)} of events lie in the hour after midnight (UTC): their times are days rather than moments"
        )
        yield Finding(severity="look", text=text, share=share)


def _on_users(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    users = report["sequences"]
    if robots := users["num_robots"]:
        share = users["num_robot_events"] / users["num_events"]
        who = "1 user looks like a robot and holds" if robots == 1 else f"{robots:,} users look like robots and hold"
        text = f"{who} {percent(share)} of events"
        if robots > 0.2 * users["num_users"]:
            text += "; so many that event_time may hold an order rather than moments"
        yield Finding(severity=_grade(share, 0.05, 0.005), text=text, share=share)
    single = users["users_by_events"][1] / users["num_users"] if users["num_users"] else 0.0
    if single > 0.3:
        yield Finding(severity="note", text=f"{percent(single)} of users have a single event", share=single)


def _on_items(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    items = report["items"]
    single = items["num_single"] / max(items["num_items"], 1)
    if single > 0.3:
        text = f"{items['num_single']:,} items ({percent(single)}) have a single event"
        yield Finding(severity="note", text=text, share=single)
    if items["num_items"] >= 100 and items["top_1_share"] > 0.5:
        text = f"1 % of items have {percent(items['top_1_share'])} of events"
        yield Finding(severity="note", text=text, share=items["top_1_share"])


def _on_snapshots(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    for drift in report["drift"]["previous"] or ():
        yield from _on_drift(drift, "since the previous build")


def _on_drift(drift: dict[str, Any], when: str) -> Iterator[Finding]:
    if drift["reading"] in ("look", "shifted"):
        verb = "shifted" if drift["reading"] == "shifted" else "moved"
        yield Finding(
            severity="bad" if drift["reading"] == "shifted" else "look",
            text=f"{drift['what']} {verb} {when}: {drift['bin']} went from {percent(drift['before'])} to "
            f"{percent(drift['after'])} (PSI {drift['psi']:.2f})",
            share=min(drift["psi"], 1.0),
        )


def _on_recent_days(report: dict[str, Any], rows: RowProfile) -> Iterator[Finding]:
    recent = report["drift"]["recent"]
    if recent is None:
        return
    when = f"in the last {recent['recent_days']} days"
    before, now = recent["events_a_day_before"], recent["events_a_day"]
    if before and not 0.5 < now / before < 2:
        text = f"events a day {_verb(before, now)} from {before:,.0f} to {now:,.0f} {when}"
        yield Finding(severity="bad", text=text, share=1.0)
    actions, *others = recent["drifts"]
    moved = list(_moved_actions(recent)) if actions["reading"] in ("look", "shifted") else []
    for name, old, new in moved:
        text = f"the {name} action {_verb(old, new)} from {percent(old)} to {percent(new)} of events {when}"
        yield Finding(severity="bad" if actions["reading"] == "shifted" else "look", text=text, share=abs(new - old))
    for drift in others if moved else recent["drifts"]:
        yield from _on_drift(drift, when)


def _moved_actions(recent: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Actions whose share halved or doubled, and changed by more than a point."""
    for name in recent["actions_before"] | recent["actions"]:
        old, new = recent["actions_before"].get(name, 0.0), recent["actions"].get(name, 0.0)
        if abs(new - old) > 0.01 and max(old, new) >= 2 * min(old, new):
            yield name, old, new


def _verb(before: float, now: float) -> str:
    return "fell" if now < before else "rose"
