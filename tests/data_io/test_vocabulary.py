"""The vocabulary: indices by falling count, and ids that come back."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.vocabulary import Vocabulary, build_vocabulary, read_vocabulary, write_vocabulary

STRINGS = Vocabulary(pa.array(["b", "a", "c"], pa.large_string()))
INTEGERS = Vocabulary(pa.array([30, 10, 20], pa.int64()))


def test_items_follow_by_falling_count_then_id() -> None:
    counts = pl.DataFrame({"item_id": ["c", "a", "b", "a"], "count": [2, 1, 5, 1]})
    assert build_vocabulary(counts, 1).rows() == [("b", 5), ("a", 2), ("c", 2)]


def test_rare_items_are_left_out_by_their_total() -> None:
    counts = pl.DataFrame({"item_id": [1, 2, 1], "count": [1, 1, 1]})
    assert build_vocabulary(counts, 2).rows() == [(1, 2)]
    assert build_vocabulary(counts, 3).height == 0


def test_encoding_knows_padding_unknown_and_items() -> None:
    assert STRINGS.encode(pa.array(["a", None, "zzz", "b"])).tolist() == [3, 0, 1, 2]
    assert INTEGERS.encode(pa.array([20, None, 99, 30])).tolist() == [4, 0, 1, 2]
    assert STRINGS.encode(pa.array(["a"])).dtype == np.int32
    assert STRINGS.size == 5


def test_decoding_gives_null_for_padding_and_unknown() -> None:
    assert STRINGS.decode(np.array([0, 1, 2, 4], np.int32)).to_pylist() == [None, None, "b", "c"]


@pytest.mark.parametrize("data_type", [pa.large_string(), pa.int64()], ids=str)
def test_a_vocabulary_without_items_knows_none(data_type: pa.DataType) -> None:
    vocabulary = Vocabulary(pa.array([], data_type))
    known = pa.array([5]).cast(data_type)
    assert vocabulary.size == 2
    assert vocabulary.encode(pa.concat_arrays([known, pa.nulls(1, data_type)])).tolist() == [1, 0]
    assert vocabulary.decode(np.array([0, 1])).to_pylist() == [None, None]


@pytest.mark.parametrize("vocabulary", [STRINGS, INTEGERS], ids=["string", "int"])
def test_no_ids_encode_to_no_indices(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(pa.array([], vocabulary.item_ids.type)).tolist() == []


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_encode_then_decode_is_the_identity(ids: list[str]) -> None:
    counts = pl.DataFrame({"item_id": ids, "count": [1] * len(ids)})
    table = build_vocabulary(counts, 1)
    vocabulary = Vocabulary(table["item_id"].to_arrow())
    indices = vocabulary.encode(pa.array(ids, pa.large_string()))
    assert indices.min() >= 2
    assert len(set(indices.tolist())) == len(set(ids)) == vocabulary.size - 2
    assert vocabulary.decode(indices).to_pylist() == ids


@pytest.mark.parametrize("ids", [["b", "a"], [30, 10]], ids=["string", "int"])
def test_written_vocabulary_comes_back_in_order(tmp_path: Path, ids: list[object]) -> None:
    table = pl.DataFrame({"item_id": ids, "count": [2, 1]})
    digest = write_vocabulary(str(tmp_path), table)
    assert read_vocabulary(str(tmp_path)).item_ids.to_pylist() == ids
    assert len(digest) == 64
    assert write_vocabulary(str(tmp_path / "again"), table) == digest
