"""The vocabulary: indices by falling count, ids that come back, and growth that moves nothing."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import storage
from data_io.schema import DataContractError
from data_io.vocabulary import (
    VOCABULARY_NAME,
    Vocabulary,
    build_vocabulary,
    grow_vocabulary,
    index_of_numbers,
    known_items,
    read_vocabulary,
    read_vocabulary_table,
    write_vocabulary,
)

STRINGS = Vocabulary(pa.array(["b", "a", "c"], pa.large_string()))
INTEGERS = Vocabulary(pa.array([30, 10, 20], pa.int64()))
HOSTILE = ["a=b/../c", "%2F", "\0", "🛒", "\u00fc", "u\u0308", "x" * 10_000]
LOGS = st.lists(st.lists(st.tuples(st.sampled_from([*"abcd", *HOSTILE]), st.integers(1, 4)), max_size=6), min_size=1)


def to_counts(*counts: tuple[str, int]) -> pl.DataFrame:
    schema = {"item_id": pl.String, "count": pl.Int64}
    return pl.DataFrame(list(counts), schema=schema, orient="row")


def make_items(*ids: str, indices: list[int] | None = None) -> pl.DataFrame:
    """A table of all items, each with a count of one."""
    numbers = list(range(2, len(ids) + 2)) if indices is None else indices
    columns = {"item_id": list(ids), "count": [1] * len(ids), "item_index": numbers}
    return pl.DataFrame(columns, schema={"item_id": pl.String, "count": pl.Int64, "item_index": pl.Int32})


def test_items_follow_by_falling_count_then_id() -> None:
    counts = pl.DataFrame({"item_id": ["c", "a", "b", "a"], "count": [2, 1, 5, 1]})
    assert build_vocabulary(counts, 1).rows() == [("b", 5, 2), ("a", 2, 3), ("c", 2, 4)]


def test_rare_items_have_a_number_and_the_unknown_index() -> None:
    table = build_vocabulary(pl.DataFrame({"item_id": [1, 2, 1], "count": [1, 1, 1]}), 2)
    assert table.rows() == [(1, 2, 2), (2, 1, 1)]
    assert known_items(table).item_ids.to_pylist() == [1]
    assert known_items(build_vocabulary(table.select("item_id", "count"), 3)).size == 2


@given(LOGS, st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_grown_in_steps_it_has_the_items_and_counts_of_one_built_at_once(
    logs: list[list[tuple[str, int]]], min_count: int
) -> None:
    table = build_vocabulary(to_counts(*logs[0]), min_count)
    for log in logs[1:]:
        table = grow_vocabulary(table, to_counts(*log), min_count)
    whole = build_vocabulary(to_counts(*(row for log in logs for row in log)), min_count)
    assert dict(table.select("item_id", "count").rows()) == dict(whole.select("item_id", "count").rows())
    assert table.height == whole.height
    known, at_once = known_items(table), known_items(whole)
    assert set(known.item_ids.to_pylist()) == set(at_once.item_ids.to_pylist())
    assert table["item_index"].to_list().count(1) == whole["item_index"].to_list().count(1)
    naive = {item for item, count in table.select("item_id", "count").rows() if count >= min_count}
    assert set(known.item_ids.to_pylist()) == naive


@given(LOGS, st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_a_number_or_index_once_given_never_moves(logs: list[list[tuple[str, int]]], min_count: int) -> None:
    table = build_vocabulary(to_counts(*logs[0]), min_count)
    for log in logs[1:]:
        before, table = table, grow_vocabulary(table, to_counts(*log), min_count)
        assert table["item_id"].head(before.height).equals(before["item_id"])
        old, new = known_items(before), known_items(table)
        assert new.item_ids.slice(0, len(old.item_ids)).equals(old.item_ids)
        assert new.digest(old.size) == old.digest()
        given_indices = sorted(index for index in table["item_index"].to_list() if index != 1)
        assert given_indices == list(range(2, new.size)), "no index is left out or given twice"


def test_what_rises_takes_the_next_indices_by_falling_count_then_id() -> None:
    table = build_vocabulary(to_counts(("often", 3), ("rare", 1), ("seldom", 1)), 2)
    grown = grow_vocabulary(table, to_counts(("seldom", 3), ("new", 2), ("rare", 1), ("once", 1)), 2)
    expected = [("often", 3, 2), ("rare", 2, 5), ("seldom", 4, 3), ("new", 2, 4), ("once", 1, 1)]
    assert grown.rows() == expected


def test_a_log_without_items_changes_nothing() -> None:
    table = build_vocabulary(to_counts(("a", 3), ("b", 1)), 2)
    assert grow_vocabulary(table, to_counts(), 2).equals(table)
    assert build_vocabulary(to_counts(), 2).height == 0


@pytest.mark.parametrize(("indices", "expected"), [([2, 3, 4], None), ([2, 1, 3], [0, 1, 2, 1, 3])], ids=str)
def test_numbers_become_indices_where_they_are_not_the_same(indices: list[int], expected: list[int] | None) -> None:
    found = index_of_numbers(make_items("a", "b", "c", indices=indices))
    assert (None if found is None else found.tolist()) == expected
    assert found is None or found.dtype == np.int32


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
    assert len(vocabulary.digest()) == 64


@pytest.mark.parametrize("vocabulary", [STRINGS, INTEGERS], ids=["string", "int"])
def test_no_ids_encode_to_no_indices(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(pa.array([], vocabulary.item_ids.type)).tolist() == []


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=10))
@settings(max_examples=50, deadline=None)
def test_encode_then_decode_is_the_identity(ids: list[str]) -> None:
    vocabulary = known_items(build_vocabulary(to_counts(*((item, 1) for item in ids)), 1))
    indices = vocabulary.encode(pa.array(ids, pa.large_string()))
    assert indices.min() >= 2
    assert len(set(indices.tolist())) == len(set(ids)) == vocabulary.size - 2
    assert vocabulary.decode(indices).to_pylist() == ids


@pytest.mark.parametrize("ids", [["b", "a", *HOSTILE], [30, 10]], ids=["string", "int"])
def test_written_vocabulary_comes_back_in_order(tmp_path: Path, ids: list[object]) -> None:
    table = build_vocabulary(pl.DataFrame({"item_id": ids, "count": range(len(ids), 0, -1)}), 1)
    written = write_vocabulary(str(tmp_path), table)
    assert read_vocabulary(str(tmp_path)).item_ids.to_pylist() == ids
    assert read_vocabulary_table(str(tmp_path)).equals(table)
    assert read_vocabulary(str(tmp_path)).digest() == known_items(table).digest()
    assert (written.name, written.num_rows, len(written.sha256)) == (VOCABULARY_NAME, len(ids), 64)
    again = write_vocabulary(str(tmp_path), table, "tables/vocabulary-this.parquet")
    assert (again.name, again.sha256) == ("vocabulary-this.parquet", written.sha256)
    assert read_vocabulary_table(str(tmp_path), "tables/vocabulary-this.parquet").equals(table)


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    write_vocabulary(str(tmp_path), make_items("a", "b"))
    path = tmp_path / VOCABULARY_NAME
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataContractError, match=r"vocabulary\.parquet: cannot be read as Parquet"):
        read_vocabulary(str(tmp_path))


@pytest.mark.parametrize("columns", [["item_id"], ["item_id", "count"]], ids=["of a model", "of format 1"])
def test_a_vocabulary_without_indices_is_in_their_order(tmp_path: Path, columns: list[str]) -> None:
    table = make_items("b", "a").select(columns).to_arrow()
    storage.write_parquet(storage.join(str(tmp_path), VOCABULARY_NAME), table)
    assert read_vocabulary(str(tmp_path)).item_ids.to_pylist() == ["b", "a"]


def test_a_digest_is_of_the_first_items_in_order() -> None:
    grown = Vocabulary(pa.array(["b", "a", "c", "d"], pa.large_string()))
    assert grown.digest(STRINGS.size) == STRINGS.digest() == STRINGS.digest(5)
    assert grown.digest() != STRINGS.digest()
    assert Vocabulary(pa.array(["a", "b", "c"], pa.large_string())).digest() != STRINGS.digest()
    assert INTEGERS.digest(3) == Vocabulary(pa.array([30], pa.int64())).digest() != INTEGERS.digest(4)


@pytest.mark.parametrize("other", [["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c", ""]], ids=str)
def test_a_digest_tells_where_one_id_ends_and_the_next_begins(other: list[str]) -> None:
    one, two = (Vocabulary(pa.array(ids, pa.large_string())).digest() for ids in (["a", "b", "c"], other))
    assert one != two


def test_a_digest_is_of_the_ids_and_not_of_how_arrow_holds_them() -> None:
    sliced = Vocabulary(pa.array(["x", "b", "a", "c"], pa.large_string()).slice(1))
    assert sliced.digest() == STRINGS.digest()
    assert Vocabulary(pa.array([1, 30, 10, 20], pa.int64()).slice(1)).digest(3) == INTEGERS.digest(3)
