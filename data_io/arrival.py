"""Arrival: what of new events is new to a bucket that has users already.

A new day of logs mostly lies after everything a user did before; then a look at each user's last moment is enough, and
no old event is read. Invariant: rows that arrive = kept + duplicates + truncated, as a build of all logs would count.
Where a history was cut to its newest events, what was cut is no longer known: an event that repeats one of those, or
stands at the very microsecond of the oldest kept, may rank otherwise than in a build of all logs.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.merging import EVENT_KEY, explode, merge_bucket, order_of_users, repeated_events
from data_io.schema import EVENT_TIME, FIRST_EVENT_TIME, LAST_EVENT_TIME, NUM_EVENTS, USER_ID

MEETING_COLUMNS = [USER_ID, EVENT_TIME, EVENT_KEY]
"""What is read of old events to know which of them new ones may repeat."""


@dataclass(frozen=True, slots=True)
class KnownUsers:
    """The users a bucket has: events and last moment of each, over all its parts."""

    users: pl.DataFrame

    @classmethod
    def of(cls, parts: list[pa.Table]) -> "KnownUsers":
        """From INDEX_COLUMNS of the rows of each part."""
        frame = _frame(pa.concat_tables(parts).select([USER_ID, NUM_EVENTS, LAST_EVENT_TIME]))
        if len(parts) > 1:  # a part has a user once
            frame = frame.group_by(USER_ID).agg(pl.col(NUM_EVENTS).sum(), pl.col(LAST_EVENT_TIME).max())
        return cls(frame)

    def meet(self, fresh: pa.Table) -> pl.DataFrame:
        """Rows of the store made of new events, each with what was known of its user, null where nothing was."""
        known = self.users.rename({NUM_EVENTS: "before", LAST_EVENT_TIME: "last_before"})
        new = _frame(fresh.select([USER_ID, NUM_EVENTS, FIRST_EVENT_TIME]))
        return new.join(known, on=USER_ID, how="left", maintain_order="left")


def may_repeat(met: pl.DataFrame, fresh: pa.Table) -> bool:
    """Whether new events may repeat old ones; a look at the users tells.

    Args:
        met: as `KnownUsers.meet` gives it.
        fresh: rows of the store made of the new events.
    """
    known = pl.col("before").is_not_null()
    if EVENT_KEY not in fresh.column_names:  # an event equal in every column has the same moment
        known &= pl.col(FIRST_EVENT_TIME) <= pl.col("last_before")
    return met.select(known.any()).item()


def users_that_meet(fresh: pa.Table, old: pa.Table) -> pa.Array:
    """Ids of the users who have a new and an old event at one moment, or of one event id.

    Args:
        fresh: rows of the store made of the new events.
        old: rows the bucket has; MEETING_COLUMNS of them are enough.
    """
    columns = [name for name in MEETING_COLUMNS if name in fresh.column_names]
    new, before = (_frame(explode(rows.select(columns))) for rows in (fresh, old))
    found = [before.join(new, on=[USER_ID, EVENT_TIME], how="semi")[USER_ID]]
    if EVENT_KEY in columns:
        found.append(before.join(new, on=[USER_ID, EVENT_KEY], how="semi")[USER_ID])
    return pl.concat(found).unique().to_arrow().cast(fresh.column(USER_ID).type)


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


def count_arrival(met: pl.DataFrame, max_events: int | None) -> tuple[int, int, int]:
    """Users and events a bucket gains, and events that no longer fit into the newest `max_events` of their user.

    Args:
        met: as `KnownUsers.meet` gives it, of rows without known events.
        max_events: newest events kept of each user; None: all.
    """
    before, new = met["before"].fill_null(0).to_numpy().astype(np.int64), met[NUM_EVENTS].to_numpy().astype(np.int64)
    kept = new if max_events is None else np.minimum(new, np.maximum(max_events - before, 0))
    return int(met["before"].null_count()), int(kept.sum()), int((new - kept).sum())


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
