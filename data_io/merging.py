"""Merging: encoded events become rows of the store, and parts of a user's sequence become one.

Everything here works on one bucket in memory, column by column. Invariant: within a user, events stand by event_time
and then by position in the log, where what came to the store earlier stands before what came later; so a store that
was appended to holds what one built from all logs at once would hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.schema import EVENT_TIME, FIRST_EVENT_TIME, LAST_EVENT_TIME, NUM_EVENTS, USER_ID
from data_io.sequences import event_micros, flat_values

EVENT_KEY = "event_key"
"""Hash of an event's own id, in stores of logs that have one: by it repeated events are known."""
INDEX_COLUMNS = [USER_ID, NUM_EVENTS, LAST_EVENT_TIME]
"""What is read of a user to know whether new events meet old ones, without reading the events."""
_RADIX_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketFacts:
    """What putting events into a bucket kept and left out; users and events are those it did not have before."""

    num_users: int
    num_events: int
    num_duplicates: int
    num_truncated: int


def order_of_users(events: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The order that puts users side by side, by id, and each one's events by time and then as they stand.

    Args:
        events: user_id and event_time of rows in the order of the log.

    Returns:
        Rows [E] in order, and the place [U] in it where each user begins.
    """
    user, num_users = _user_ranks(events.column(USER_ID))
    time = event_micros(events.column(EVENT_TIME))
    # A log is mostly in the order of time: then users need only be brought together, by a radix sort of small numbers.
    order = np.argsort(user.astype(np.uint16) if num_users <= _RADIX_LIMIT else user, kind="stable")
    grouped, moments = user[order], time[order]
    if np.any((moments[1:] < moments[:-1]) & (grouped[1:] == grouped[:-1])):
        order = np.lexsort((time, user))
    return order, np.searchsorted(grouped, np.arange(num_users))


def _user_ranks(user_ids: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """[E] the place of each row's user among the different users by id, and how many there are."""
    encoded = user_ids.combine_chunks().dictionary_encode()
    users, num_users = encoded.dictionary, len(encoded.dictionary)
    rank = np.empty(num_users, np.int64)
    by_id = np.argsort(users.to_numpy()) if pa.types.is_integer(users.type) else pl.Series(users).arg_sort().to_numpy()
    rank[by_id] = np.arange(num_users)
    return rank[encoded.indices.to_numpy()], num_users


def repeated_events(events: pa.Table, order: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[E] which events, in `order`, repeat an earlier one: by event id where both have one, else in every column.

    Args:
        events: rows in the order of the log, with the columns that make events equal.
        order, starts: as `order_of_users` gives them.
    """
    time = event_micros(events.column(EVENT_TIME))[order]
    begins = np.zeros(len(order), bool)
    begins[starts] = True
    user = np.cumsum(begins)
    begins[1:] |= time[1:] != time[:-1]
    tied = ~begins
    tied[:-1] |= ~begins[1:]
    places = np.flatnonzero(tied)
    repeated = np.zeros(len(order), bool)
    if len(places):
        rows = events.drop_columns([USER_ID, EVENT_TIME]).take(pa.array(order[places]))
        moment = pl.Series("moment", np.cumsum(begins)[places])
        frame = pl.DataFrame(pl.from_arrow(rows)).with_columns(moment)
        repeated[places] = ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    if EVENT_KEY in events.column_names:
        repeated |= _repeated_keys(events.column(EVENT_KEY), order, user)
    return repeated


def _repeated_keys(keys: pa.ChunkedArray, order: np.ndarray, user: np.ndarray) -> np.ndarray:
    """[E] which events, in `order`, have the id of one of the same user that stands before them in the log."""
    by_row = np.empty(len(order), np.int64)
    by_row[order] = user
    frame = pl.DataFrame({"user": by_row, "key": pl.Series(keys)})
    repeats = pl.col("key").is_not_null() & ~pl.struct("user", "key").is_first_distinct()
    return frame.select(repeats).to_series().to_numpy()[order]


def merge_bucket(
    events: pa.Table, schema: pa.Schema, max_events: int | None, *, drop_duplicates: bool
) -> tuple[pa.Table, BucketFacts]:
    """One row per user from the events of a bucket.

    Args:
        events: of all runs, one after the other in the order of the log, under the names of the store.
        schema: of the store.
        max_events: newest events kept of each user; None: all.
        drop_duplicates: keep only the first of events that repeat each other.
    """
    order, starts = order_of_users(events)
    lengths = np.diff(np.append(starts, len(order)))
    num_duplicates = 0
    if drop_duplicates:
        repeated = repeated_events(events, order, starts)
        num_duplicates = int(repeated.sum())
        if num_duplicates:
            lengths = lengths - np.add.reduceat(repeated.astype(np.int64), starts)
            order = order[~repeated]
    order, lengths, num_truncated = _newest(order, lengths, max_events)
    # No user is left without an event: of events that repeat each other the first stays.
    users = events.column(USER_ID).take(pa.array(order[np.cumsum(lengths) - lengths]))
    facts = BucketFacts(
        num_users=len(lengths), num_events=len(order), num_duplicates=num_duplicates, num_truncated=num_truncated
    )
    return _rows(users, lengths, events, order, schema), facts


def _newest(order: np.ndarray, lengths: np.ndarray, max_events: int | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Order and lengths with only the newest events of each user, and how many were cut."""
    if max_events is None or lengths.max(initial=0) <= max_events:
        return order, lengths, 0
    from_last = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(order))
    cut = int(np.maximum(lengths - max_events, 0).sum())
    return order[from_last <= max_events], np.minimum(lengths, max_events), cut


def _rows(
    users: pa.ChunkedArray, lengths: np.ndarray, events: pa.Table, order: np.ndarray, schema: pa.Schema
) -> pa.Table:
    """Rows of the store: users with their events, which are taken in `order`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    time = event_micros(events.column(EVENT_TIME))[order]
    scalars = {
        USER_ID: users,
        NUM_EVENTS: pa.array(lengths),
        FIRST_EVENT_TIME: pa.array(time[offsets[:-1]]),
        LAST_EVENT_TIME: pa.array(time[offsets[1:] - 1]),
    }
    columns, place = [], pa.array(order)
    for field in schema:
        if field.name in scalars:
            columns.append(scalars[field.name].cast(field.type))
        else:
            values = pa.array(time) if field.name == EVENT_TIME else events.column(field.name).take(place)
            values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
            columns.append(pa.LargeListArray.from_arrays(pa.array(offsets), values.cast(field.type.value_type)))
    return pa.table(columns, schema=schema)


def merge_parts(parts: Sequence[pa.Table], max_events: int | None) -> pa.Table:
    """One row per user, by id, from parts of a bucket, of which the earlier came to the store earlier.

    Args:
        parts: tables of the same schema, each with a row per user at most, events in order; among their list columns
            is event_time.
        max_events: newest events kept of each user; None: all.
    """
    if len(parts) == 1:
        return parts[0]
    table = pa.concat_tables(parts).combine_chunks()
    user, num_users = _user_ranks(table.column(USER_ID))
    offsets, _ = flat_values(table.column(EVENT_TIME))
    row_order = np.argsort(user, kind="stable")
    events = _flat(table)
    order = spans(offsets[:-1][row_order], np.diff(offsets)[row_order])
    lengths = np.bincount(user, weights=np.diff(offsets), minlength=num_users).astype(np.int64)
    owner = np.repeat(np.arange(num_users), lengths)
    time = event_micros(events.column(EVENT_TIME))[order]
    if np.any((time[1:] < time[:-1]) & (owner[1:] == owner[:-1])):
        order = order[np.lexsort((time, owner))]
    order, lengths, _ = _newest(order, lengths, max_events)
    firsts = row_order[np.searchsorted(user[row_order], np.arange(num_users))]
    return _rows(table.column(USER_ID).take(pa.array(firsts)), lengths, events, order, table.schema)


def _flat(table: pa.Table) -> pa.Table:
    """The events of store rows, one row each, without their users."""
    lists = [field.name for field in table.schema if pa.types.is_large_list(field.type)]
    return pa.table({name: flat_values(table.column(name))[1] for name in lists})


def explode(table: pa.Table) -> pa.Table:
    """The events of store rows, one row each, with their user."""
    events = _flat(table)
    offsets, _ = flat_values(table.column(EVENT_TIME))
    owner = pa.array(np.repeat(np.arange(table.num_rows), np.diff(offsets)))
    return events.append_column(USER_ID, table.column(USER_ID).take(owner))


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All places of ranges, one range after the other: starts[0], starts[0] + 1, ..., starts[1], ..."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
