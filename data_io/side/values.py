"""Values of side tables: a column as it was written becomes a column of its contract type, with the faults found.

Functions here know no file: they map an Arrow column to an Arrow array and say which rows hold a value that cannot be
meant. Invariant: a row keeps its place, and what is missing is null.
"""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io.events import EMPTY_IDS
from data_io.side.tables import SideColumn
from data_io.utf8 import invalid_utf8

Faults = dict[str, np.ndarray]
"""Reasons of quarantine, each with [rows] whether it holds."""


def read_values(values: pa.ChunkedArray, column: SideColumn, separator: str) -> tuple[pa.Array, Faults]:
    """A column in its contract type, and what is wrong with its rows.

    Args:
        values: as the file has them.
        column: the contract.
        separator: between the levels of a category given as text.

    Raises:
        pa.ArrowInvalid: a value does not fit the type.
    """
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), column.data_type), {}
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    match column.form:
        case "id":
            return _read_ids(values, column)
        case "text":
            return _read_text(values, column)
        case "number":
            return _read_numbers(values, column)
        case "path":
            return _read_paths(values, column, separator)
        case "vector":
            return _read_vectors(values, column)


def _read_ids(values: pa.ChunkedArray, column: SideColumn) -> tuple[pa.Array, Faults]:
    if column.data_type == pa.int64():
        ids, faults = values.cast(pa.int64()).combine_chunks(), {}
    else:
        ids, faults = _read_text(values, column)
    is_empty = ids.is_null().to_numpy(zero_copy_only=False)
    if column.data_type != pa.int64():
        texts = pl.Series(ids).str.strip_chars().str.to_lowercase()
        is_empty = is_empty | texts.is_in(EMPTY_IDS).fill_null(False).to_numpy()
    for mask in faults.values():
        is_empty = is_empty & ~mask
    return ids, faults | {f"empty_{column.name}": is_empty}


def _read_text(values: pa.ChunkedArray, column: SideColumn) -> tuple[pa.Array, Faults]:
    texts, is_invalid = _mend_text(values.cast(pa.large_string()).combine_chunks())
    return texts, _faults({f"invalid_utf8_{column.name}": is_invalid})


def _mend_text(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Text with null for what is not UTF-8, and where that was."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        is_invalid = invalid_utf8(texts.view(pa.large_binary()))
        nothing = pa.scalar(None, pa.large_binary())
        mended = pc.call_function("if_else", [pa.array(is_invalid), nothing, texts.view(pa.large_binary())])
        return mended.cast(pa.large_string()), is_invalid
    return texts, np.zeros(len(texts), bool)


def _read_numbers(values: pa.ChunkedArray, column: SideColumn) -> tuple[pa.Array, Faults]:
    numbers = values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    faults = {f"infinite_{column.name}": np.isinf(numbers)}
    if not column.may_be_negative:
        faults[f"negative_{column.name}"] = numbers < 0
    return pa.array(numbers, pa.float32(), mask=np.isnan(numbers)), _faults(faults)


def _read_paths(values: pa.ChunkedArray, column: SideColumn, separator: str) -> tuple[pa.Array, Faults]:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        texts, faults = _read_text(values, column)
        encoded = texts.dictionary_encode()  # a catalogue has few different paths
        return _levels(encoded.dictionary, separator).take(encoded.indices), faults
    lists = values.cast(pa.large_list(pa.large_string())).combine_chunks()
    parents = lists.value_parent_indices().to_numpy()
    elements, is_invalid = _mend_text(lists.flatten())
    invalid_rows = np.isin(np.arange(len(lists)), parents[is_invalid])
    return _list_of(elements, parents, len(lists)), _faults({f"invalid_utf8_{column.name}": invalid_rows})


def _levels(paths: pa.LargeStringArray, separator: str) -> pa.LargeListArray:
    split = pc.call_function("split_pattern", [paths], pc.SplitPatternOptions(separator))
    return _list_of(split.flatten(), split.value_parent_indices().to_numpy(), len(paths))


def _list_of(elements: pa.LargeStringArray, parents: np.ndarray, num_rows: int) -> pa.LargeListArray:
    """Lists of trimmed elements without the blank ones; null where none is left."""
    trimmed = pc.call_function("utf8_trim_whitespace", [elements])
    is_kept = pc.call_function("not_equal", [trimmed, pa.scalar("", pa.large_string())]).fill_null(False)
    lengths = np.bincount(parents[is_kept.to_numpy(zero_copy_only=False)], minlength=num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(offsets, trimmed.filter(is_kept), mask=pa.array(lengths == 0))


def _read_vectors(values: pa.ChunkedArray, column: SideColumn) -> tuple[pa.Array, Faults]:
    vectors = values.cast(pa.large_list(pa.float32()), safe=False).combine_chunks()
    numbers = vectors.flatten().to_numpy(zero_copy_only=False)
    is_broken = np.zeros(len(vectors), bool)
    is_finite = np.isfinite(numbers)
    if not is_finite.all():
        is_broken[vectors.value_parent_indices().to_numpy()[~is_finite]] = True
    return vectors, _faults({f"not_finite_{column.name}": is_broken})


def _faults(found: Faults) -> Faults:
    return {reason: mask for reason, mask in found.items() if mask.any()}


def vector_lengths(vectors: pa.LargeListArray) -> np.ndarray:
    """[rows] numbers in each vector; -1 where there is none."""
    return vectors.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
