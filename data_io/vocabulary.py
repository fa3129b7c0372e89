"""The vocabulary: raw item ids to rows of the embedding table and back.

Index 0 is padding (and "no item"), 1 is unknown, real items follow: by falling count, then id, and after an append the
items that came up since. A store numbers every item it ever saw in that order; items below `min_item_count` have a
number and share the unknown index until they have events enough. Invariant: a number or index once given never means
another item.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.schema import COUNT, FIRST_INDEX, ITEM_ID, ITEM_INDEX, PADDING_INDEX, UNKNOWN_INDEX, kind_of
from data_io.storage import WrittenFile

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

    def digest(self, size: int | None = None) -> str:
        """SHA-256 of the first `size` rows (None: all), by which a model knows the vocabulary it was trained on.

        A vocabulary that has grown since has the same digest at the old size.
        """
        ids = self.item_ids.slice(0, (self.size if size is None else size) - FIRST_INDEX)
        state = hashlib.sha256(f"{kind_of(self.item_ids.type)}:{len(ids)}:".encode())
        if pa.types.is_integer(ids.type):
            state.update(ids.to_numpy())
        else:
            lengths = pc.call_function("binary_length", [ids])
            state.update(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False))
            state.update("".join(ids.to_pylist()).encode())
        return state.hexdigest()


def build_vocabulary(counts: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """The table of all items of a log, most frequent first: item_id, count and item_index, row n having number n + 2.

    Args:
        counts: item_id and count; ids may repeat, their counts are added.
        min_count: items with fewer events have the unknown index.
    """
    return grow_vocabulary(None, counts, min_count)


def grow_vocabulary(table: pl.DataFrame | None, counts: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """The table with the items of new events: old rows keep number and index, new ones follow.

    Args:
        table: as it was returned before; None: there are no items yet.
        counts: item_id and count of the new events; ids may repeat, their counts are added.
        min_count: items with fewer events in all have the unknown index; those that now have enough get the next ones.
    """
    fresh = counts.group_by(ITEM_ID).agg(pl.col(COUNT).sum().cast(pl.Int64))
    if table is None:
        table = fresh.clear().with_columns(pl.lit(0, pl.Int32).alias(ITEM_INDEX))
    known = table.join(fresh, on=ITEM_ID, how="left", maintain_order="left", suffix="_new")
    known = known.select(ITEM_ID, pl.col(COUNT) + pl.col(f"{COUNT}_new").fill_null(0), ITEM_INDEX)
    added = fresh.join(table, on=ITEM_ID, how="anti").sort([COUNT, ITEM_ID], descending=[True, False])
    both = pl.concat([known, added.with_columns(pl.lit(UNKNOWN_INDEX, pl.Int32).alias(ITEM_INDEX))])
    rises = both.with_row_index("row").filter((pl.col(ITEM_INDEX) == UNKNOWN_INDEX) & (pl.col(COUNT) >= min_count))
    rises = rises.sort([COUNT, ITEM_ID], descending=[True, False])["row"].to_numpy()
    index = both[ITEM_INDEX].to_numpy().copy()
    index[rises] = np.arange(len(rises)) + (index >= FIRST_INDEX).sum() + FIRST_INDEX
    return both.with_columns(pl.Series(ITEM_INDEX, index))


def write_vocabulary(folder: str, table: pl.DataFrame, name: str = VOCABULARY_NAME) -> WrittenFile:
    """Write a vocabulary into a folder, and say what was written."""
    return storage.write_parquet(storage.join(folder, name), table.to_arrow())


def read_vocabulary_table(folder: str, name: str = VOCABULARY_NAME) -> pl.DataFrame:
    """The table of all items that stands in a store or model; in a model every item has an index of its own."""
    frame = pl.from_arrow(storage.read_parquet(storage.join(folder, name)))
    assert isinstance(frame, pl.DataFrame)
    if ITEM_INDEX in frame.columns:
        return frame
    return frame.with_columns(pl.int_range(FIRST_INDEX, pl.len() + FIRST_INDEX, dtype=pl.Int32).alias(ITEM_INDEX))


def known_items(table: pl.DataFrame) -> Vocabulary:
    """Of a table of all items those that have an index of their own, in its order."""
    known = table.filter(pl.col(ITEM_INDEX) >= FIRST_INDEX).sort(ITEM_INDEX)
    return Vocabulary(known.to_arrow().column(ITEM_ID).combine_chunks())


def index_of_numbers(table: pl.DataFrame) -> np.ndarray | None:
    """[N + 2] the index (int32) of each item number of a store; None where the two are the same."""
    index = table[ITEM_INDEX].to_numpy()
    if np.array_equal(index, np.arange(len(index)) + FIRST_INDEX):
        return None
    return np.concatenate([np.array([PADDING_INDEX, UNKNOWN_INDEX], np.int32), index])


def read_vocabulary(folder: str, name: str = VOCABULARY_NAME) -> Vocabulary:
    """The vocabulary that stands in the folder of a model: its item ids in index order."""
    return Vocabulary(read_vocabulary_table(folder, name).to_arrow().column(ITEM_ID).combine_chunks())
