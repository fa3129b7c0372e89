"""Side tables: their footers held against the contract, and files that change or break after the scan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data_io.config import ItemSettings, SettingsError
from data_io.schema import DataContractError
from data_io.side.items import build_item_table, scan_items

LENIENT = ItemSettings(max_bad_share=1.0)
ABC = pa.array(["a", "b", "c"], pa.large_string())


@pytest.mark.parametrize(
    ("name", "values", "found", "expected"),
    [
        ("item_id", [1], "int64", "string, as in the log"),
        ("item_id", [1.0], "double", "string, as in the log"),
        ("item_id", pa.nulls(1), "null", "string, as in the log"),
        ("title", [1], "int64", "string"),
        ("category", [[1]], r"list<.*int64>", "string or list of string"),
        ("price", ["9"], "string", "float or int"),
        ("image", [1.0], "double", "list of float or list of int"),
        ("image", [["x"]], r"list<.*string>", "list of float or list of int"),
        ("colour", [1.5], "double", "string or int or bool"),
    ],
)
def test_a_wrong_type_names_file_column_found_and_expected(
    tmp_path: Path, write_log: Callable, name: str, values: Any, found: str, expected: str
) -> None:
    options = ItemSettings(features={"image": "vector", "colour": "categorical"})
    good = {"item_id": ["a"], "image": [[1.0]], "colour": ["red"]}
    url = write_log(tmp_path, pa.table(good), pa.table(good | {name: values}))
    message = rf"part-00001\.parquet: column {name} \({name}\) has type {found}, expected {expected}; cast it in the t"
    if name in ("title", "category", "price"):  # optional ones must be in all files alike
        url = write_log(tmp_path, pa.table(good | {name: pa.nulls(1)}), pa.table(good | {name: values}))
    with pytest.raises(DataContractError, match=message):
        scan_items(url, options, "string")


def test_a_missing_column_names_file_and_remedy(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"sku": ["a"]}))
    message = (
        r"part-00000\.parquet: no column item_id for item_id; it has sku; set items\.columns .*--items\.columns item"
    )
    with pytest.raises(DataContractError, match=message):
        scan_items(url, LENIENT, "string")
    for options in (
        ItemSettings(columns={"item_id": "sku"}, features={"colour": "categorical"}),
        ItemSettings(columns={"item_id": "sku", "brand": "colour"}),
    ):
        with pytest.raises(DataContractError, match="no column colour for"):
            scan_items(url, options, "string")


def test_files_must_agree_in_their_columns(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a"], "price": [1.0]}), pa.table({"item_id": ["a"]}))
    with pytest.raises(DataContractError, match=r"part-00001\.parquet: price is absent, but present in .*part-00000"):
        scan_items(url, LENIENT, "string")


def test_a_column_that_stands_twice_is_refused(tmp_path: Path, write_log: Callable) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["y"])], ["item_id", "brand", "brand"])
    with pytest.raises(DataContractError, match="column brand stands 2 times"):
        scan_items(write_log(tmp_path, table), LENIENT, "string")


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda good: good[:-20], lambda _: b"item_id,title\n" * 20])
def test_a_torn_file_is_named(tmp_path: Path, write_log: Callable, spoil: Callable[[bytes], bytes]) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a"]}))
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataContractError, match=r"part-00000\.parquet: not a readable Parquet file \(.+\); replace"):
        scan_items(url, LENIENT, "string")


def test_no_such_path_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"nowhere: no such file or folder; correct items\.path"):
        scan_items(str(tmp_path / "nowhere"), LENIENT, "string")


def test_a_file_replaced_or_broken_since_the_scan_is_named(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a", "b"]}))
    source = scan_items(url, LENIENT, "string")
    path = tmp_path / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 30 + content[34:])
    with pytest.raises(DataContractError, match=r"part-00000\.parquet, row group 0: cannot be read"):
        build_item_table(source, LENIENT, ABC)
    pq.write_table(pa.table({"item_id": ["a", "b", "c", "dd"]}), path)
    with pytest.raises(DataContractError, match=r"part-00000\.parquet: has .* bytes, but .* when it was scanned"):
        build_item_table(source, LENIENT, ABC)
    path.unlink()
    with pytest.raises(DataContractError, match=r"part-00000\.parquet, row group 0: cannot be read"):
        build_item_table(source, LENIENT, ABC)


@pytest.mark.parametrize("name", ["item_id", "price", "price_bucket", "in_table", "reason", "source_file"])
def test_a_feature_may_not_take_a_name_of_the_contract(tmp_path: Path, write_log: Callable, name: str) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a"]}))
    with pytest.raises(SettingsError, match=f"items.features declares {name}, a name of the contract"):
        scan_items(url, ItemSettings(features={name: "numeric"}), "string")


def test_settings_refuse_what_cannot_be(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, pa.table({"item_id": ["a"]}))
    with pytest.raises(SettingsError, match=r"items\.columns maps prize, which is neither .*item_id, title, category"):
        scan_items(url, ItemSettings(columns={"prize": "amount"}), "string")
    for wrong in ({"category_separator": ""}, {"num_price_buckets": 0}, {"features": {"x": "image"}}):
        with pytest.raises(ValidationError):
            ItemSettings.model_validate(wrong)


def test_text_that_is_no_utf8_is_quarantined_without_its_bytes(tmp_path: Path, write_log: Callable) -> None:
    def text(*values: bytes | None) -> pa.Array:
        return pa.array(values, pa.binary()).view(pa.string())

    levels = pa.ListArray.from_arrays([0, 1, 2, 3, 4, 4], text(b"x", b"y", b"\xc3", b"z"))
    items = pa.table(
        {"item_id": text(b"a", b"b\xff", b"c", b"d", None), "title": text(b"A", b"B", b"C", b"\xe9", b"E")}
    ).append_column("category", levels)
    built = build_item_table(scan_items(write_log(tmp_path, items), LENIENT, "string"), LENIENT, ABC)
    assert built.table.column("title").to_pylist() == ["A", None, None]
    bad = built.quarantined.select(["source_row", "item_id", "title", "category", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in bad] == [
        (1, None, "B", ["y"], "invalid_utf8_item_id"),
        (2, "c", "C", None, "invalid_utf8_category"),
        (3, "d", None, ["z"], "invalid_utf8_title"),
        (4, None, "E", None, "empty_item_id"),
    ]
