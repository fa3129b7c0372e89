"""Drift: how far what is in a log moved, between two snapshots or inside one log.

Everything is compared as counts over the same bins, by the population stability index. Invariant: a figure that chance
alone could have made is never called a shift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from data_io.quality.behaviour import RANK_BINS, log2_label
from data_io.quality.profile import HOUR, ColumnProfile, RowProfile
from data_io.schema import ACTION, COUNT

LOOK, SHIFTED = 0.1, 0.25
"""The usual reading of the index: stable below the first, a shift above the second, worth a look between them."""
RECENT_DAYS, BEFORE_DAYS = 7, 28
"""The end of a log that is held against what came before it; whole weeks, so that weekdays weigh the same."""
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SMOOTHING = 0.5
_FIRST_WEEKDAY = 3  # 1970 began on a Thursday

Reading = Literal["stable", "look", "shifted", "too few"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the shares of one distribution moved."""

    what: str
    psi: float
    reading: Reading
    bin: str
    """The bin whose share changed most."""
    before: float
    after: float
    """Its share then and now."""


def psi(before: np.ndarray, after: np.ndarray) -> float:
    """The population stability index of two histograms over the same bins: sum of (p - q) ln(p / q).

    Half an event is added to each bin, so that an empty one costs much and not infinitely much.

    Source: Siddiqi, Credit Risk Scorecards (2006), ch. 7; the symmetric divergence of Kullback and Leibler (1951).
    """
    q, p = ((counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts)) for counts in (before, after))
    return float(((p - q) * np.log(p / q)).sum())


def chance_psi(before: np.ndarray, after: np.ndarray) -> float:
    """What the index of two samples of one distribution stays below in 95 of 100 cases.

    It is about (1/n + 1/m) times a chi-squared variable of bins - 1 degrees of freedom, here by its normal
    approximation. Events of a user are alike, so the true bound lies higher.

    Source: Yurdakul, Statistical Properties of Population Stability Index (2018).
    """
    freedom = np.count_nonzero(before + after) - 1
    spread = 1 / max(before.sum(), 1) + 1 / max(after.sum(), 1)
    return float(spread * (freedom + 1.645 * np.sqrt(2 * max(freedom, 0))))


def compare(what: str, before: Mapping[str, int], after: Mapping[str, int]) -> Drift:
    """The drift of counts by bin; a bin that one side lacks counts as empty there."""
    bins = list(dict.fromkeys([*before, *after]))
    old, new = (np.array([counts.get(name, 0) for name in bins], np.float64) for counts in (before, after))
    old_share, new_share = old / max(old.sum(), 1), new / max(new.sum(), 1)
    index = psi(old, new)
    most = int(np.abs(new_share - old_share).round(9).argmax()) if bins else None
    return Drift(
        what=what,
        psi=index,
        reading=_read(index, chance_psi(old, new)),
        bin="" if most is None else bins[most],
        before=0.0 if most is None else float(old_share[most]),
        after=0.0 if most is None else float(new_share[most]),
    )


def _read(index: float, chance: float) -> Reading:
    if index < LOOK:
        return "stable"
    if index <= chance:
        return "too few"
    return "look" if index <= SHIFTED else "shifted"


def drift_between(
    before: dict[str, Any], after: dict[str, Any], batch: RowProfile | None = None
) -> list[dict[str, Any]]:
    """The drift between the reports of two snapshots, as JSON content.

    Args:
        before: with the parts rows, sequences and items that `data_io.quality.report.add_profiles` writes.
        after: the same.
        batch: rows that were appended since `before`, to be held against it; None: those of `after` are.
    """
    old, new = RowProfile.from_json(before["rows"]), batch or RowProfile.from_json(after["rows"])
    lengths = [_by_length(report["sequences"]["users_by_log2_events"]) for report in (before, after)]
    ranks = [_by_rank(report["items"]["events_by_rank"]) for report in (before, after)]
    drifts = [
        compare("actions", count_actions(old.hours), count_actions(new.hours)),
        compare("events per user", *lengths),
        compare("hour of the day", count_hours_of_day(old.hours), count_hours_of_day(new.hours)),
        compare("day of the week", count_weekdays(old.hours), count_weekdays(new.hours)),
        compare("popularity of items", *ranks),
    ]
    drifts += [
        compare(f"nulls of {name}", _nulls(old.columns[name]), _nulls(new.columns[name]))
        for name in sorted(old.columns.keys() & new.columns.keys())
        if old.columns[name].num_null or new.columns[name].num_null
    ]
    return [asdict(drift) for drift in drifts]


def drift_within(rows: RowProfile) -> dict[str, Any] | None:
    """The last `RECENT_DAYS` of a log held against the `BEFORE_DAYS` before them, as JSON content.

    Returns:
        Events a day in both, and the drift of actions and of the hour of the day; None where the log is younger.
    """
    hours = rows.hours[HOUR].to_numpy()
    end = int(hours.max(initial=0)) + 1
    begin, middle = end - 24 * (RECENT_DAYS + BEFORE_DAYS), end - 24 * RECENT_DAYS
    if hours.min(initial=end) > begin:
        return None
    old = rows.hours.filter(pl.col(HOUR).is_between(begin, middle, closed="left"))
    new = rows.hours.filter(pl.col(HOUR) >= middle)
    drifts = [
        compare("actions", count_actions(old), count_actions(new)),
        compare("hour of the day", count_hours_of_day(old), count_hours_of_day(new)),
    ]
    return {
        "recent_days": RECENT_DAYS,
        "before_days": BEFORE_DAYS,
        "events_a_day": int(new[COUNT].sum()) / RECENT_DAYS,
        "events_a_day_before": int(old[COUNT].sum()) / BEFORE_DAYS,
        "actions": _shares(count_actions(new)),
        "actions_before": _shares(count_actions(old)),
        "drifts": [asdict(drift) for drift in drifts],
    }


def count_actions(hours: pl.DataFrame) -> dict[str, int]:
    """Events by action, most frequent first, of the hours of a `RowProfile`."""
    counts = hours.group_by(ACTION).agg(pl.col(COUNT).sum()).sort([-pl.col(COUNT), pl.col(ACTION)])
    return dict(counts.iter_rows())


def count_hours_of_day(hours: pl.DataFrame) -> dict[str, int]:
    """Events by hour of the day (UTC), all 24 of them."""
    counts = np.bincount(hours[HOUR].to_numpy() % 24, hours[COUNT].to_numpy(), 24).astype(int).tolist()
    return {f"{hour:02}:00": count for hour, count in enumerate(counts)}


def count_weekdays(hours: pl.DataFrame) -> dict[str, int]:
    """Events by day of the week (UTC), all seven of them."""
    weekday = (hours[HOUR].to_numpy() // 24 + _FIRST_WEEKDAY) % 7
    return dict(zip(WEEKDAYS, np.bincount(weekday, hours[COUNT].to_numpy(), 7).astype(int).tolist(), strict=True))


def _shares(counts: dict[str, int]) -> dict[str, float]:
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def _by_length(counts: Sequence[int]) -> dict[str, int]:
    return {log2_label(place): count for place, count in enumerate(counts) if count}


def _by_rank(counts: Sequence[int]) -> dict[str, int]:
    return {f"the top {100 * edge:g} %": count for edge, count in zip(RANK_BINS, counts, strict=True)}


def _nulls(column: ColumnProfile) -> dict[str, int]:
    return {"null": column.num_null, "not null": column.num_rows - column.num_null}
