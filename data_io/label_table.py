"""Labels that stand in a table: of a user, or of a user and a time.

Held as three arrays, 20 bytes a row, on every worker. Invariants: of a user's labels that hold at a moment the earliest
counts; a label that holds at all times is asked in one stage only, so that nobody's is trained on and measured.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.buckets import hash64
from data_io.config import SettingsError
from data_io.question_config import TableQuestion
from data_io.schema import DataContractError
from data_io.sequences import event_micros

MOST_ROWS = 50_000_000
"""1 GB on every worker."""
Asked = Literal["training", "validation", "test"]
"""What answers are for."""
_TENTHS: dict[Asked, range] = {"training": range(2, 10), "validation": range(1, 2), "test": range(1)}
"""Of the users, for labels that hold at all times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """R labels, by the hash of their user and then by time."""

    user: np.ndarray
    """[R] uint64, rising."""
    time: np.ndarray | None
    """[R] microseconds since 1970 UTC; None: they hold at all times."""
    label: np.ndarray
    """[R] float32."""

    @classmethod
    def of(cls, user_ids: pa.Array, label: np.ndarray, time: np.ndarray | None = None) -> "LabelTable":
        """Labels [R] of users; a label that is NaN is none."""
        known = ~np.isnan(label)
        user = hash64(user_ids.filter(pa.array(known)))
        label, time = label[known], None if time is None else time[known]
        order = np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))
        return cls(user=user[order], time=None if time is None else time[order], label=label[order].astype(np.float32))

    def labels(self, user_ids: pa.Array, moment: int, horizon: int, asked: Asked) -> np.ndarray:
        """[U] the label of each user that came about within a horizon after a moment (both microseconds), or holds at
        all times; NaN where there is none, or where the user is kept for another stage."""
        users = hash64(user_ids)
        begin = np.searchsorted(self.user, users)
        if self.time is not None:
            begin = _first_at_or_after(self.user, self.time, users, moment)
        found = np.full(len(users), np.nan)
        there = begin < len(self.user)
        there[there] = self.user[begin[there]] == users[there]
        if self.time is not None:
            there[there] = self.time[begin[there]] < moment + horizon
        if self.time is None:
            there &= asked_of(users, asked)
        found[there] = self.label[begin[there]]
        return found


def asked_of(users: np.ndarray, asked: Asked) -> np.ndarray:
    """[U] which users, by their `hash64`, are asked in a stage for a label that holds at all times."""
    return np.isin((users >> np.uint64(32)) % np.uint64(10), _TENTHS[asked])


def _first_at_or_after(user: np.ndarray, time: np.ndarray, wanted: np.ndarray, moment: int) -> np.ndarray:
    """[U] the first row of each wanted user, or of a later one, at or after a moment."""
    begin, end = np.searchsorted(user, wanted), np.searchsorted(user, wanted, side="right")
    too_early = np.concatenate([[0], np.cumsum(time < moment)])
    return begin + too_early[end] - too_early[begin]


def read_label_table(
    settings: TableQuestion, id_type: pa.DataType, classes: tuple[str, ...] | None = None
) -> tuple[LabelTable, tuple[str, ...]]:
    """The labels of a table, and the classes that they are places of.

    Args:
        settings: of the question.
        id_type: of the store's user ids.
        classes: told apart by a model that was trained before; None: those of the most rows.

    Raises:
        DataContractError: a column is missing or of another type, or there are too many rows.
    """
    wanted = [settings.user_id, settings.label, *([settings.time] if settings.time else [])]
    url = storage.absolute(settings.path)
    table = storage.read_parquet(url, columns=wanted)
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataContractError(f"{url}: the table of labels has no column {missing[0]}")
    if table.num_rows > MOST_ROWS:
        raise DataContractError(f"{url}: {table.num_rows:,} labels, of which there may be {MOST_ROWS:,}; sample them")
    ids = _as_ids(table.column(settings.user_id), id_type, url)
    time = None
    if settings.time:
        column = table.column(settings.time)
        if not pa.types.is_timestamp(column.type):
            raise DataContractError(f"{url}: {settings.time} is {column.type}, expected a timestamp; cast it first")
        time = event_micros(column.cast(pa.timestamp("us")))
    label, classes = _as_labels(table.column(settings.label), settings, classes, url)
    known = ids.is_valid()
    kept = known.to_numpy(zero_copy_only=False)
    return LabelTable.of(ids.filter(known), label[kept], None if time is None else time[kept]), classes


def _as_ids(column: pa.ChunkedArray, id_type: pa.DataType, url: str) -> pa.Array:
    try:
        return column.combine_chunks().cast(id_type)
    except pa.ArrowException as error:
        raise DataContractError(f"{url}: user ids are {column.type}, those of the log {id_type} ({error})") from None


def _as_labels(
    column: pa.ChunkedArray, settings: TableQuestion, classes: tuple[str, ...] | None, url: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if settings.answer == "classes":
        values = column.cast(pa.string())
        if classes is None:
            classes = most_frequent([values.value_counts()], settings.num_classes)
        return places_of(values, classes), classes
    try:
        label = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataContractError(f"{url}: {settings.label} is {column.type}, expected numbers ({error})") from None
    if settings.answer == "binary" and not np.isin(label[~np.isnan(label)], (0, 1)).all():
        raise DataContractError(
            f"{url}: {settings.label} has other values than 0 and 1; set answer to value or classes"
        )
    return label, ()


def most_frequent(parts: Iterable[pa.Array], most: int) -> tuple[str, ...]:
    """The most frequent values, the first in order of text among equally frequent ones.

    Args:
        parts: counts of texts, as Arrow's `value_counts` gives them.
        most: so many at most.

    Raises:
        SettingsError: there are fewer than two.
    """
    counts: Counter[str] = Counter()
    for entry in (entry for part in parts for entry in part.to_pylist()):
        if entry["values"] is not None:
            counts[entry["values"]] += entry["counts"]
    if len(counts) < 2:
        raise SettingsError(f"a question about classes needs two of them, and there are {sorted(counts)}")
    return tuple(sorted(sorted(counts), key=lambda value: -counts[value])[:most])


def places_of(values: pa.ChunkedArray, classes: tuple[str, ...]) -> np.ndarray:
    """[N] the place of each value among classes; NaN where it has none."""
    series = pl.Series(values.cast(pa.large_string()))
    places = pl.DataFrame({"value": classes, "place": np.arange(len(classes), dtype=np.float64)})
    joined = pl.DataFrame({"value": series}).join(places, on="value", how="left", maintain_order="left")
    return joined["place"].fill_null(float("nan")).to_numpy()
