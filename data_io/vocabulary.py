"""The vocabulary: raw item ids to rows of the embedding table and back.

Index 0 is padding (and "no item"), 1 is unknown, real items follow by falling count, then id. Invariant: an index
once given never means another item.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.schema import COUNT, FIRST_INDEX, ITEM_ID, PADDING_INDEX, UNKNOWN_INDEX

VOCABULARY_NAME = "vocabulary.parquet"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Item ids in index order, the first of them at index 2."""

    item_ids: pa.Array

    @property
    def size(self) -> int:
        """Rows an embedding table needs: padding, unknown and every item."""
        return len(self.item_ids) + FIRST_INDEX

    def encode(self, item_ids: pa.Array) -> np.ndarray:
        """Indices (int32) of raw ids; null becomes padding, an id not in the vocabulary unknown."""
        found = pc.call_function(
            "index_in", [item_ids.cast(self.item_ids.type)], pc.SetLookupOptions(self.item_ids, skip_nulls=True)
        )
        places = found.fill_null(UNKNOWN_INDEX - FIRST_INDEX).to_numpy(zero_copy_only=False)
        indices = places.astype(np.int32) + np.int32(FIRST_INDEX)
        indices[item_ids.is_null().to_numpy(zero_copy_only=False)] = PADDING_INDEX
        return indices

    def decode(self, indices: np.ndarray) -> pa.Array:
        """Raw ids of indices; padding and unknown become null."""
        known = indices >= FIRST_INDEX
        return self.item_ids.take(pa.array(indices.astype(np.int64) - FIRST_INDEX, mask=~known))


def build_vocabulary(counts: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """The vocabulary table from item counts: columns item_id and count, most frequent first.

    Args:
        counts: item_id and count; ids may repeat, their counts are added.
        min_count: items with fewer events are left out.
    """
    totals = counts.group_by(ITEM_ID).agg(pl.col(COUNT).sum())
    return totals.filter(pl.col(COUNT) >= min_count).sort([COUNT, ITEM_ID], descending=[True, False])


def write_vocabulary(folder: str, table: pl.DataFrame) -> str:
    """Write the vocabulary into a folder; returns its SHA-256, which models and scores carry."""
    return storage.write_parquet(storage.join(folder, VOCABULARY_NAME), table.to_arrow()).sha256


def read_vocabulary(folder: str) -> Vocabulary:
    """The vocabulary that stands in a folder (a store or a model)."""
    table = storage.read_parquet(storage.join(folder, VOCABULARY_NAME), columns=[ITEM_ID])
    return Vocabulary(table.column(ITEM_ID).combine_chunks())
