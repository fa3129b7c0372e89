"""CDNOW: purchases of the 23,570 customers who first bought CDs there in the first quarter of 1997, to June 1998.

A day, a number of CDs and an amount, but not which CDs: how many there were and about what each cost stands for the
item, such as `2 at 10`, two CDs of 10 to 15 dollars each. So a model learns how people buy, not what.

Source: Fader and Hardie 2001, "Forecasting repeat sales at CDNOW: a case study".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import ACTION, EVENT_TIME, ITEM_ID, PRICE, QUANTITY, USER_ID, DataContractError
from data_io.sources import file_format, find_file, read_parquet, to_events, unknown_format

FILES: Final = ("CDNOW_master.txt", "cdnow_master.parquet")
"""What a folder is searched for; the first that is there is read."""
_COLUMNS: Final = ("customer_id", "date", "quantity", "price")
_STEP, _MOST_PRICE, _MOST_CDS = 5, 30, 6
"""Dollars of a price band, where the last begins, and the number of CDs from which on it is no longer told."""


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of action `purchase`, with the number of CDs as quantity and the mean price of one.

    Args:
        path: The original `CDNOW_master.txt`, a Parquet file of `customer_id, date, quantity, price`, or a folder with
            one of `FILES`.

    Raises:
        DataContractError: no such file, a missing column, or a line that has not its four numbers.
    """
    file = find_file(path, FILES)
    match file_format(file):
        case ".txt":
            return _to_tables(iter([_read_original(file)]))
        case ".parquet":
            return _to_tables(read_parquet(file, _COLUMNS))
        case _:
            raise unknown_format(file, f"one of {', '.join(FILES)}")


def _read_original(file: Path) -> pl.DataFrame:
    """The columns of the original: numbers with spaces between them, the day as 19970101."""
    try:
        words = [line.split() for line in file.read_text(encoding="ascii").splitlines() if line.strip()]
        rows = [(int(user), day, int(number), float(amount)) for user, day, number, amount in words]
        frame = pl.DataFrame(rows, schema=dict.fromkeys(_COLUMNS, None), orient="row")
        return frame.with_columns(pl.col("date").str.to_date("%Y%m%d"))
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise DataContractError(
            f"{file}: not the published text file ({error}); expected customer, day as 19970101, number of CDs and "
            "amount in every line; download it again"
        ) from error


def _to_tables(frames: Iterator[pl.DataFrame]) -> Iterator[pa.Table]:
    number = pl.col("quantity").cast(pl.Int64)
    each = pl.col("price").cast(pl.Float64) / number.clip(lower_bound=1)
    band = (each // _STEP * _STEP).clip(upper_bound=_MOST_PRICE).cast(pl.Int64)
    item = pl.format("{} at {}", number.clip(upper_bound=_MOST_CDS), band)
    for frame in frames:
        yield to_events(
            frame.select(
                pl.col("customer_id").cast(pl.Int64).alias(USER_ID),
                item.alias(ITEM_ID),
                pl.lit("purchase").alias(ACTION),
                pl.col("date").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(EVENT_TIME),
                each.alias(PRICE),
                number.cast(pl.Float64).alias(QUANTITY),
            )
        )
