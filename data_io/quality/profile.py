"""Row profiles: small summaries of the rows of a log, which add up.

A worker profiles the rows of its run; the sum of the parts is the profile of the whole, so rows that are appended are
profiled alone and added. What users do is profiled in `data_io.quality.behaviour`. Invariant: a profile holds counts,
extremes and shapes of values, never an id or a query.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io.schema import (
    ACTION,
    COUNT,
    EVENT_TIME,
    REASON,
    SOURCE_FILE,
    SOURCE_ROW,
    kind_of,
)
from data_io.sequences import add_counts, event_micros, iter_micros

HOUR = "hour"
HOUR_US = 3_600_000_000
OTHER_ACTIONS = "(other actions)"
"""Under this, actions of a run past the first thousand are counted; a log with so many is refused anyway."""
_MAX_ACTIONS, _MAX_SAMPLES, _MAX_CELLS = 1_000, 3, 1 << 22
_MAX_PATTERN = 32
_CLASSES = (("[a-z]", "a"), ("[A-Z]", "A"), ("[0-9]", "9"), (r"[\x00-\x20\x7f]", "_"), (r"[^\x00-\x7f]", "u"))
"""Small and large letters, digits, blanks and control signs, all beyond ASCII; other signs stand for themselves."""
_ID_SUFFIX = "_id"
"""Numbers in columns so named are ids: nothing but nulls is counted of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """What a column holds in good rows; the figures of numbers stay 0 and None where it holds none."""

    num_rows: int
    """Good rows of the runs that have the column."""
    num_null: int
    num_nan: int = 0
    num_infinite: int = 0
    num_negative: int = 0
    num_zero: int = 0
    num_finite: int = 0
    total: float = 0.0
    """Sum of the finite values."""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the finite values; None where there is none."""
        return self.total / self.num_finite if self.num_finite else None

    def __add__(self, other: "ColumnProfile") -> "ColumnProfile":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[:-2]}
        lowest = [value for value in (self.minimum, other.minimum) if value is not None]
        highest = [value for value in (self.maximum, other.maximum) if value is not None]
        return ColumnProfile(**sums, minimum=min(lowest, default=None), maximum=max(highest, default=None))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Sample:
    """Where a quarantined row stands, and the shape of the value that put it there."""

    file: str
    row: int
    column: str | None
    """The offending column; None where the reason names none."""
    type: str | None
    length: int | None
    """Characters of the value as text; None where it is null."""
    pattern: str | None
    """Character classes, such as `aaa-999`; of a time, its year."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonProfile:
    """Quarantined rows of one reason, and the first few of them by file and row."""

    count: int
    samples: tuple[Sample, ...]

    def __add__(self, other: "ReasonProfile") -> "ReasonProfile":
        samples = sorted((*self.samples, *other.samples), key=lambda sample: (sample.file, sample.row))
        return ReasonProfile(count=self.count + other.count, samples=tuple(samples[:_MAX_SAMPLES]))


def _no_hours() -> pl.DataFrame:
    return pl.DataFrame(schema={ACTION: pl.String, HOUR: pl.Int64, COUNT: pl.Int64})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowProfile:
    """What rows of the log hold; without arguments, that of no row."""

    num_rows: int = 0
    num_good: int = 0
    columns: dict[str, ColumnProfile] = field(default_factory=dict)
    hours: pl.DataFrame = field(default_factory=_no_hours)
    """action, hour since 1970 UTC and count of good rows, by action and hour."""
    reasons: dict[str, ReasonProfile] = field(default_factory=dict)

    def __add__(self, other: "RowProfile") -> "RowProfile":
        both = pl.concat([self.hours, other.hours]).group_by(ACTION, HOUR).agg(pl.col(COUNT).sum())
        return RowProfile(
            num_rows=self.num_rows + other.num_rows,
            num_good=self.num_good + other.num_good,
            columns=_merged(self.columns, other.columns),
            hours=both.sort(ACTION, HOUR),
            reasons=_merged(self.reasons, other.reasons),
        )

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON content."""
        hours = {
            str(action): {"hours": part[HOUR].to_list(), "counts": part[COUNT].to_list()}
            for (action,), part in self.hours.group_by(ACTION, maintain_order=True)
        }
        return {
            "num_rows": self.num_rows,
            "num_good": self.num_good,
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "hours": hours,
            "reasons": {name: asdict(reason) for name, reason in self.reasons.items()},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RowProfile":
        """The profile that `to_json` gave this content."""
        parts = [
            pl.DataFrame({HOUR: part["hours"], COUNT: part["counts"]}, {HOUR: pl.Int64, COUNT: pl.Int64})
            .with_columns(pl.lit(action).alias(ACTION))
            .select(ACTION, HOUR, COUNT)
            for action, part in content["hours"].items()
        ]
        reasons = {
            name: ReasonProfile(count=reason["count"], samples=tuple(Sample(**sample) for sample in reason["samples"]))
            for name, reason in content["reasons"].items()
        }
        return cls(
            num_rows=content["num_rows"],
            num_good=content["num_good"],
            columns={name: ColumnProfile(**column) for name, column in content["columns"].items()},
            hours=pl.concat([_no_hours(), *parts]),
            reasons=reasons,
        )


def _merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {
        name: left[name] + right[name] if name in left and name in right else left.get(name) or right[name]
        for name in sorted(left.keys() | right.keys())
    }


def profile_rows(good: pa.Table, bad: pa.Table) -> RowProfile:
    """The profile of the rows of a run.

    Args:
        good: rows that keep the contract.
        bad: quarantined rows as `quarantine_table` gives them.
    """
    names = sorted(name for name in good.column_names if name != SOURCE_ROW)
    return RowProfile(
        num_rows=good.num_rows + bad.num_rows,
        num_good=good.num_rows,
        columns={name: _profile_column(name, good.column(name)) for name in names},
        hours=_count_hours(good),
        reasons=_profile_reasons(bad),
    )


def _profile_column(name: str, values: pa.ChunkedArray) -> ColumnProfile:
    counts = {"num_rows": len(values), "num_null": values.null_count}
    if name.endswith(_ID_SUFFIX) or kind_of(values.type) not in ("int", "float"):
        return ColumnProfile(**counts)
    numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
    finite = numbers[np.isfinite(numbers)]
    num_nan = int(np.isnan(numbers).sum())
    return ColumnProfile(
        **counts,
        num_nan=num_nan,
        num_infinite=len(numbers) - len(finite) - num_nan,
        num_negative=int((finite < 0).sum()),
        num_zero=int((finite == 0).sum()),
        num_finite=len(finite),
        total=float(finite.sum()),
        minimum=float(finite.min()) if len(finite) else None,
        maximum=float(finite.max()) if len(finite) else None,
    )


def _count_hours(good: pa.Table) -> pl.DataFrame:
    if not good.num_rows:
        return _no_hours()
    times = good.column(EVENT_TIME)
    encoded = good.column(ACTION).dictionary_encode().combine_chunks()
    names = np.array([*encoded.dictionary.to_pylist()[:_MAX_ACTIONS], OTHER_ACTIONS])
    codes = encoded.indices.to_numpy()
    ends = pc.call_function("min_max", [times.cast(pa.int64())]).as_py()
    first, last = (micros // HOUR_US for micros in ends.values())

    def cells_of(begin: int, micros: np.ndarray) -> np.ndarray:
        code = np.minimum(codes[begin : begin + len(micros)], len(names) - 1)
        return (micros // HOUR_US - first) * len(names) + code

    if (last - first + 1) * len(names) <= _MAX_CELLS:
        counts = np.zeros((last - first + 1) * len(names), np.int64)
        for begin, micros in iter_micros(times):
            add_counts(counts, cells_of(begin, micros))
        cells = np.flatnonzero(counts)
        counts = counts[cells]
    else:  # a few events far away in time, or a great many actions
        cells, counts = np.unique(cells_of(0, event_micros(times)), return_counts=True)
    columns = {ACTION: names[cells % len(names)], HOUR: first + cells // len(names), COUNT: counts}
    return pl.DataFrame(columns, _no_hours().schema).sort(ACTION, HOUR)


def _profile_reasons(bad: pa.Table) -> dict[str, ReasonProfile]:
    if not bad.num_rows:
        return {}
    places = pl.DataFrame(pl.from_arrow(bad.select([REASON, SOURCE_FILE, SOURCE_ROW]))).with_row_index("at")
    first = pl.col("at").sort_by(SOURCE_FILE, SOURCE_ROW).head(_MAX_SAMPLES)
    found = places.group_by(REASON).agg(pl.len().alias(COUNT), first).sort(REASON)
    return {
        reason: ReasonProfile(count=count, samples=_samples(reason, bad.take(pa.array(at))))
        for reason, count, at in found.iter_rows()
    }


def _samples(reason: str, rows: pa.Table) -> tuple[Sample, ...]:
    """The samples of a few quarantined rows; the offending column is the one that the reason names."""
    names = [name for name in rows.column_names if name in reason and name not in (REASON, SOURCE_FILE, SOURCE_ROW)]
    column = max(names, key=len, default=None)
    shapes = _shapes(rows.column(column)) if column else [(None, None)] * rows.num_rows
    kind = str(rows.schema.field(column).type) if column else None
    places = zip(rows.column(SOURCE_FILE).to_pylist(), rows.column(SOURCE_ROW).to_pylist(), shapes, strict=True)
    return tuple(
        Sample(file=file, row=row, column=column, type=kind, length=length, pattern=pattern)
        for file, row, (length, pattern) in places
    )


def _shapes(values: pa.ChunkedArray) -> list[tuple[int | None, str | None]]:
    """Length and pattern of a few values; of times the year, for it tells a wrong unit or a clock fault."""
    series = pl.Series(values)
    if kind_of(values.type) == "timestamp":
        return [(None, year if year is None else f"year {year}") for year in series.dt.year().to_list()]
    texts = series.cast(pl.String).to_list()
    return [(None, None) if text is None else (len(text), value_pattern(text)) for text in texts]


def value_pattern(text: str) -> str:
    """The character classes of a text, such as `Aaa-999`: its shape without its content."""
    pattern = text[:_MAX_PATTERN]
    for signs, mark in _CLASSES:
        pattern = re.sub(signs, mark, pattern)
    return pattern + ("…" if len(text) > _MAX_PATTERN else "")
