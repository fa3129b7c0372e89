"""Sequences: the events of each user in order, and how encoded events become them.

Events of a bucket are flat columns; a user is a slice of them given by offsets. Nothing here calls Python once a user.
Invariant: within a user, events stand by event_time and then by position in the log.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.buckets import bucket_of, hash64
from data_io.schema import (
    ACTION,
    ACTION_INDEX,
    BUCKET,
    EVENT_TIME,
    FIRST_INDEX,
    ITEM_ID,
    ITEM_INDEX,
    SOURCE_ROW,
    UNKNOWN_INDEX,
    USER_ID,
)
from data_io.vocabulary import Vocabulary

POSITION = "position"
ITEM_KEY = "item_key"


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


def encode_events(
    events: pa.Table, first_position: int, vocabulary: Vocabulary, actions: list[str], num_buckets: int
) -> pa.Table:
    """Good rows of a fragment, integer-encoded and given their bucket, ready to move between machines.

    Args:
        events: as `part_events` gives them.
        first_position: position in the log of the fragment's first row.
        vocabulary: of items.
        actions: known actions; the first has index 2.
        num_buckets: of the store.
    """
    user_id = events.column(USER_ID).combine_chunks()
    item_id = events.column(ITEM_ID).combine_chunks()
    action = pl.Series(events.column(ACTION)).replace_strict(
        actions, range(FIRST_INDEX, FIRST_INDEX + len(actions)), default=UNKNOWN_INDEX, return_dtype=pl.Int16
    )
    item_key = np.zeros(len(item_id), np.uint64)
    present = item_id.is_valid().to_numpy(zero_copy_only=False)
    item_key[present] = hash64(item_id.drop_null())
    columns = {
        BUCKET: pa.array(bucket_of(user_id, num_buckets)),
        USER_ID: user_id,
        ITEM_INDEX: pa.array(vocabulary.encode(item_id)),
        ITEM_KEY: pa.array(item_key),
        ACTION_INDEX: action.to_arrow(),
        EVENT_TIME: events.column(EVENT_TIME),
        POSITION: pa.array(events.column(SOURCE_ROW).to_numpy().astype(np.int64) + first_position),
    }
    carried = [name for name in events.column_names if name not in (*columns, ITEM_ID, ACTION, SOURCE_ROW)]
    return pa.table(columns | {name: events.column(name) for name in carried})


def build_bucket(events: pa.Table, schema: pa.Schema, *, drop_duplicates: bool) -> pa.Table:
    """One row per user from the encoded events of a bucket, in any order.

    Args:
        events: as `encode_events` gives them, all of one bucket.
        schema: `store_schema` of the store.
        drop_duplicates: keep only the first of events equal in every column but their position.
    """
    frame = pl.from_arrow(events)
    assert isinstance(frame, pl.DataFrame)
    frame = frame.sort([USER_ID, EVENT_TIME, POSITION])
    if drop_duplicates:
        equal = [name for name in frame.columns if name not in (POSITION, BUCKET)]
        frame = frame.unique(subset=equal, keep="first", maintain_order=True)
    first = frame.select(pl.col(USER_ID).ne_missing(pl.col(USER_ID).shift()).arg_true()).to_series().to_numpy()
    offsets = pa.array(np.append(first, frame.height).astype(np.int64))
    ordered = frame.select(schema.names).to_arrow()
    columns = [ordered.column(USER_ID).take(pa.array(first)).cast(schema.field(USER_ID).type)]
    for field in schema:
        if field.name != USER_ID:
            values = ordered.column(field.name).combine_chunks().cast(field.type.value_type)
            columns.append(pa.LargeListArray.from_arrays(offsets, values))
    return pa.table(columns, schema=schema)


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
