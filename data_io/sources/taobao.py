"""Taobao UserBehavior: 100 million views, purchases, cart additions and favourites of a week in 2017.

The original is `UserBehavior.csv` without a header (user, item, category, behaviour, unix seconds); multi-behaviour
papers use a Parquet copy. Both are read in pieces, so memory does not grow with the file. The original holds a
few absurd times, decades off: they are passed on for the build to quarantine. Beside the copy may stand the purchases
its authors held out, see `held_out`.
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

FILES: Final = ("UserBehavior.csv", "events.parquet")
"""What a folder is searched for; the first that is there is read."""
ACTIONS: Final[Mapping[str, str]] = {"pv": "view", "buy": "purchase", "cart": "cart", "fav": "favourite"}
"""The source's word for an action, and ours."""

_COLUMNS: Final = {"user_id": pa.int64(), "item_id": pa.int64(), "event_type": pa.string(), "timestamp": pa.int64()}
_CSV_HEADER: Final = ("user_id", "item_id", "category", "event_type", "timestamp")


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of actions `view`, `purchase`, `cart` and `favourite`.

    Args:
        path: `UserBehavior.csv`, a Parquet file of `user_id, item_id, timestamp, event_type`, or a folder with one of
            `FILES`.

    Raises:
        DataContractError: no such file, a missing column, or an unknown action.
    """
    file = find_file(path, FILES)
    match file_format(file):
        case ".csv":
            return _to_tables(read_csv(file, _COLUMNS, header=_CSV_HEADER), file)
        case ".parquet":
            return with_held_out(_to_tables(read_parquet(file, tuple(_COLUMNS)), file), file)
        case _:
            raise unknown_format(file, f"one of {', '.join(FILES)}")


def _to_tables(frames: Iterator[pl.DataFrame], file: Path) -> Iterator[pa.Table]:
    keys = (pl.col("user_id").alias(USER_ID), pl.col("item_id").alias(ITEM_ID), pl.col("event_type").alias(ACTION))
    for frame in frames:
        yield to_events(rename_actions(frame.select(*keys, time_from_unix("timestamp", "s")), ACTIONS, file))
