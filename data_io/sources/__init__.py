"""Well-known data sets, turned into the event contract.

One module per data set, each with `read_events(path)`; what they share (finding the file, reading it in pieces, naming
times and actions) lives here. Invariant: one row of the source is one event out, in the source's order unless the
module says otherwise. What a published file may hold (no customer, an absurd time) is passed on, for the build to
quarantine and count; what it never holds (an unknown action, a torn line) is an error, because the file is damaged.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data_io.config import SettingsError, SourceName, SourceSettings
from data_io.schema import ACTION, EVENT_TIME, DataContractError, canonical_type, kind_of
from data_io.storage import absolute, is_remote

MAX_ROWS: Final = 1_000_000
"""Most rows of a table that leaves a source."""
CSV_BLOCK_BYTES: Final = 1 << 24
"""Text parsed at a time: about half a million rows of the data sets here."""
ORDER_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Time of a user's first event where a source knows only the order."""


def read_source(settings: SourceSettings) -> Iterator[pa.Table]:
    """Tables of events that keep the contract, from the data set the settings name.

    Raises:
        SettingsError: no data set is named, a needed path is missing or a given one is of no use.
        DataContractError: the files are absent or are not those of the data set.
    """
    match settings.name:
        case None:
            names = ", ".join(get_args(SourceName))
            raise SettingsError(
                f"source.name is not set: name one of {names}; a log that already keeps the event contract needs no "
                "conversion, give it as events.path"
            )
        case "movielens":
            from data_io.sources import movielens

            return movielens.read_events(_needed_path(settings))
        case "amazon_s3rec":
            from data_io.sources import amazon_s3rec

            return amazon_s3rec.read_events(_needed_path(settings))
        case "amazon_search":
            from data_io.sources import amazon_search

            return amazon_search.read_events(_needed_path(settings), settings.search_share)
        case "online_retail":
            from data_io.sources import online_retail

            return online_retail.read_events(_needed_path(settings))
        case "retailrocket":
            from data_io.sources import retailrocket

            return retailrocket.read_events(_needed_path(settings))
        case "taobao":
            from data_io.sources import taobao

            return taobao.read_events(_needed_path(settings))
        case "cdnow":
            from data_io.sources import cdnow

            return cdnow.read_events(_needed_path(settings))
        case "complete_journey":
            from data_io.sources import complete_journey

            return complete_journey.read_events(None if settings.path is None else _needed_path(settings))
        case "synthetic":
            from data_io.synthetic import generate_events

            if settings.path is not None:
                raise SettingsError(
                    f"source.path is {settings.path}, but source.name: synthetic reads no files; drop it"
                )
            return slice_table(generate_events(settings.synthetic))


def read_source_items(settings: SourceSettings) -> pa.Table | None:
    """The item table of the data set the settings name, in the item contract; None where it has none.

    Raises:
        DataContractError: its file is not that of the data set.
    """
    match settings.name:
        case "amazon_s3rec":
            from data_io.sources import amazon_s3rec

            return amazon_s3rec.read_items(_needed_path(settings))
        case "amazon_search":
            from data_io.sources import amazon_search

            return amazon_search.read_items(_needed_path(settings))
        case "complete_journey":
            from data_io.sources import complete_journey

            return complete_journey.read_items(None if settings.path is None else _needed_path(settings))
        case _:
            return None


def read_source_users(settings: SourceSettings) -> pa.Table | None:
    """What the data set the settings name says of its users: user_id and attributes; None where it says nothing.

    Raises:
        DataContractError: its file is not that of the data set.
    """
    match settings.name:
        case "complete_journey":
            from data_io.sources import complete_journey

            return complete_journey.read_users(None if settings.path is None else _needed_path(settings))
        case _:
            return None


def _needed_path(settings: SourceSettings) -> Path:
    if settings.path is None:
        raise SettingsError(f"source.path is not set: {settings.name} needs the folder or file of the data set")
    if is_remote(settings.path):
        raise SettingsError(f"source.path is {settings.path}: data sets are read from a local disk; download it first")
    return Path(absolute(settings.path))


def find_file(path: Path, names: tuple[str, ...]) -> Path:
    """The path itself where it is a file, else the first of `names` that the folder holds.

    Raises:
        DataContractError: nothing is there, or the folder holds none of the names.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise DataContractError(f"{path}: no such file or folder; give the data set as source.path")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise DataContractError(f"{path}: this folder holds none of {', '.join(names)}; give the file as source.path")


def file_format(path: Path) -> str:
    """The suffix that tells the format, in lower case and without compression: `.csv` for `events.CSV.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def unknown_format(path: Path, expected: str) -> DataContractError:
    """The error for a file whose name does not tell a known format."""
    return DataContractError(f"{path}: cannot tell the format from the name; expected {expected}")


def read_csv(
    path: Path, columns: Mapping[str, pa.DataType], *, delimiter: str = ",", header: tuple[str, ...] | None = None
) -> Iterator[pl.DataFrame]:
    """Some columns of a delimited text file, plain or .gz, in pieces of bounded size and in order.

    Args:
        path: The file.
        columns: Names of the columns to read, with their types.
        delimiter: The one character between columns.
        header: Names of all columns of a file without a header line; None: the first line names them.

    Raises:
        DataContractError: a column is missing, a line is torn or a value is not of its type.
    """
    try:
        reader = pa_csv.open_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=header, block_size=CSV_BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(column_types=dict(columns), include_columns=list(columns)),
        )
        for batch in reader:
            yield pl.DataFrame(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataContractError(
            f"{path}: not the published text file ({error}); expected columns {', '.join(columns)}; download it again"
        ) from error


def read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Some columns of a Parquet file, in pieces of bounded size and in order.

    Raises:
        DataContractError: a column is missing, there are no rows, or the file is not Parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                found = ", ".join(file.schema_arrow.names)
                raise DataContractError(f"{path}: lacks the column(s) {', '.join(missing)}; it holds {found}")
            if file.metadata.num_rows == 0:
                raise DataContractError(f"{path}: holds no rows; download it again")
            for batch in file.iter_batches(batch_size=MAX_ROWS, columns=list(columns)):
                yield pl.DataFrame(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataContractError(f"{path}: cannot be read as Parquet ({error}); download it again") from error


def time_from_unix(column: str, unit: Literal["s", "ms"]) -> pl.Expr:
    """The event time, from a count of units since 1970."""
    return pl.from_epoch(column, time_unit=unit).dt.replace_time_zone("UTC").alias(EVENT_TIME)


def time_from_order(position: pl.Expr) -> pl.Expr:
    """A stand-in event time for a source that knows only the order: one second per position, from `ORDER_EPOCH`.

    It says nothing of when things happened, so such data wants the leave_one_out split, not the time split.
    """
    return (pl.lit(ORDER_EPOCH) + pl.duration(seconds=position)).alias(EVENT_TIME)


def rename_actions(frame: pl.DataFrame, names: Mapping[str, str], path: Path) -> pl.DataFrame:
    """The frame with the source's own actions under our names.

    Raises:
        DataContractError: an action is not among `names`.
    """
    actions = pl.col(ACTION).cast(pl.String)
    unknown = frame.filter(~actions.is_in(list(names)).fill_null(False))[ACTION]
    if len(unknown):
        raise DataContractError(f"{path}: unknown action {unknown[0]!r}; this data set has {', '.join(names)}")
    return frame.with_columns(actions.replace_strict(names).alias(ACTION))


def to_events(frame: pl.DataFrame) -> pa.Table:
    """The frame as Arrow, every column with the type the contract gives it."""
    table = frame.to_arrow()
    fields = [pa.field(field.name, canonical_type(field.name, kind_of(field.type))) for field in table.schema]
    return table.cast(pa.schema(fields))


def slice_table(table: pa.Table) -> Iterator[pa.Table]:
    """The table in pieces of at most `MAX_ROWS` rows, in order."""
    for start in range(0, table.num_rows, MAX_ROWS):
        yield table.slice(start, MAX_ROWS)
