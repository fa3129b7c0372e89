"""Runs: parts of the log, each encoded and laid out by bucket, so that a bucket is read without the rest.

A run is one file of pieces: the events of each bucket in the order of the log, then its own item dictionary, then a
histogram of time. Items and actions are numbers of the run's own dictionaries: the log is read once, and what the
numbers mean in the store is looked up when a bucket is merged. A piece is an Arrow IPC stream, not Parquet, because it
is written once, read once and removed: that takes a tenth of the time. Invariant: rows of the log = rows of runs +
quarantined + duplicates + truncated, run by run.
"""

import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.buckets import bucket_of_hash, hash64
from data_io.merging import EVENT_KEY, order_of_users, repeated_events
from data_io.scan import Fragment
from data_io.schema import (
    ACTION,
    ACTION_INDEX,
    COUNT,
    EVENT_ID,
    EVENT_TIME,
    FIRST_INDEX,
    ITEM_ID,
    ITEM_INDEX,
    PADDING_INDEX,
    SOURCE_ROW,
    USER_ID,
    DataContractError,
)
from data_io.sequences import add_counts, event_micros, iter_micros
from data_io.store import MINUTE, MINUTE_US
from data_io.vocabulary import Vocabulary

ITEM_CODE = "item_code"
"""Number of an item in its run's own dictionary, from 1; 0 where an event has none."""
ACTION_CODE = "action_code"
"""Number of an action in its run's own dictionary, from 1."""
_MARKS = "marks"
_PLACE = np.dtype([("offset", "<i8"), ("check", "<u4")])
_COUNTABLE_MINUTES = 10_000_000
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
    """In the order of the log."""
    order: np.ndarray
    """[E] rows of the events by bucket, and in a bucket in the order of the log."""
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

    def buckets(self) -> Iterator[pa.Table]:
        """The events of each bucket; only one of them is in memory a second time."""
        begin = 0
        for end in np.cumsum(self.bucket_rows):
            yield self.events.take(pa.array(self.order[begin:end]))
            begin = end


def build_run(events: pa.Table, num_buckets: int, max_events: int | None, *, drop_duplicates: bool) -> Run:
    """Encode good rows of the log and lay them out by bucket.

    Args:
        events: good rows as `part_events` gives them, in the order of the log.
        num_buckets: of the store.
        max_events: newest events kept of a user; the rest of a longer user is left out here already, so that no bucket
            outgrows a worker. None: all.
        drop_duplicates: whether equal events are dropped, which must come before a long user is cut.
    """
    events = events.combine_chunks()
    user_id = events.column(USER_ID).combine_chunks()
    item, items, item_counts = _numbered(events.column(ITEM_ID))
    action, actions, action_counts = _numbered(events.column(ACTION))
    key = hash64(user_id)
    bucket = bucket_of_hash(key, num_buckets).astype(np.uint16)
    own = (USER_ID, ITEM_ID, ACTION, EVENT_TIME, EVENT_ID, SOURCE_ROW)
    carried = [name for name in events.column_names if name not in own]
    columns = {
        USER_ID: user_id,
        EVENT_TIME: events.column(EVENT_TIME),
        ITEM_CODE: pa.array(item),
        ACTION_CODE: pa.array(action.astype(np.int16)),
    }
    if EVENT_ID in events.column_names:
        columns[EVENT_KEY] = _event_keys(events.column(EVENT_ID).combine_chunks())
    table = pa.table(columns | {name: events.column(name) for name in carried})
    minutes = _minutes(events.column(EVENT_TIME))
    kept, duplicates, truncated = _cut_long_users(table, key, max_events, drop_duplicates=drop_duplicates)
    if kept is not None:
        table, bucket = table.take(pa.array(kept)).combine_chunks(), bucket[kept]
    return Run(
        events=table,
        order=np.argsort(bucket, kind="stable"),
        bucket_rows=np.bincount(bucket, minlength=num_buckets),
        items=pl.DataFrame({ITEM_ID: items, COUNT: item_counts}),
        actions=dict(zip(actions.to_pylist(), action_counts.tolist(), strict=True)),
        minutes=minutes,
        num_duplicates=duplicates,
        num_truncated=truncated,
    )


def _event_keys(event_ids: pa.Array) -> pa.Array:
    """Hashes (int64) of event ids, null where there is none."""
    missing = event_ids.is_null().to_numpy(zero_copy_only=False)
    filled = event_ids.fill_null(0 if pa.types.is_integer(event_ids.type) else "")
    return pa.array(hash64(filled).view(np.int64), mask=missing)


def _numbered(values: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """A number from 1 for each different value, 0 for null; the values in the order of their numbers; their counts."""
    encoded = values.combine_chunks().dictionary_encode()
    numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) + np.int32(1)
    counts = np.bincount(numbers, minlength=len(encoded.dictionary) + 1)[1:]
    used = np.flatnonzero(counts)
    if len(used) == len(counts):
        return numbers, encoded.dictionary, counts
    renumbered = np.zeros(len(counts) + 1, np.int32)  # a dictionary that was read may hold values that no row has
    renumbered[used + 1] = np.arange(1, len(used) + 1)
    return renumbered[numbers], encoded.dictionary.take(pa.array(used)), counts[used]


def _minutes(times: pa.ChunkedArray) -> pl.DataFrame:
    ends = pc.call_function("min_max", [times.cast(pa.int64())]).as_py()
    first, last = (0 if micros is None else micros // MINUTE_US for micros in ends.values())
    if not len(times) or last - first > _COUNTABLE_MINUTES:
        minute = event_micros(times) // MINUTE_US
        return pl.DataFrame({MINUTE: minute}).group_by(MINUTE).agg(pl.len().cast(pl.Int64).alias(COUNT))
    counts = np.zeros(last - first + 1, np.int64)
    for _, micros in iter_micros(times):
        add_counts(counts, micros // MINUTE_US - first)
    found = np.flatnonzero(counts)
    return pl.DataFrame({MINUTE: found + first, COUNT: counts[found]})


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


def write_run(folder: str, plan: RunPlan, run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Put a run's file and then its mark, which names it; returns the mark."""
    name = f"run={plan.number:06d}-{uuid.uuid4().hex}.pieces"
    write_pieces(storage.join(folder, name), run.buckets(), [run.items.to_arrow(), run.minutes.to_arrow()])
    mark = {
        "number": plan.number,
        "num_rows": plan.num_rows,
        "actions": run.actions,
        "num_duplicates": run.num_duplicates,
        "num_truncated": run.num_truncated,
        "file": name,
    } | facts
    storage.write_json(storage.join(folder, _MARKS, f"{plan.number:06d}.json"), mark)
    return mark


def write_pieces(url: str, pieces: Iterable[pa.Table], tables: Sequence[pa.Table] = ()) -> None:
    """Put a file of pieces in one atomic step, each with a CRC-32.

    First stands where each piece begins, and where the last ends, so that a reader of a few takes two reads.

    Args:
        url: of the file.
        pieces: its first pieces; one without rows takes no room, and is read as None.
        tables: its last pieces, which are read as tables even without rows.
    """
    # A network is slower than zstd, a local disk is faster.
    options = pa.ipc.IpcWriteOptions(compression="zstd" if storage.is_remote(url) else None)
    buffers = [_serialized(piece, options) if piece.num_rows else pa.py_buffer(b"") for piece in pieces]
    buffers += [_serialized(table, options) for table in tables]
    places = np.zeros(len(buffers) + 1, _PLACE)
    places["offset"] = np.cumsum([places.nbytes, *(buffer.size for buffer in buffers)])
    places["check"][:-1] = [zlib.crc32(buffer) for buffer in buffers]
    storage.write_bytes(url, [places.tobytes(), *buffers])


def _serialized(piece: pa.Table, options: pa.ipc.IpcWriteOptions) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, piece.schema, options=options) as writer:
        writer.write_table(piece)
    return sink.getvalue()


def read_pieces(url: str, first: int, last: int) -> list[pa.Table | None]:
    """Pieces first to last - 1 of a run's file; None where one has no rows.

    Raises:
        DataContractError: the file is missing, torn or corrupt.
    """
    places = _read_places(url, first, last)
    offsets = places["offset"] - places["offset"][0]
    content = memoryview(storage.read_range(url, int(places["offset"][0]), int(offsets[-1])))
    found: list[pa.Table | None] = []
    for begin, end, check in zip(offsets[:-1], offsets[1:], places["check"][:-1], strict=True):
        part = content[begin:end]
        if len(part) != end - begin or zlib.crc32(part) != check:
            raise DataContractError(f"{url}: torn or corrupt; delete its folder and run the job again")
        found.append(pa.ipc.open_stream(pa.py_buffer(part)).read_all() if len(part) else None)
    return found


def _read_places(url: str, first: int, last: int) -> np.ndarray:
    """[last - first + 1] offset and check of pieces, the last being where the one before it ends."""
    try:
        header = storage.read_range(url, first * _PLACE.itemsize, (last - first + 1) * _PLACE.itemsize)
        places = np.frombuffer(header, _PLACE)
    except (FileNotFoundError, ValueError):
        places = np.zeros(0, _PLACE)
    if len(places) != last - first + 1 or np.any(np.diff(places["offset"]) < 0):
        raise DataContractError(f"{url}: missing, torn or corrupt; delete its folder and run the job again")
    return places


def read_marks(folder: str) -> dict[int, dict[str, Any]]:
    """Marks of the runs that are done, by number."""
    marks = [storage.read_json(file) for file in storage.list_files(storage.join(folder, _MARKS))]
    return {mark["number"]: mark for mark in marks}


@dataclass(frozen=True, slots=True)
class RunReader:
    """A run's file, opened for reading."""

    url: str
    num_buckets: int

    def buckets_with_rows(self) -> np.ndarray:
        """[num_buckets] whether a bucket has events in this run."""
        return np.diff(_read_places(self.url, 0, self.num_buckets)["offset"]) > 0

    def read_buckets(self, first: int, last: int) -> list[pa.Table | None]:
        """Encoded events of buckets first to last - 1, in one read; None where there are none."""
        return read_pieces(self.url, first, last)

    def read_items(self) -> pl.DataFrame:
        """item_id and count, in the order of their numbers."""
        return self._read_frame(self.num_buckets)

    def read_minutes(self) -> pl.DataFrame:
        """Minute since 1970 UTC and count."""
        return self._read_frame(self.num_buckets + 1)

    def _read_frame(self, piece: int) -> pl.DataFrame:
        (table,) = read_pieces(self.url, piece, piece + 1)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame


def item_indices_of(items: pl.DataFrame, all_items: Vocabulary) -> np.ndarray:
    """[codes of a run] the number, among all items of the store, that each item code of a run stands for.

    Args:
        items: of the run, as `RunReader.read_items` gives them.
        all_items: of the store, in the order of their numbers.
    """
    return np.append(np.int32(PADDING_INDEX), all_items.encode(items.to_arrow().column(ITEM_ID).combine_chunks()))


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
