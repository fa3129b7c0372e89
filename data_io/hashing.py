"""Values of declared features as row numbers of fixed tables, without a vocabulary to fit or to keep.

A value has the same row on every machine and in every version, so that a saved model reads what comes up later.
Invariant: row 0 means that there is nothing, and no value that is there ever gets it.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.buckets import hash64

NUM_NUMERIC_BUCKETS = 386
"""Buckets of `numeric_bucket`: 192 levels of either sign, one for zero, and 0 for a missing number."""
_LEVELS = 192
_LOWEST_LEVEL = -64
"""Quarter-octave of the first level: numbers below 2 to the power of -16 count as that."""
_WORD = r"[\p{L}\p{N}]+"
_ROWS_AT_ONCE = 100_000


def hash_values(values: pa.Array, num_rows: int) -> np.ndarray:
    """[N] int32 row of each value, from 1 to num_rows - 1; 0 where it is missing.

    Args:
        values: integers, booleans or text.
        num_rows: of the table, padding included.
    """
    rows = np.zeros(len(values), np.int32)
    known = values.is_valid().to_numpy(zero_copy_only=False)
    there = values.drop_null()
    keys = there if pa.types.is_integer(there.type) else there.cast(pa.large_string())
    rows[known] = 1 + (hash64(keys) % np.uint64(num_rows - 1)).astype(np.int32)
    return rows


def hash_text(values: pa.Array, num_tokens: int, num_rows: int) -> np.ndarray:
    """[N, K] int32 rows of the first K different tokens of each text: its words, then trigrams of letters; 0 pads.

    Words are runs of letters and digits in lower case. Trigrams are taken of each word between marks of its beginning
    and end, so that words alike share rows.

    Args:
        values: text.
        num_tokens: K.
        num_rows: of the table, padding included.
    """
    parts = [
        _hash_texts(values.slice(first, _ROWS_AT_ONCE), num_tokens, num_rows)
        for first in range(0, len(values), _ROWS_AT_ONCE)
    ]
    return np.concatenate([np.zeros((0, num_tokens), np.int32), *parts])


def _hash_texts(values: pa.Array, num_tokens: int, num_rows: int) -> np.ndarray:
    texts = pl.DataFrame({"text": pl.Series(values.cast(pa.large_string()))}).with_row_index("row")
    words = texts.select("row", pl.col("text").str.to_lowercase().str.extract_all(_WORD).alias("token"))
    words = words.explode("token").drop_nulls()
    tokens = pl.concat([words, _trigrams(words)]).unique(["row", "token"], keep="first", maintain_order=True)
    tokens = tokens.sort("row", maintain_order=True).with_columns(pl.int_range(pl.len()).over("row").alias("place"))
    tokens = tokens.filter(pl.col("place") < num_tokens)
    rows = np.zeros((len(values), num_tokens), np.int32)
    hashed = hash_values(tokens["token"].to_arrow(), num_rows)
    rows[tokens["row"].to_numpy(), tokens["place"].to_numpy()] = hashed
    return rows


def _trigrams(words: pl.DataFrame) -> pl.DataFrame:
    marked = words.with_columns(pl.format("<{}>", "token").alias("token"))
    places = marked.with_columns(pl.int_ranges(pl.col("token").str.len_chars().cast(pl.Int64) - 2).alias("place"))
    return places.explode("place").select("row", pl.col("token").str.slice(pl.col("place"), 3))


def numeric_bucket(values: np.ndarray) -> np.ndarray:
    """[N] int32 bucket of each number: its sign and its size in quarter-octaves; 0 where it is missing (NaN).

    Sizes run from 2 to the power of -16 to that of 32; what is smaller or larger has the first or last level.
    """
    size = np.abs(values.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.clip(np.floor(4 * np.log2(size)) - _LOWEST_LEVEL, 0, _LEVELS - 1) + 1
        bucket = 1 + _LEVELS + np.where(size == 0, 0, np.sign(values) * level)
    return np.where(np.isnan(values), 0, bucket).astype(np.int32)
