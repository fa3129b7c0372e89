"""Item tables that published data sets bring along."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.config import SourceSettings
from data_io.schema import DataContractError
from data_io.sources import read_source_items
from ray_jobs import convert
from ray_jobs.config import Settings

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


def test_products_of_the_complete_journey_keep_the_levels_they_have(tmp_path: Path) -> None:
    products = {
        "product_id": [10, 11, 12],
        "brand": ["National", "Private", None],
        "department": ["GROCERY", "MISC", None],
        "product_category": ["TEA", None, "LOST"],
        "product_type": ["GREEN", "LOST", None],
    }
    pq.write_table(pa.table(products), tmp_path / "products.parquet")
    items = read_source_items(SourceSettings(name="complete_journey", path=str(tmp_path)))
    assert items is not None
    assert items.to_pydict() == {
        "item_id": [10, 11, 12],
        "brand": ["National", "Private", None],
        "category": [["GROCERY", "TEA", "GREEN"], ["MISC"], []],
    }
    (tmp_path / "products.parquet").unlink()
    assert read_source_items(SourceSettings(name="complete_journey", path=str(tmp_path))) is None
