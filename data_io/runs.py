"""Runs: parts of the log, each encoded and laid out by bucket, so that a bucket is read without the rest.

A run is one Parquet file with a row group per bucket, its rows in the order of the log, plus its own item dictionary
and histogram of time. Items and actions are numbers of the run's own dictionaries: the log is read once, and what the
numbers mean in the store is looked up when a bucket is merged. Invariant: rows of the log = rows of runs +
quarantined + duplicates + truncated, run by run.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.buckets import bucket_of_hash, hash64
from data_io.events import Fragment
from data_io.schema import (
    ACTION,
    ACTION_INDEX,
    COUNT,
    EVENT_TIME,
    FIRST_INDEX,
    ITEM_ID,
    ITEM_INDEX,
    PADDING_INDEX,
    SOURCE_ROW,
    USER_ID,
    DataContractError,
)
from data_io.sequences import ACTION_CODE, ITEM_CODE, event_micros, order_of_users, repeated_events
from data_io.store import MINUTE, MINUTE_US
from data_io.vocabulary import Vocabulary

RUNS = "_runs"
_MARKS = "marks"
_LEAST_RUNS, _ROWS_WORTH_A_RUN = 8, 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Neighbouring fragments of the log that become one run."""

    number: int
    fragments: tuple[Fragment, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the log in it."""
        return sum(fragment.num_rows for fragment in self.fragments)


def plan_runs(fragments: Sequence[Fragment], most_rows: int) -> list[RunPlan]:
    """The runs of a log: as many neighbouring fragments as fit, at least one; a small log is spread all the same."""
    share = -(-sum(fragment.num_rows for fragment in fragments) // _LEAST_RUNS)
    rows_per_run = min(most_rows, max(share, _ROWS_WORTH_A_RUN))
    groups: list[list[Fragment]] = []
    room = 0
    for fragment in fragments:
        if not groups or fragment.num_rows > room:
            groups.append([])
            room = rows_per_run
        groups[-1].append(fragment)
        room -= fragment.num_rows
    return [RunPlan(number=number, fragments=tuple(group)) for number, group in enumerate(groups)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run in memory: the encoded events of its part of the log."""

    events: pa.Table
    """By bucket, and in a bucket in the order of the log."""
    bucket_rows: np.ndarray
    """[num_buckets] rows of each bucket."""
    items: pl.DataFrame
    """item_id and count, in the order of their numbers."""
    actions: dict[str, int]
    """Events by action, in the order of their numbers."""
    minutes: pl.DataFrame
    """Minute since 1970 UTC and count."""
    num_duplicates: int
    num_truncated: int


def build_run(events: pa.Table, num_buckets: int, max_events: int | None, *, drop_duplicates: bool) -> Run:
    """Encode good rows of the log and lay them out by bucket.

    Args:
        events: good rows as `part_events` gives them, in the order of the log.
        num_buckets: of the store.
        max_events: newest events kept of a user; the rest of a longer user is left out here already, so that no bucket
            outgrows a worker. None: all.
        drop_duplicates: whether equal events are dropped, which must come before a long user is cut.
    """
    user_id = events.column(USER_ID).combine_chunks()
    item, items = _numbered(events.column(ITEM_ID))
    action, actions = _numbered(events.column(ACTION))
    key = hash64(user_id)
    bucket = bucket_of_hash(key, num_buckets).astype(np.uint16)
    carried = [name for name in events.column_names if name not in (USER_ID, ITEM_ID, ACTION, EVENT_TIME, SOURCE_ROW)]
    columns = {
        USER_ID: user_id,
        EVENT_TIME: events.column(EVENT_TIME),
        ITEM_CODE: pa.array(item),
        ACTION_CODE: pa.array(action.astype(np.int16)),
    }
    table = pa.table(columns | {name: events.column(name) for name in carried})
    minutes = _minutes(events.column(EVENT_TIME))
    kept, duplicates, truncated = _cut_long_users(table, key, max_events, drop_duplicates=drop_duplicates)
    if kept is not None:
        table, bucket = table.take(pa.array(kept)), bucket[kept]
    order = np.argsort(bucket, kind="stable")
    return Run(
        events=table.take(pa.array(order)).combine_chunks(),
        bucket_rows=np.bincount(bucket, minlength=num_buckets),
        items=pl.DataFrame({ITEM_ID: items, COUNT: np.bincount(item, minlength=len(items) + 1)[1:]}),
        actions=dict(
            zip(actions.to_pylist(), np.bincount(action, minlength=len(actions) + 1)[1:].tolist(), strict=True)
        ),
        minutes=minutes,
        num_duplicates=duplicates,
        num_truncated=truncated,
    )


def _numbered(values: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """A number from 1 for each different value, 0 for null, and the values in the order of their numbers."""
    encoded = values.combine_chunks().dictionary_encode()
    numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return numbers + np.int32(1), encoded.dictionary


def _minutes(times: pa.ChunkedArray) -> pl.DataFrame:
    minute = pl.Series(MINUTE, times).dt.epoch("us") // MINUTE_US
    return pl.DataFrame({MINUTE: minute}).group_by(MINUTE).len(COUNT)


def _cut_long_users(
    table: pa.Table, key: np.ndarray, max_events: int | None, *, drop_duplicates: bool
) -> tuple[np.ndarray | None, int, int]:
    """Rows that stay (None: all), duplicates and older events that do not, of users longer than max_events."""
    if max_events is None or table.num_rows <= max_events:
        return None, 0, 0
    # Cheap look first: users of equal low hash bits are counted together, and mostly none of these groups is large.
    if np.bincount(key.astype(np.uint16)).max() <= max_events:
        return None, 0, 0
    users = pl.Series(table.column(USER_ID))
    long = users.value_counts(name="n").filter(pl.col("n") > max_events)[users.name]
    if not len(long):
        return None, 0, 0
    is_long = users.is_in(long.implode()).to_numpy()
    rows = np.flatnonzero(is_long)
    part = table.take(pa.array(rows))
    order, starts = order_of_users(part)
    repeated = repeated_events(part, order, starts) if drop_duplicates else np.zeros(len(order), bool)
    order = order[~repeated]
    user = np.cumsum(np.isin(np.arange(len(repeated)), starts))[~repeated]
    last = np.searchsorted(user, user, side="right")
    time = event_micros(part.column(EVENT_TIME))[order]
    # Events tied with the oldest one kept stay too: which of them is newer is only known once all runs are merged.
    first_kept = np.maximum(last - max_events, np.searchsorted(user, user, side="left"))
    newest = order[time >= time[first_kept]]
    stays = ~is_long
    stays[rows[newest]] = True
    return np.flatnonzero(stays), int(repeated.sum()), len(order) - len(newest)


def write_run(url: str, plan: RunPlan, run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Put a run's files and then its mark, which names them; returns the mark."""
    attempt = f"run={plan.number:06d}-{uuid.uuid4().hex}"
    ends = np.cumsum(run.bucket_rows)
    groups = [run.events.slice(int(end - rows), int(rows)) for end, rows in zip(ends, run.bucket_rows, strict=True)]
    files = {
        "events": storage.write_row_groups(storage.join(url, RUNS, f"{attempt}.parquet"), groups),
        "items": storage.write_parquet(storage.join(url, RUNS, f"{attempt}-items.parquet"), run.items.to_arrow()),
        "minutes": storage.write_parquet(storage.join(url, RUNS, f"{attempt}-minutes.parquet"), run.minutes.to_arrow()),
    }
    mark = {
        "number": plan.number,
        "num_rows": plan.num_rows,
        "bucket_rows": run.bucket_rows.tolist(),
        "actions": run.actions,
        "num_duplicates": run.num_duplicates,
        "num_truncated": run.num_truncated,
        "files": {name: asdict(file) for name, file in files.items()},
    } | facts
    storage.write_json(storage.join(url, RUNS, _MARKS, f"{plan.number:06d}.json"), mark)
    return mark


def read_marks(url: str, fingerprint: str) -> dict[int, dict[str, Any]]:
    """Marks of the runs that are done, by number.

    Raises:
        DataContractError: they were made with other settings or from another log.
    """
    marks = [storage.read_json(file) for file in storage.list_files(storage.join(url, RUNS, _MARKS))]
    for mark in marks:
        if mark["fingerprint"] != fingerprint:
            raise DataContractError(
                f"{url} holds a part-built store of other settings or input (its fingerprint {mark['fingerprint']}, "
                f"this run's {fingerprint}); choose another run_dir or delete that folder"
            )
    return {mark["number"]: mark for mark in marks}


def read_run_bucket(url: str, mark: dict[str, Any], bucket: int) -> pa.Table | None:
    """Encoded events of one bucket of a run, page checksums verified; None where there are none."""
    rows = mark["bucket_rows"]
    if not rows[bucket]:
        return None
    group = int(np.count_nonzero(rows[:bucket]))
    return storage.read_row_group(storage.join(url, RUNS, mark["files"]["events"]["name"]), group)


def read_run_items(url: str, file: str) -> pl.DataFrame:
    """item_id and count of a run, in the order of their numbers, from the file of that name in its mark."""
    return _frame(storage.read_parquet(storage.join(url, RUNS, file)))


def read_run_minutes(url: str, mark: dict[str, Any]) -> pl.DataFrame:
    """Minute and count of a run."""
    return _frame(storage.read_parquet(storage.join(url, RUNS, mark["files"]["minutes"]["name"])))


def item_indices_of(items: pa.Array, all_items: Vocabulary) -> np.ndarray:
    """[numbers of a run] the index, among all items of the log, that each item number of a run stands for."""
    return np.append(np.int32(PADDING_INDEX), all_items.encode(items))


def action_indices_of(names: Iterable[str], actions: Sequence[str]) -> np.ndarray:
    """[numbers of a run] the index in the store that each action number of a run stands for."""
    return np.array([PADDING_INDEX, *(actions.index(name) + FIRST_INDEX for name in names)], np.int16)


def translate(events: pa.Table, item_indices: np.ndarray, action_indices: np.ndarray) -> pa.Table:
    """Events of a run with the numbers of its own dictionaries turned into indices that all runs share."""
    columns = {
        ITEM_INDEX: pa.array(item_indices[events.column(ITEM_CODE).to_numpy()]),
        ACTION_INDEX: pa.array(action_indices[events.column(ACTION_CODE).to_numpy()]),
    }
    kept = events.drop_columns([ITEM_CODE, ACTION_CODE])
    return pa.table({name: kept.column(name) for name in kept.column_names} | columns)


def delete_runs(url: str) -> None:
    """Remove the runs of a published store."""
    storage.delete_folder(storage.join(url, RUNS))


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
