"""Amazon reviews as the S3-Rec paper published them: one line a user, "user item item item ...", in order.

A review counts as a purchase. The file holds the order alone: the event time is a stand-in, see `time_from_order`, so
use the leave_one_out split. Where the folder also holds items.parquet, with what the paper calls attributes (a column
attr_names: the brand or null, then category paths, each after a null that stands for their common root), these become
an item table.

Source: Zhou et al., S3-Rec (CIKM 2020); files such as Sports_and_Outdoors.txt, Beauty.txt, Toys_and_Games.txt.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import ACTION, ITEM_ID, USER_ID, DataContractError
from data_io.side.items import BRAND, CATEGORY
from data_io.sources import read_parquet, slice_table, time_from_order, to_events

PURCHASE_ACTION: Final = "purchase"

_NEGATIVES_SUFFIX: Final = "_sample.txt"
"""Files of sampled negatives that the paper ships beside the sequences."""
_ITEMS_NAME: Final = "items.parquet"
_ATTRIBUTES: Final = "attr_names"


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of action `purchase`.

    Args:
        path: The text file, or a folder that holds exactly one.

    Raises:
        DataContractError: no such file, more than one to choose from, or a word that is not a number.
    """
    return _read(_find_text(path))


def read_items(path: Path) -> pa.Table | None:
    """The item table: item_id, brand and category, the levels of an item's first category path; None where there is no
    items.parquet.

    Args:
        path: As for `read_events`; beside a text file its own folder is looked into.

    Raises:
        DataContractError: the file is not such a table.
    """
    file = (path if path.is_dir() else path.parent) / _ITEMS_NAME
    if not file.is_file():
        return None
    items = pl.concat(read_parquet(file, (ITEM_ID, _ATTRIBUTES)))
    if items.schema[_ATTRIBUTES] != pl.List(pl.String):
        raise DataContractError(f"{file}: {_ATTRIBUTES} has type {items.schema[_ATTRIBUTES]}, expected lists of text")
    return items.select(
        pl.col(ITEM_ID).cast(pl.Int64),
        pl.col(_ATTRIBUTES).list.first().alias(BRAND),
        pl.col(_ATTRIBUTES).list.slice(2).map_elements(_first_path, pl.List(pl.String)).alias(CATEGORY),
    ).to_arrow()


def _first_path(levels: pl.Series) -> list[str]:
    """Levels up to where the next path begins."""
    return list(takewhile(lambda level: level is not None, levels))


def _find_text(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise DataContractError(f"{path}: no such file or folder; give the data set as source.path")
    found = sorted(file for file in path.glob("*.txt") if not file.name.endswith(_NEGATIVES_SUFFIX))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataContractError(f"{path}: expected one .txt file of sequences, found {names}; name it in source.path")
    return found[0]


def _read(file: Path) -> Iterator[pa.Table]:
    lines = pl.DataFrame({"line": file.read_text().splitlines()})
    words = lines.select(pl.col("line").str.strip_chars().str.split(" "))
    try:
        events = words.select(
            pl.col("line").list.first().cast(pl.Int64).alias(USER_ID),
            pl.col("line").list.slice(1).cast(pl.List(pl.Int64)).alias(ITEM_ID),
        )
    except pl.exceptions.InvalidOperationError as error:
        raise DataContractError(f"{file}: not lines of 'user item item ...' in integers ({error})") from error
    yield from slice_table(to_events(_one_row_per_item(events)))


def _one_row_per_item(users: pl.DataFrame) -> pl.DataFrame:
    positions = pl.int_ranges(pl.col(ITEM_ID).list.len()).alias("position")
    rows = users.with_columns(positions).filter(pl.col(ITEM_ID).list.len() > 0).explode(ITEM_ID, "position")
    action = pl.lit(PURCHASE_ACTION).alias(ACTION)
    return rows.select(USER_ID, ITEM_ID, action, time_from_order(pl.col("position")))
