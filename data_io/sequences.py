"""Sequences: the events of each user in order, and how encoded events become them.

Events of a bucket are flat columns; a user is a slice of them given by offsets. Nothing here calls Python once a user.
Invariant: within a user, events stand by event_time and then by position in the log.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.schema import ACTION_INDEX, EVENT_TIME, ITEM_INDEX, UNKNOWN_INDEX, USER_ID

ITEM_CODE = "item_code"
"""Number of an item in its run's own dictionary, from 1; 0 where an event has none."""
ACTION_CODE = "action_code"
"""Number of an action in its run's own dictionary, from 1."""
_RADIX_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Users of one bucket: E events in flat columns, user u owning events offsets[u] to offsets[u + 1]."""

    user_id: pa.Array
    offsets: np.ndarray
    """[U + 1] int64."""
    item_index: np.ndarray
    """[E] int32."""
    action_index: np.ndarray
    """[E] int16."""
    event_time: np.ndarray
    """[E] int64, microseconds since 1970 UTC."""

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def starts(self) -> np.ndarray:
        """[U] first event of each user."""
        return self.offsets[:-1]

    @property
    def ends(self) -> np.ndarray:
        """[U] one past the last event of each user."""
        return self.offsets[1:]


def order_of_users(events: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The order that puts users side by side, by id, and each one's events by time and then as they stand.

    Args:
        events: user_id and event_time of rows in the order of the log.

    Returns:
        Rows [E] in order, and the place [U] in it where each user begins.
    """
    encoded = events.column(USER_ID).combine_chunks().dictionary_encode()
    num_users = len(encoded.dictionary)
    rank = np.empty(num_users, np.int64)
    rank[pl.Series(encoded.dictionary).arg_sort().to_numpy()] = np.arange(num_users)
    user = rank[encoded.indices.to_numpy()]
    time = event_micros(events.column(EVENT_TIME))
    # A log is mostly in the order of time: then users need only be brought together, by a radix sort of small numbers.
    order = np.argsort(user.astype(np.uint16) if num_users <= _RADIX_LIMIT else user, kind="stable")
    grouped, moments = user[order], time[order]
    if np.any((moments[1:] < moments[:-1]) & (grouped[1:] == grouped[:-1])):
        order = np.lexsort((time, user))
    starts = np.searchsorted(grouped, np.arange(num_users))
    return order, starts


def repeated_events(events: pa.Table, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[E] which events, in `order`, repeat an earlier one in every column.

    Args:
        events: columns that make events equal.
        order, starts: as `order_of_users` gives them.
    """
    time = event_micros(events.column(EVENT_TIME))[order]
    begins = np.zeros(len(order), bool)
    begins[starts] = True
    begins[1:] |= time[1:] != time[:-1]
    moment = np.cumsum(begins)
    tied = ~begins
    tied[:-1] |= ~begins[1:]
    places = np.flatnonzero(tied)
    repeated = np.zeros(len(order), bool)
    if len(places):
        rows = events.drop_columns([USER_ID, EVENT_TIME]).take(pa.array(order[places]))
        frame = pl.DataFrame(pl.from_arrow(rows)).with_columns(pl.Series("moment", moment[places]))
        repeated[places] = ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketFacts:
    """What merging a bucket kept and left out."""

    num_users: int
    num_events: int
    num_duplicates: int
    num_truncated: int


def merge_bucket(
    events: pa.Table, schema: pa.Schema, vocabulary_size: int, max_events: int | None, *, drop_duplicates: bool
) -> tuple[pa.Table, BucketFacts]:
    """One row per user from the events of a bucket.

    Args:
        events: of all runs, one after the other in the order of the log, with `item_index` counting every item of the
            log and `action_index` of the store.
        schema: `store_schema` of the store.
        vocabulary_size: items from this index on become the unknown one.
        max_events: newest events kept of each user; None: all.
        drop_duplicates: keep only the first of events equal in every column.
    """
    order, starts = order_of_users(events)
    lengths = np.diff(np.append(starts, len(order)))
    num_duplicates = num_truncated = 0
    if drop_duplicates:
        repeated = repeated_events(events, order, starts)
        num_duplicates = int(repeated.sum())
        if num_duplicates:
            lengths = lengths - np.add.reduceat(repeated.astype(np.int64), starts)
            order = order[~repeated]
    if max_events is not None and lengths.max(initial=0) > max_events:
        from_last = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(order))
        order = order[from_last <= max_events]
        num_truncated = int(np.maximum(lengths - max_events, 0).sum())
        lengths = np.minimum(lengths, max_events)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = pa.array(order)
    item = events.column(ITEM_INDEX).to_numpy()[order]
    item = np.where(item < vocabulary_size, item, np.int32(UNKNOWN_INDEX))
    columns = [events.column(USER_ID).take(pa.array(order[offsets[:-1]])).cast(schema.field(USER_ID).type)]
    for field in schema:
        if field.name != USER_ID:
            values = pa.array(item) if field.name == ITEM_INDEX else events.column(field.name).take(place)
            values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
            columns.append(pa.LargeListArray.from_arrays(pa.array(offsets), values.cast(field.type.value_type)))
    facts = BucketFacts(
        num_users=len(starts), num_events=len(order), num_duplicates=num_duplicates, num_truncated=num_truncated
    )
    return pa.table(columns, schema=schema), facts


def event_micros(times: pa.ChunkedArray) -> np.ndarray:
    """[E] microseconds since 1970 UTC of event times."""
    return times.combine_chunks().cast(pa.int64()).to_numpy()


def to_sequences(table: pa.Table) -> Sequences:
    """Flat columns of store rows, without copying the events."""
    offsets = np.zeros(1, np.int64)
    columns: dict[str, np.ndarray] = {}
    for name in (ITEM_INDEX, ACTION_INDEX, EVENT_TIME):
        lists = table.column(name).combine_chunks()
        raw = lists.offsets.to_numpy()
        values = lists.values.slice(raw[0], raw[-1] - raw[0]).to_numpy(zero_copy_only=False)
        offsets = raw - raw[0]
        columns[name] = values.astype("datetime64[us]").view(np.int64) if name == EVENT_TIME else values
    return Sequences(user_id=table.column(USER_ID).combine_chunks(), offsets=offsets, **columns)
