"""Item tables that published data sets bring along."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.config import SourceSettings
from data_io.schema import DataContractError
from data_io.sources import read_source_items, read_source_users
from ray_jobs import convert
from ray_jobs.config import Settings

HOUSEHOLD = ["age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count"]

ATTRIBUTES = [
    ["Lee", None, "Hunting", "Optics", None, "Fan Shop"],
    [None, None, "Cycling"],
    ["Lee", None],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Sports.txt").write_text("1 10 11\n2 12\n")
    items = {"item_id": pa.array([10, 11, 12], pa.uint32()), "attr_names": ATTRIBUTES}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    return tmp_path


@pytest.mark.parametrize("place", ["", "Sports.txt"])
def test_amazon_attributes_are_a_brand_and_a_category(folder: Path, place: str) -> None:
    items = read_source_items(SourceSettings(name="amazon_s3rec", path=str(folder / place)))
    assert items is not None
    assert items.to_pydict() == {
        "item_id": [10, 11, 12],
        "brand": ["Lee", None, "Lee"],
        "category": [["Hunting", "Optics"], ["Cycling"], []],
    }


def test_a_folder_without_items_has_none(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    assert read_source_items(SourceSettings(name="amazon_s3rec", path=str(folder))) is None
    assert read_source_items(SourceSettings(name="synthetic")) is None


def test_attributes_of_another_type_are_refused(folder: Path) -> None:
    pq.write_table(pa.table({"item_id": [1], "attr_names": ["Lee"]}), folder / "items.parquet")
    with pytest.raises(DataContractError, match=r"items\.parquet: attr_names has type String, expected lists of text"):
        read_source_items(SourceSettings(name="amazon_s3rec", path=str(folder)))


def test_convert_writes_the_items_beside_the_events(folder: Path, tmp_path: Path) -> None:
    source = {"name": "amazon_s3rec", "path": str(folder)}
    convert.run(Settings.model_validate({"run_dir": str(tmp_path / "run"), "source": source}))
    assert pq.read_table(tmp_path / "run/items").column("brand").to_pylist() == ["Lee", None, "Lee"]


def test_complete_journey_products_are_a_category_path_and_a_kind_of_brand(tmp_path: Path) -> None:
    products = {
        "product_id": [1, 2, 3],
        "department": ["GROCERY", "MISC", None],
        "product_category": ["ICE", None, "LOST"],
        "product_type": ["CRUSHED", "LOST", None],
        "brand": ["National", "Private", None],
    }
    source = SourceSettings(name="complete_journey", path=str(tmp_path))
    assert read_source_items(source) is None
    pq.write_table(pa.table(products), tmp_path / "products.parquet")
    items = read_source_items(source)
    assert items is not None
    assert items.to_pydict() == {
        "item_id": [1, 2, 3],
        "category": [["GROCERY", "ICE", "CRUSHED"], ["MISC"], []],
        "brand": ["National", "Private", None],
    }


def test_complete_journey_households_have_attributes(tmp_path: Path) -> None:
    source = SourceSettings(name="complete_journey", path=str(tmp_path / "transactions.parquet"))
    assert read_source_users(source) is None
    assert read_source_users(SourceSettings(name="synthetic")) is None
    pq.write_table(
        pa.table({"household_id": [7]} | {name: ["a"] for name in HOUSEHOLD}), tmp_path / "demographics.parquet"
    )
    users = read_source_users(source)
    assert users is not None
    assert users.to_pylist() == [{"user_id": 7} | dict.fromkeys(HOUSEHOLD, "a")]
