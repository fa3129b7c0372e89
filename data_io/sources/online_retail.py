"""The UCI Online Retail log: order lines of a British web shop, December 2010 to December 2011.

Read from Parquet or CSV with the columns of the original. Lines without a customer, a quarter of the log, are passed
on with a null user for the build to quarantine and count. Times are the shop's clock, read as UTC.

Source: Chen, Online Retail, UCI Machine Learning Repository, doi:10.24432/C5BW33.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import (
    ACTION,
    EVENT_TIME,
    ITEM_ID,
    PRICE,
    QUANTITY,
    SESSION_ID,
    USER_ID,
    DataContractError,
)
from data_io.sources import file_format, find_file, read_csv, read_parquet, to_events, unknown_format

FILES: Final = (
    "online_retail.parquet",
    "online_retail.csv",
    "OnlineRetail.csv",
    "Online Retail.csv",
    "data.csv",
    "Online Retail.xlsx",
)
"""What a folder is searched for; the first that is there is read."""
PURCHASE_ACTION: Final = "purchase"
RETURN_ACTION: Final = "return"

_COLUMNS: Final = {
    "InvoiceNo": pa.string(),
    "StockCode": pa.string(),
    "Quantity": pa.int64(),
    "InvoiceDate": pa.string(),
    "UnitPrice": pa.float64(),
    "CustomerID": pa.float64(),
}
"""CustomerID as a float because pandas writes 17850.0 once a column holds nulls; exact below 2^53."""
_TIME_FORMATS: Final = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M")
"""As pandas writes it, and as the American copies do; a day before the month is refused."""


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of action `purchase`, or `return` where the quantity is negative or the invoice begins with C.

    The session is the invoice. Quantities are positive. Item ids are upper case: the log writes 85123a and 85123A.

    Args:
        path: The Parquet or CSV file, or a folder with one of `FILES`.

    Raises:
        DataContractError: no such file, a missing column, or a date in an unknown format.
    """
    file = find_file(path, FILES)
    match file_format(file):
        case ".parquet":
            return _to_tables(read_parquet(file, tuple(_COLUMNS)), file)
        case ".csv":
            return _to_tables(read_csv(file, _COLUMNS), file)
        case ".xlsx" | ".xls":
            raise DataContractError(f"{file}: Excel files are not read; save the sheet as CSV or Parquet")
        case _:
            raise unknown_format(file, "Parquet or CSV")


def _to_tables(frames: Iterator[pl.DataFrame], file: Path) -> Iterator[pa.Table]:
    returned = (pl.col("Quantity") < 0) | pl.col("InvoiceNo").str.starts_with("C")
    for frame in frames:
        timed = _parse_times(frame.with_columns(pl.col("InvoiceNo", "StockCode").cast(pl.String)), file)
        events = timed.select(
            pl.col("CustomerID").cast(pl.Int64).alias(USER_ID),
            pl.col("StockCode").str.to_uppercase().alias(ITEM_ID),
            pl.when(returned).then(pl.lit(RETURN_ACTION)).otherwise(pl.lit(PURCHASE_ACTION)).alias(ACTION),
            pl.col("InvoiceDate").alias(EVENT_TIME),
            pl.col("InvoiceNo").alias(SESSION_ID),
            pl.col("UnitPrice").alias(PRICE),
            pl.col("Quantity").abs().alias(QUANTITY),
        )
        yield to_events(events)


def _parse_times(frame: pl.DataFrame, file: Path) -> pl.DataFrame:
    if frame["InvoiceDate"].dtype != pl.String:
        return frame
    attempts = [pl.col("InvoiceDate").str.to_datetime(form, time_unit="us", strict=False) for form in _TIME_FORMATS]
    parsed = frame.with_columns(pl.coalesce(attempts).alias("parsed"))
    wrong = parsed.filter(pl.col("parsed").is_null() & (pl.col("InvoiceDate") != ""))["InvoiceDate"]
    if len(wrong):
        formats = ", ".join(_TIME_FORMATS)
        raise DataContractError(f"{file}: InvoiceDate {wrong[0]!r} is in none of the formats {formats}; rewrite it")
    return parsed.with_columns(pl.col("parsed").alias("InvoiceDate"))
