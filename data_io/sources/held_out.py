"""Purchases that the authors of a data set held out, one for each of some users, put back as the users' last events.

The file beside the events names no time. Such a purchase stands one second (the grain of these sets) after the user's
newest event, so that leave_one_out takes it as the test target; that time is made up, and a model of such a set should
not see `elapsed`, the time to the event it is asked for. Invariant: the held-out events come last, and are all there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import ACTION, EVENT_TIME, ITEM_ID, USER_ID, DataContractError
from data_io.sources import read_parquet, slice_table, to_events

HELD_OUT_NAME: Final = "test_buy.parquet"
"""The file with `user_id` and `test_buy_item`, beside the events."""
HELD_OUT_ACTION: Final = "purchase"


def with_held_out(tables: Iterator[pa.Table], file: Path) -> Iterator[pa.Table]:
    """The tables of events read from `file`, and after them the purchases held out, where their file stands beside it.

    Raises:
        DataContractError: that file is damaged, or names a user without events.
    """
    beside = file.with_name(HELD_OUT_NAME)
    if not beside.is_file():
        yield from tables
        return
    newest: list[pl.DataFrame] = []
    for table in tables:
        frame = pl.DataFrame(table.select([USER_ID, EVENT_TIME]))
        newest.append(frame.group_by(USER_ID).agg(pl.col(EVENT_TIME).max()))
        yield table
    times = pl.concat(newest).group_by(USER_ID).agg(pl.col(EVENT_TIME).max() + pl.duration(seconds=1))
    for frame in read_parquet(beside, ("user_id", "test_buy_item")):
        yield from slice_table(to_events(_timed(frame, times, beside)))


def _timed(frame: pl.DataFrame, times: pl.DataFrame, file: Path) -> pl.DataFrame:
    keys = (pl.col("user_id").cast(pl.Int64).alias(USER_ID), pl.col("test_buy_item").alias(ITEM_ID))
    purchases = frame.select(*keys, pl.lit(HELD_OUT_ACTION).alias(ACTION))
    timed = purchases.join(times, on=USER_ID, how="left", maintain_order="left")
    without = timed.filter(pl.col(EVENT_TIME).is_null())
    if len(without):
        raise DataContractError(f"{file}: user {without[USER_ID][0]} has no event in the data set; download it again")
    return timed
