"""Retailrocket: views, additions to the cart and transactions of a web shop, 2015.

The original is `events.csv` with milliseconds; multi-behaviour papers use a Parquet copy with seconds. Both are read
in pieces and in the file's order, which for the original is not the order of time: the build sorts. Beside the copy may
stand the purchases its authors held out, see `held_out`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import ACTION, ITEM_ID, USER_ID
from data_io.sources import (
    file_format,
    find_file,
    read_csv,
    read_parquet,
    rename_actions,
    time_from_unix,
    to_events,
    unknown_format,
)
from data_io.sources.held_out import with_held_out

FILES: Final = ("events.csv", "events.parquet")
"""What a folder is searched for; the first that is there is read."""
ACTIONS: Final[Mapping[str, str]] = {"view": "view", "addtocart": "cart", "transaction": "purchase"}
"""The source's word for an action, and ours."""

_CSV_COLUMNS: Final = {
    "timestamp": pa.int64(),
    "visitorid": pa.int64(),
    "event": pa.string(),
    "itemid": pa.int64(),
}


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of actions `view`, `cart` and `purchase`.

    Args:
        path: `events.csv`, a Parquet file of `user_id, item_id, timestamp, event_type`, or a folder with one of
            `FILES`.

    Raises:
        DataContractError: no such file, a missing column, or an unknown action.
    """
    file = find_file(path, FILES)
    match file_format(file):
        case ".csv":
            return _read_original(file)
        case ".parquet":
            return with_held_out(_read_copy(file), file)
        case _:
            raise unknown_format(file, f"one of {', '.join(FILES)}")


def _read_original(file: Path) -> Iterator[pa.Table]:
    keys = (pl.col("visitorid").alias(USER_ID), pl.col("itemid").alias(ITEM_ID), pl.col("event").alias(ACTION))
    for frame in read_csv(file, _CSV_COLUMNS):
        yield to_events(rename_actions(frame.select(*keys, time_from_unix("timestamp", "ms")), ACTIONS, file))


def _read_copy(file: Path) -> Iterator[pa.Table]:
    for frame in read_parquet(file, ("user_id", "item_id", "event_type", "timestamp")):
        renamed = frame.rename({"user_id": USER_ID, "item_id": ITEM_ID, "event_type": ACTION})
        timed = renamed.select(USER_ID, ITEM_ID, ACTION, time_from_unix("timestamp", "s"))
        yield to_events(rename_actions(timed, ACTIONS, file))
