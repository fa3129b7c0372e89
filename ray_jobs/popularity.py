"""What is popular, for users of whom too little is known: events of each item by segment, newer ones counting more.

Counted in a pass of Ray over the buckets. Weights are whole numbers, so that sums do not depend on the order in which
buckets come. Invariant: memory follows the items of a segment, never the users.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX
from data_io.scores import FROM_POPULARITY
from data_io.sequences import Sequences
from data_io.splits import DAY_US
from data_io.store import SequenceStore
from model.queries import Queries, pure_queries
from ray_jobs.bucket_map import map_buckets
from ray_jobs.scoring_config import FallbackSettings

_ONE = 1 << 20
"""Weight of an event at the end of the log."""
_NEVER_HAD = -40.0
"""Log-popularity of an item without events: below that of any event there can be."""


@dataclass(frozen=True)
class Popularity:
    """Log-popularity of V items in S segments, the first of which is everyone."""

    vectors: np.ndarray
    """[V, S] float32, to be ranked as if they were vectors of items."""
    column: str | None
    """Column of the user table that says the segment."""
    values: list[Any]
    """[S - 1] its values."""

    @property
    def sources(self) -> list[str]:
        """[S] names of the segments."""
        return [FROM_POPULARITY, *(f"{FROM_POPULARITY}:{value}" for value in self.values)]

    def queries(self, segment: np.ndarray) -> Queries:
        """What users [B] of these segments ask of `vectors`."""
        users = np.zeros((len(segment), self.vectors.shape[1]), np.float32)
        users[np.arange(len(segment)), segment] = 1
        return pure_queries(torch.from_numpy(users))


def count_popularity(store: SequenceStore, fallback: FallbackSettings, num_items: int) -> Popularity:
    """The popularity of all items that a model knows.

    Args:
        store: of the run.
        fallback: how.
        num_items: V.

    Raises:
        SettingsError: there is no user table, or it has no such column.
    """
    values = _largest_segments(store, fallback)

    def count(bucket: int) -> tuple[np.ndarray, np.ndarray]:
        sequences = store.read_sequences(bucket)
        segment = segments_of(store, bucket, sequences.user_id, fallback.segment, values)
        return _weights(sequences, segment, store.end_time, fallback.half_life_days, num_items)

    sums = np.zeros((len(values) + 1) * num_items, np.int64)
    for keys, weights in map_buckets(count, range(store.num_buckets)):
        sums[keys] += weights
    by_segment = sums.reshape(len(values) + 1, num_items)
    by_segment[0] = by_segment.sum(axis=0)
    total = np.maximum(by_segment.sum(axis=1, keepdims=True), 1)
    with np.errstate(divide="ignore"):
        logs = np.log(by_segment / total)
    vectors = np.ascontiguousarray(np.maximum(logs, _NEVER_HAD).T.astype(np.float32))
    return Popularity(vectors=vectors, column=fallback.segment, values=values)


def segments_of(
    store: SequenceStore, bucket: int, user_ids: pa.Array, column: str | None, values: list[Any]
) -> np.ndarray:
    """[U] place of each user's segment: 1 for the first of the values, 0 for none of them."""
    if column is None:
        return np.zeros(len(user_ids), np.int64)
    own = store.read_user_table(bucket, user_ids).column(column)
    found = pc.call_function("index_in", [own], pc.SetLookupOptions(pa.array(values, own.type), skip_nulls=True))
    return found.fill_null(-1).to_numpy().astype(np.int64) + 1


def _largest_segments(store: SequenceStore, fallback: FallbackSettings) -> list[Any]:
    column = fallback.segment
    if column is None:
        return []
    empty = store.read_sequences(0).user_id.slice(0, 0)
    known = store.read_user_table(0, empty).column_names
    if column not in known:
        raise SettingsError(f"scoring.fallback.segment {column}: the user table has no such column")

    def count(bucket: int) -> Counter[Any]:
        table = store.read_user_table(bucket, store.read_sequences(bucket).user_id)
        counted = pl.Series(table.column(column)).drop_nulls().value_counts()
        return Counter(dict(counted.iter_rows()))

    total: Counter[Any] = Counter()
    for part in map_buckets(count, range(store.num_buckets)):
        total.update(part)
    ranked = sorted(total.items(), key=lambda pair: (-pair[1], str(pair[0])))
    return [value for value, _ in ranked[: fallback.num_segments]]


def _weights(
    sequences: Sequences, segment: np.ndarray, now: int, half_life_days: float, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (segment times V plus item) and sums of weights of a bucket."""
    items = sequences.item_index.astype(np.int64)
    known = (items >= FIRST_INDEX) & (items < num_items)
    age_days = np.maximum(now - sequences.event_time[known], 0) / DAY_US
    weights = np.round(_ONE * 0.5 ** (age_days / half_life_days)).astype(np.int64)
    segments = np.repeat(segment, np.diff(sequences.offsets))[known]
    keys, places = np.unique(segments * num_items + items[known], return_inverse=True)
    sums = np.zeros(len(keys), np.int64)
    np.add.at(sums, places, weights)
    return keys, sums
