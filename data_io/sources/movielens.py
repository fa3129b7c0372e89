"""MovieLens: ratings of films, every size from 100K to 32M, and the order-only copies papers use.

`ratings.dat` (1M, 10M), `ratings.csv` (20M and later) and `u.data` (100K) hold unix seconds. The SASRec text file
("user item" per line, in order) and a Parquet file of `user_id, movie_id, pos` hold the order alone: their event time
is a stand-in, see `time_from_order`, so use the leave_one_out split.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from data_io.schema import ACTION, ITEM_ID, RATING, USER_ID
from data_io.sources import (
    file_format,
    find_file,
    read_csv,
    read_parquet,
    slice_table,
    time_from_order,
    time_from_unix,
    to_events,
    unknown_format,
)

FILES: Final = ("ratings.dat", "ratings.csv", "u.data", "sasrec_ml-1m.txt.gz", "interactions_time_ordered.parquet")
"""What a folder is searched for; the first that is there is read, so real times go before mere order."""
RATE_ACTION: Final = "rate"

_INTEGERS: Final = {"user": pa.int64(), "movie": pa.int64()}
_RATINGS: Final = {**_INTEGERS, "rating": pa.float32(), "seconds": pa.int64()}
_CSV_NAMES: Final = {"userId": "user", "movieId": "movie", "rating": "rating", "timestamp": "seconds"}


def read_events(path: Path) -> Iterator[pa.Table]:
    """Events of action `rate`, with the rating where the file has one.

    Args:
        path: One of the files, or a folder with at least one of `FILES`.

    Raises:
        DataContractError: no such file, or not one of MovieLens.
    """
    file = find_file(path, FILES)
    match file_format(file):
        case ".dat":
            return _rated(_read_double_colons(file))
        case ".csv":
            return _rated(_read_header_csv(file))
        case ".data":
            return _rated(read_csv(file, _RATINGS, delimiter="\t", header=tuple(_RATINGS)))
        case ".txt":
            return _ordered_text(file)
        case ".parquet":
            return _ordered_parquet(file)
        case _:
            raise unknown_format(file, f"one of {', '.join(FILES)}")


def _read_double_colons(file: Path) -> Iterator[pl.DataFrame]:
    # The reader takes one character as delimiter: `a::b` is then a, an empty column, b.
    return read_csv(file, _RATINGS, delimiter=":", header=("user", "_1", "movie", "_2", "rating", "_3", "seconds"))


def _read_header_csv(file: Path) -> Iterator[pl.DataFrame]:
    types = {name: _RATINGS[ours] for name, ours in _CSV_NAMES.items()}
    return (frame.rename(_CSV_NAMES) for frame in read_csv(file, types))


def _rated(frames: Iterator[pl.DataFrame]) -> Iterator[pa.Table]:
    for frame in frames:
        yield to_events(frame.select(*_keys("movie"), time_from_unix("seconds", "s"), pl.col("rating").alias(RATING)))


def _ordered_text(file: Path) -> Iterator[pa.Table]:
    # Whole, because a user's lines may span pieces: two integers a line, 16 MB per million events.
    frame = pl.concat(read_csv(file, _INTEGERS, delimiter=" ", header=tuple(_INTEGERS)))
    position = pl.int_range(pl.len()).over("user")
    yield from slice_table(to_events(frame.select(*_keys("movie"), time_from_order(position))))


def _ordered_parquet(file: Path) -> Iterator[pa.Table]:
    for frame in read_parquet(file, ("user_id", "movie_id", "pos")):
        keys = _keys("movie_id", user="user_id")
        yield to_events(frame.select(*keys, time_from_order(pl.col("pos"))))


def _keys(movie: str, *, user: str = "user") -> tuple[pl.Expr, ...]:
    return pl.col(user).alias(USER_ID), pl.col(movie).alias(ITEM_ID), pl.lit(RATE_ACTION).alias(ACTION)
