"""The item table: checked on footers, its bad rows aside, one row per item of the vocabulary in index order."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import storage
from data_io.config import ItemSettings, SettingsError
from data_io.schema import DataContractError
from data_io.side.items import ItemTable, build_item_table, price_buckets, price_edges, scan_items

LENIENT = ItemSettings(max_bad_share=1.0)
ABC = pa.array(["a", "b", "c"], pa.large_string())


def build(
    url: str, options: ItemSettings = LENIENT, ids: pa.Array = ABC, edges: list[float] | None = None
) -> ItemTable:
    kind = "int" if pa.types.is_integer(ids.type) else "string"
    return build_item_table(scan_items(url, options, kind), options, ids, edges=edges)


def column(built: ItemTable, name: str) -> list[Any]:
    return built.table.column(name).to_pylist()


def test_items_come_in_index_order_and_what_is_missing_is_null(tmp_path: Path, write_log: Callable) -> None:
    items = pa.table(
        {
            "item_id": ["b", "unsold", "a"],
            "title": ["Spade", "Fork", " Rake "],
            "category": ["garden > tools", "x", None],
            "brand": ["B", None, "A"],
            "price": [4.0, 1.0, 2.0],
        }
    )
    built = build(write_log(tmp_path, items))
    assert built.table.to_pydict() == {
        "item_id": ["a", "b", "c"],
        "in_table": [True, True, False],
        "title": [" Rake ", "Spade", None],
        "category": [None, ["garden", "tools"], None],
        "brand": ["A", "B", None],
        "price": [2.0, 4.0, None],
        "price_bucket": [1, 16, 0],
    }
    types = {field.name: str(field.type) for field in built.table.schema}
    assert (types["price"], types["price_bucket"]) == ("float", "int16")
    assert types["category"] == "large_list<item: large_string>"
    edges = built.facts.pop("price_edges")
    assert len(edges) == 15
    assert built.facts == {
        "num_rows": 3,
        "num_quarantined": 0,
        "reasons": {},
        "num_matched": 2,
        "num_without_row": 1,
        "num_duplicates": 0,
        "num_without_events": 1,
        "num_forgotten": 0,
        "vector_sizes": {},
    }
    assert built.quarantined.num_rows == 0


def test_a_table_of_ids_alone_has_all_columns(tmp_path: Path, write_log: Callable) -> None:
    built = build(write_log(tmp_path, pa.table({"item_id": ["a"]})))
    assert built.table.column_names == ["item_id", "in_table", "title", "category", "brand", "price", "price_bucket"]
    assert column(built, "in_table") == [True, False, False]
    assert built.facts["price_edges"] == []


@pytest.mark.parametrize("groups", [None, 1])
def test_of_an_item_in_two_files_the_last_row_counts(tmp_path: Path, write_log: Callable, groups: int | None) -> None:
    first = pa.table({"item_id": ["a", "b", "a"], "title": ["a1", "b1", "a2"]})
    second = pa.table({"item_id": ["a", "x", "x"], "title": [None, "x1", "x2"]})
    built = build(write_log(tmp_path, first, second, rows_per_group=groups))
    assert column(built, "title") == [None, "b1", None]
    assert column(built, "in_table") == [True, True, False]
    counted = [built.facts[name] for name in ("num_rows", "num_matched", "num_duplicates", "num_without_events")]
    assert counted == [6, 2, 2, 2]


def test_batches_of_any_size_give_the_same(
    tmp_path: Path, write_log: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"i{number % 7}" for number in range(40)]
    url = write_log(tmp_path, pa.table({"item_id": ids, "title": [str(row) for row in range(40)]}), rows_per_group=3)
    vocabulary = pa.array([f"i{number}" for number in (3, 1, 5)], pa.large_string())
    whole = build(url, ids=vocabulary)
    monkeypatch.setattr("data_io.side.items._ROWS_AT_ONCE", 1)
    parts = build(url, ids=vocabulary)
    assert parts.table.equals(whole.table)
    assert parts.facts == whole.facts


def test_integer_ids_and_odd_integer_types(tmp_path: Path, write_log: Callable) -> None:
    items = pa.table({"item_id": pa.array([7, None, -1], pa.int16()), "title": ["seven", "none", "minus"]})
    built = build(write_log(tmp_path, items), ids=pa.array([-1, 7, 2**62]))
    assert column(built, "item_id") == [-1, 7, 2**62]
    assert column(built, "title") == ["minus", "seven", None]
    assert built.facts["reasons"] == {"empty_item_id": 1}


def test_ids_are_compared_exactly(tmp_path: Path, write_log: Callable) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    ids = [composed, "A", "a ", "a\x00", "\u200ba", "😀", "a=b/../c", "%2F", "שלום"]
    built = build(
        write_log(tmp_path, pa.table({"item_id": ids, "title": ids})),
        ids=pa.array([decomposed, "a", *ids], pa.large_string()),
    )
    assert column(built, "title") == [None, None, *ids]


@pytest.mark.parametrize("empty", [None, "", "  ", "NaN", " null ", "None"])
def test_a_row_without_id_is_quarantined_with_its_place(tmp_path: Path, write_log: Callable, empty: str | None) -> None:
    table = pa.table({"item_id": ["a", "b", "b", empty], "title": list("wxyz")})
    built = build(write_log(tmp_path, pa.table({"item_id": ["c"], "title": ["v"]}), table, rows_per_group=3))
    (row,) = built.quarantined.to_pylist()
    assert (row["source_row"], row["title"], row["reason"]) == (3, "z", "empty_item_id")
    assert row["source_file"].endswith("part-00001.parquet")
    names = built.quarantined.column_names
    assert (names[0], names[-2:]) == ("source_row", ["reason", "source_file"])


def test_a_bad_share_above_the_setting_fails_and_names_a_row(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a", None, "b", "c"]}))
    message = (
        r"25\.00% of rows are bad \(empty_item_id 1\), more than items\.max_bad_share 20\.00%; see row 1 of .*0\.pa"
    )
    with pytest.raises(DataContractError, match=message):
        build(url, ItemSettings(max_bad_share=0.2))
    assert build(url, ItemSettings(max_bad_share=0.25)).facts["num_quarantined"] == 1


def test_prices_null_nan_negative_and_infinite(tmp_path: Path, write_log: Callable) -> None:
    ids = pa.array(["null", "nan", "negative", "infinite", "huge", "free", "good"], pa.large_string())
    prices = [None, math.nan, -0.01, math.inf, 1e300, 0.0, 9.99]
    ids = pa.array([f"i-{value}" for value in ids.to_pylist()], pa.large_string())
    built = build(write_log(tmp_path, pa.table({"item_id": ids, "price": prices})), ids=ids)
    assert column(built, "price") == [None] * 5 + [0.0, pytest.approx(9.99)]
    assert column(built, "in_table") == [True, True, False, False, False, True, True]
    assert column(built, "price_bucket")[:5] == [0] * 5
    assert built.facts["reasons"] == {"infinite_price": 2, "negative_price": 1}


def test_a_bad_row_does_not_replace_a_good_one(tmp_path: Path, write_log: Callable) -> None:
    built = build(write_log(tmp_path, pa.table({"item_id": ["a", "a"], "price": [1.0, -1.0]})))
    assert column(built, "price") == [1.0, None, None]
    assert built.facts["num_duplicates"] == 0


def test_price_buckets_hold_equal_shares_and_edges_are_handed_on(tmp_path: Path, write_log: Callable) -> None:
    ids = pa.array(range(8))
    url = write_log(tmp_path / "first", pa.table({"item_id": ids, "price": pa.array(range(8))}))
    options = ItemSettings(num_price_buckets=4)
    built = build(url, options, ids)
    assert column(built, "price_bucket") == [1, 1, 2, 2, 3, 3, 4, 4]
    edges = json.loads(json.dumps(built.facts))["price_edges"]
    later = write_log(tmp_path / "later", pa.table({"item_id": ids, "price": pa.array([1000.0] * 7 + [0.5])}))
    again = build(later, options, ids, edges)
    assert column(again, "price_bucket") == [4] * 7 + [1]
    assert again.facts["price_edges"] == edges


def test_edges_of_another_number_of_buckets_are_refused(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a"], "price": [1.0]}))
    for edges, num_buckets in (([1.0, 2.0], 2), ([2.0, 1.0], 8), ([1.0, 1.0], 8)):
        with pytest.raises(SettingsError, match=rf"price edges .* do not suit items\.num_price_buckets {num_buckets}"):
            build(url, ItemSettings(num_price_buckets=num_buckets), edges=edges)


def test_one_price_makes_one_bucket() -> None:
    prices = np.array([5, 5, np.nan, 5], np.float32)
    edges = price_edges(prices, 16)
    assert edges == []
    assert price_buckets(prices, edges).tolist() == [1, 1, 0, 1]


@given(st.lists(st.none() | st.floats(0, 1e6, width=32), max_size=30), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_price_buckets_rise_with_the_price(prices: list[float | None], num_buckets: int) -> None:
    values = np.array([np.nan if price is None else price for price in prices], np.float32)
    edges = price_edges(values, num_buckets)
    buckets = price_buckets(values, edges)
    assert len(edges) < num_buckets
    assert [bucket == 0 for bucket in buckets] == [price is None for price in prices]
    known = sorted((value, bucket) for value, bucket in zip(values, buckets, strict=True) if bucket)
    assert [bucket for _, bucket in known] == sorted(bucket for _, bucket in known)
    assert {bucket for _, bucket in known} <= set(range(1, num_buckets + 1))


@pytest.mark.parametrize(
    "values",
    [
        ["a > b>c ", " > a > > b", "", None, " > "],
        pa.array([["a ", "b", "c"], ["", "a", None, "b"], [], None, [" "]]),
        pa.array(["a > b>c ", " > a > > b", "", None, " > "]).dictionary_encode(),
        pa.array([["a ", "b", "c"], ["", "a", None, "b"], [], None, [" "]], pa.large_list(pa.large_string())),
    ],
    ids=["path", "list", "dictionary", "large_list"],
)
def test_categories_as_path_and_as_list(tmp_path: Path, write_log: Callable, values: Any) -> None:
    ids = pa.array(range(5))
    built = build(write_log(tmp_path, pa.table({"item_id": ids, "category": values})), ids=ids)
    assert column(built, "category") == [["a", "b", "c"], ["a", "b"], None, None, None]


def test_path_in_one_file_and_list_in_another_with_an_own_separator(tmp_path: Path, write_log: Callable) -> None:
    first = pa.table({"item_id": ["a"], "category": ["x/y > z"]})
    second = pa.table({"item_id": ["b"], "category": [["x/y", "z"]]})
    built = build(write_log(tmp_path, first, second), ItemSettings(category_separator="/"))
    assert column(built, "category") == [["x", "y > z"], ["x/y", "z"], None]


def test_declared_features_and_mapped_names(tmp_path: Path, write_log: Callable) -> None:
    items = pa.table(
        {
            "sku": ["b", "a"],
            "colour": pa.array(["red", None]).dictionary_encode(),
            "size": [38, None],
            "is_new": [True, False],
            "weight": [Decimal("1.50"), Decimal("2.00")],
            "stars": [4.5, math.nan],
            "Long text": ["b " * 40, ""],
            "unused": [1, 2],
        }
    )
    options = ItemSettings(
        columns={"item_id": "sku", "description": "Long text"},
        features={
            "colour": "categorical",
            "size": "categorical",
            "is_new": "categorical",
            "weight": "numeric",
            "stars": "numeric",
            "description": "text",
        },
    )
    built = build(write_log(tmp_path, items), options)
    assert built.table.select(list(options.features)).to_pydict() == {
        "colour": [None, "red", None],
        "size": [None, "38", None],
        "is_new": ["false", "true", None],
        "weight": [2.0, 1.5, None],
        "stars": [None, 4.5, None],
        "description": ["", "b " * 40, None],
    }


@pytest.mark.parametrize("data_type", [pa.list_(pa.float64()), pa.large_list(pa.int8()), pa.list_(pa.float32(), 2)])
def test_vectors_of_any_list_type(tmp_path: Path, write_log: Callable, data_type: pa.DataType) -> None:
    vectors = pa.array([[1, 2], None, [3, 4]], data_type)
    options = ItemSettings(features={"image": "vector"})
    built = build(write_log(tmp_path, pa.table({"item_id": ["c", "b", "a"], "image": vectors})), options)
    assert column(built, "image") == [[3.0, 4.0], None, [1.0, 2.0]]
    assert built.facts["vector_sizes"] == {"image": 2}
    url = str(tmp_path / "items.parquet")
    storage.write_parquet(url, built.table, plain=["image"])
    assert storage.read_parquet(url).equals(built.table)


@pytest.mark.parametrize("broken", [[1.0, None], [math.nan, 1.0], [1.0, math.inf], [1e300, 1.0]])
def test_a_vector_with_a_number_missing_or_not_finite_is_quarantined(
    tmp_path: Path, write_log: Callable, broken: list[float | None]
) -> None:
    options = ItemSettings(features={"image": "vector"}, max_bad_share=1)
    table = pa.table({"item_id": ["a", "b", "c"], "image": [[0.0, 1.0], None, broken]})
    built = build(write_log(tmp_path, table), options)
    assert column(built, "in_table") == [True, True, False]
    assert built.facts["reasons"] == {"not_finite_image": 1}


def test_vectors_of_unequal_lengths_name_the_file_and_the_rows(tmp_path: Path, write_log: Callable) -> None:
    options = ItemSettings(features={"image": "vector"})
    table = pa.table({"item_id": list("abcd"), "image": [None, [1.0], [1.0], []]})
    message = (
        r"part-00000\.parquet, row group 0: vectors of image must all have one length, but row 1 has 1 .*row 3 has 0"
    )
    with pytest.raises(DataContractError, match=message):
        build(write_log(tmp_path / "one", table), options)
    good = pa.table({"item_id": ["a"], "image": [[1.0, 2.0, 3.0]]})
    message = r"part-00001\.parquet: vectors of image have 1 numbers, but 3 in .*part-00000\.parquet"
    with pytest.raises(DataContractError, match=message):
        build(write_log(tmp_path / "two", good, table.slice(0, 3)), options)


@pytest.mark.parametrize("tables", [0, 1])
def test_an_empty_table_knows_no_item(tmp_path: Path, write_log: Callable, tables: int) -> None:
    empty = pa.table({"item_id": pa.array([], pa.float64()), "image": pa.nulls(0)})
    full = pa.table({"item_id": ["a"], "image": [[1.0]]})
    options = ItemSettings(features={"image": "vector"})
    built = build(write_log(tmp_path, empty, *[full] * tables), options)
    assert column(built, "in_table") == [bool(tables), False, False]
    assert column(built, "image") == [[1.0] if tables else None, None, None]
    assert built.facts["num_rows"] == tables
    assert build(str(tmp_path), options, pa.array([], pa.large_string())).table.num_rows == 0


@given(data=st.data(), kind=st.sampled_from(["string", "int"]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_dictionary(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str) -> None:
    names: list[Any] = ["a", "b", "é", "e\u0301", "", "nan"] if kind == "string" else [0, 1, -5, 2**40]
    id_type = pa.large_string() if kind == "string" else pa.int64()
    row = st.tuples(st.sampled_from([*names, None]), st.sampled_from([None, 0.0, 2.5, -1.0]), st.text(max_size=3))
    files = data.draw(st.lists(st.lists(row, max_size=6), min_size=1, max_size=3))
    vocabulary = data.draw(st.lists(st.sampled_from([name for name in names if name not in ("", "nan")]), unique=True))
    folder = tmp_path_factory.mktemp("items")
    for number, rows in enumerate(files):
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        table = pa.table(
            {"item_id": pa.array(columns[0], id_type), "price": pa.array(columns[1], pa.float64()), "title": columns[2]}
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    built = build(str(folder), ids=pa.array(vocabulary, id_type))
    every = [row for rows in files for row in rows]
    good = [row for row in every if row[0] not in (None, "", "nan") and row[1] != -1.0]
    known = {item: (price, title) for item, price, title in good}
    assert column(built, "price") == [known.get(item, (None, None))[0] for item in vocabulary]
    assert column(built, "title") == [known.get(item, (None, None))[1] for item in vocabulary]
    facts, matched = built.facts, sum(item in known for item in vocabulary)
    unsold = sum(row[0] not in vocabulary for row in good)
    assert (facts["num_rows"], facts["num_quarantined"]) == (len(every), len(every) - len(good))
    assert (facts["num_matched"], facts["num_without_row"]) == (matched, len(vocabulary) - matched)
    assert (facts["num_without_events"], facts["num_duplicates"]) == (unsold, len(good) - unsold - matched)
    assert built.quarantined.num_rows == facts["num_quarantined"]
