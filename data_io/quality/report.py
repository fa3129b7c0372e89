"""The quality report of a build: what was in the log, what was kept, and why the rest was not.

Profiles, drift and findings come from modules of their own and are put together here. Invariant: rows read = events
kept + quarantined + duplicates + truncated + forgotten, checked before a store is published.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.quality.behaviour import SequenceProfile, item_curve
from data_io.quality.drift import drift_between, drift_within
from data_io.quality.findings import findings
from data_io.quality.profile import RowProfile
from data_io.schema import COUNT, ITEM_ID, REASON, DataContractError
from data_io.store import MINUTE

MAX_ACTIONS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSurvey:
    """What one run of the log holds; small enough to travel to the driver."""

    num_rows: int
    reasons: dict[str, int]
    """Quarantined rows by reason."""
    items: pl.DataFrame
    """item_id and count."""
    actions: dict[str, int]
    """Events by action."""
    minutes: pl.DataFrame
    """minute since 1970 UTC and count."""
    num_duplicates: int = 0
    num_truncated: int = 0
    num_forgotten: int = 0


def count_reasons(bad: pa.Table) -> dict[str, int]:
    """Quarantined rows by reason."""
    table = pl.Series(REASON, bad.column(REASON)).value_counts(name=COUNT)
    return dict(zip(table[REASON].to_list(), table[COUNT].to_list(), strict=True))


@dataclass
class LogSurvey:
    """The surveys of all runs, added up."""

    num_rows: int = 0
    num_duplicates: int = 0
    num_truncated: int = 0
    num_forgotten: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    _items: list[pl.DataFrame] = field(default_factory=list)
    _minutes: list[pl.DataFrame] = field(default_factory=list)

    def add(self, part: RunSurvey) -> None:
        """Count a run in."""
        self.num_rows += part.num_rows
        self.num_duplicates += part.num_duplicates
        self.num_truncated += part.num_truncated
        self.num_forgotten += part.num_forgotten
        self.reasons.update(part.reasons)
        self.actions.update(part.actions)
        self._items = _merge([*self._items, part.items], ITEM_ID)
        self._minutes = _merge([*self._minutes, part.minutes], MINUTE)

    @property
    def num_bad(self) -> int:
        """Quarantined rows."""
        return sum(self.reasons.values())

    @property
    def items(self) -> pl.DataFrame:
        """item_id and count of the whole log."""
        return _total(self._items, ITEM_ID)

    @property
    def minutes(self) -> pl.DataFrame:
        """minute and count of the whole log."""
        return _total(self._minutes, MINUTE)

    def check(self, url: str, max_bad_share: float) -> None:
        """Fail where a build would be of no use.

        Raises:
            DataContractError: too many bad rows, none good, or so many actions that the column must be another one.
        """
        share = self.num_bad / max(self.num_rows, 1)
        if self.num_bad == self.num_rows > 0:
            raise DataContractError(f"{url}: all {self.num_rows:,} rows are bad ({self.describe_reasons()})")
        if share > max_bad_share:
            raise DataContractError(
                f"{url}: {share:.2%} of rows are bad ({self.describe_reasons()}), more than events.max_bad_share "
                f"{max_bad_share:.2%}; see the quarantine folder of the store, mend the log or raise the share"
            )
        if len(self.actions) > MAX_ACTIONS:
            raise DataContractError(
                f"{url}: {len(self.actions):,} different actions, more than {MAX_ACTIONS:,}; map the right column "
                "with events.columns"
            )

    def describe_reasons(self) -> str:
        """Reasons of quarantine with their counts."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.most_common())


def _merge(parts: list[pl.DataFrame], key: str) -> list[pl.DataFrame]:
    """Add up tables once they have grown past the total before them, so that memory stays near the final size."""
    if sum(part.height for part in parts[1:]) > max(parts[0].height, 1_000_000):
        return [_total(parts, key)]
    return parts


def _total(parts: list[pl.DataFrame], key: str) -> pl.DataFrame:
    return pl.concat(parts).group_by(key).agg(pl.col(COUNT).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """What goes into a report beyond the counts of rows."""

    rows: RowProfile
    """Of the whole log: the sum over its runs."""
    sequences: SequenceProfile
    """Of the whole store: the sum over its buckets."""
    item_counts: np.ndarray
    """[items] good rows of each item."""
    files: Sequence[dict[str, Any]] = ()
    """Verdicts of the scan (file, num_bytes, num_rows, problem); those with a problem are listed."""


def count_rows(log: LogSurvey, marks: list[dict[str, Any]], vocabulary_size: int) -> dict[str, Any]:
    """The counts of a report, which a manifest holds too.

    Args:
        log: what was read.
        marks: of the buckets; `num_forgotten` may be among their facts.
        vocabulary_size: items in the vocabulary.

    Raises:
        DataContractError: rows were lost or doubled between log and store.
    """
    kept = sum(mark["num_events"] for mark in marks)
    duplicates = log.num_duplicates + sum(mark["num_duplicates"] for mark in marks)
    truncated = log.num_truncated + sum(mark["num_truncated"] for mark in marks)
    forgotten = log.num_forgotten + sum(mark.get("num_forgotten", 0) for mark in marks)
    if log.num_rows != kept + log.num_bad + duplicates + truncated + forgotten:
        raise DataContractError(
            f"row conservation broken: {log.num_rows:,} rows read, {kept:,} kept, {log.num_bad:,} quarantined, "
            f"{duplicates:,} duplicates, {truncated:,} truncated{_forgotten(forgotten, ', ')}; nothing was published"
        )
    minutes = log.minutes.sort(MINUTE)
    return {
        "num_rows": log.num_rows,
        "num_events": kept,
        "num_quarantined": log.num_bad,
        "num_duplicates": duplicates,
        "num_truncated": truncated,
        "num_forgotten": forgotten,
        "num_users": sum(mark["num_users"] for mark in marks),
        "num_items": vocabulary_size,
        "reasons": dict(log.reasons.most_common()),
        "actions": dict(log.actions.most_common()),
        "first_minute": int(minutes[MINUTE][0]) if minutes.height else None,
        "last_minute": int(minutes[MINUTE][-1]) if minutes.height else None,
    }


def counts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The counts of a store as its manifest has them, under the names of a report."""
    names = [name for name in manifest if name.startswith("num_") and name != "num_buckets"]
    kept = {name: manifest[name] for name in (*names, "reasons", "first_minute", "last_minute")}
    return kept | {"actions": manifest["action_counts"]}


def add_counts(before: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The counts of a store after an append, from those so far and those of what was added.

    Args:
        before: report of the store.
        part: report of the new rows, its users being those the store gained and its items those of the whole store.
    """
    sums = {key: before[key] + part[key] for key in before if key.startswith("num_") and key != "num_items"}
    counters = {key: dict((Counter(before[key]) + Counter(part[key])).most_common()) for key in ("reasons", "actions")}
    ends = {"first_minute": before["first_minute"], "last_minute": before["last_minute"]}
    if part["first_minute"] is not None:  # None: all that came was of forgotten users
        ends = {
            "first_minute": min(before["first_minute"], part["first_minute"]),
            "last_minute": max(before["last_minute"], part["last_minute"]),
        }
    return part | sums | counters | ends


def add_profiles(
    report: dict[str, Any], profiles: Profiles, previous: dict[str, Any] | None, *, batch: RowProfile | None = None
) -> dict[str, Any]:
    """The counts of a report with everything else: profiles, drift and findings.

    Args:
        report: counts, as `count_rows` or `add_counts` gives them.
        profiles: of the same rows and users.
        previous: report of the snapshot before this one; None, or without profiles: nothing is compared.
        batch: the rows that are new since `previous`, which are held against it; None: all rows are.
    """
    whole = report | {
        "median_events_per_user": profiles.sequences.median_events,
        "rows": profiles.rows.to_json(),
        "sequences": profiles.sequences.to_json(),
        "items": item_curve(profiles.item_counts),
        "files_left_out": [file for file in profiles.files if file["problem"]],
    }
    compared = previous if previous and "rows" in previous else None
    whole["drift"] = {
        "previous": drift_between(compared, whole, batch) if compared else None,
        "recent": drift_within(profiles.rows),
    }
    return whole | {"findings": [asdict(finding) for finding in findings(whole)]}


def describe(report: dict[str, Any]) -> str:
    """The identity of row conservation, with numbers."""
    return (
        f"{report['num_rows']:,} rows = {report['num_events']:,} kept + {report['num_quarantined']:,} quarantined + "
        f"{report['num_duplicates']:,} duplicates + {report['num_truncated']:,} truncated"
        f"{_forgotten(report.get('num_forgotten', 0), ' + ')}; {json.dumps(report['reasons'])}"
    )


def _forgotten(number: int, joint: str) -> str:
    return f"{joint}{number:,} forgotten" if number else ""
