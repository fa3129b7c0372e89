"""Arrival: what of new events is new to a bucket that has users already.

A new day of logs mostly lies after everything a user did before; then a look at each user's last moment is enough, and
no old event is read. Invariant: rows that arrive = kept + duplicates + truncated, as a build of all logs would count.
Where a history was cut to its newest events, what was cut is no longer known: an event that repeats one of those, or
stands at the very microsecond of the oldest kept, may rank otherwise than in a build of all logs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io.merging import EVENT_KEY, explode, merge_bucket, order_of_users, repeated_events
from data_io.schema import EVENT_TIME, FIRST_EVENT_TIME, LAST_EVENT_TIME, NUM_EVENTS, USER_ID
from data_io.sequences import event_micros, flat_values

MEETING_COLUMNS = [USER_ID, EVENT_TIME, EVENT_KEY]
"""What is read of old events to know which of them new ones may repeat."""
_ROW = "row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """The users [U] of new rows, and what a bucket knows of each."""

    new: np.ndarray
    """New events."""
    first_new: np.ndarray
    """Moment of the first of them."""
    before: np.ndarray
    """Events the bucket has; 0: it does not know the user."""
    last_before: np.ndarray
    """Moment of the last of them."""


def meet(parts: Sequence[pa.Table], fresh: pa.Table) -> Meeting:
    """What a bucket knows of the users of new rows.

    Args:
        parts: INDEX_COLUMNS of the rows of each part of the bucket.
        fresh: rows of the store made of new events.
    """
    before = np.zeros(fresh.num_rows, np.int64)
    last_before = np.full(fresh.num_rows, np.iinfo(np.int64).min)
    for part in parts:  # of which each has a user once
        place = _places(fresh.column(USER_ID), part.column(USER_ID))
        known = np.flatnonzero(place >= 0)
        before[known] += part.column(NUM_EVENTS).to_numpy()[place[known]]
        last = event_micros(part.column(LAST_EVENT_TIME))[place[known]]
        last_before[known] = np.maximum(last_before[known], last)
    return Meeting(
        new=fresh.column(NUM_EVENTS).to_numpy().astype(np.int64),
        first_new=event_micros(fresh.column(FIRST_EVENT_TIME)),
        before=before,
        last_before=last_before,
    )


def may_repeat(met: Meeting, *, by_id: bool) -> bool:
    """Whether new events may repeat old ones; a look at the users tells.

    Args:
        met: as `meet` gives it.
        by_id: whether events have ids; one that is equal in every column has the same moment.
    """
    return bool(np.any((met.before > 0) & (by_id | (met.first_new <= met.last_before))))


def users_that_meet(fresh: pa.Table, old: pa.Table) -> pa.Array:
    """Ids of the users who have a new and an old event at one moment, or of one event id.

    Args:
        fresh: rows of the store made of the new events.
        old: rows the bucket has; MEETING_COLUMNS of them are enough.
    """
    place = _places(old.column(USER_ID), fresh.column(USER_ID))
    known = np.flatnonzero(place >= 0)  # few of the old rows, so the others are not looked at
    new = _events(fresh, np.arange(fresh.num_rows))
    before = _events(old.take(pa.array(known)), place[known])
    found = [before.join(new, on=[_ROW, name], how="semi")[_ROW] for name in new.columns if name != _ROW]
    return fresh.column(USER_ID).take(pl.concat(found).unique().to_arrow()).combine_chunks()


def _events(rows: pa.Table, users: np.ndarray) -> pl.DataFrame:
    """Moment and id of each event of some rows, beside the number of its user; users [rows]."""
    offsets, _ = flat_values(rows.column(EVENT_TIME))
    columns = {name: flat_values(rows.column(name))[1] for name in MEETING_COLUMNS[1:] if name in rows.column_names}
    return pl.DataFrame(pl.from_arrow(pa.table({_ROW: np.repeat(users, np.diff(offsets))} | columns)))


def _places(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """[ids] the place each id has among others, -1 where it has none."""
    found = pc.call_function("index_in", [ids], pc.SetLookupOptions(among.combine_chunks()))
    return found.fill_null(-1).to_numpy()


def drop_known(fresh: pa.Table, old: pa.Table) -> tuple[pa.Table, int]:
    """New rows without the events that repeat an old one, and how many those were.

    Args:
        fresh: rows of the store made of the new events.
        old: rows the bucket has, of the users that `users_that_meet` names, from its parts in order.
    """
    events, before = explode(fresh), explode(old)
    both = pa.concat_tables([before.select(events.column_names).cast(events.schema), events])
    order, starts = order_of_users(both)
    repeated = order[repeated_events(both, order, starts)] - before.num_rows
    known = repeated[repeated >= 0]
    if not len(known):
        return fresh, 0
    if len(known) == events.num_rows:
        return fresh.schema.empty_table(), len(known)
    left = events.take(pa.array(np.setdiff1d(np.arange(events.num_rows), known)))
    table, _ = merge_bucket(left, fresh.schema, None, drop_duplicates=False)
    return table, len(known)


def count_arrival(met: Meeting, max_events: int | None) -> tuple[int, int, int]:
    """Users and events a bucket gains, and events that no longer fit into the newest `max_events` of their user.

    Args:
        met: as `meet` gives it, of rows without known events.
        max_events: newest events kept of each user; None: all.
    """
    kept = met.new if max_events is None else np.minimum(met.new, np.maximum(max_events - met.before, 0))
    return int((met.before == 0).sum()), int(kept.sum()), int((met.new - kept).sum())
