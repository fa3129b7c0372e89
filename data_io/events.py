"""Events: reading a log against its contract, and parting good rows from bad.

The unit of reading is a fragment, one row group of one file, so that any worker can take any fragment and every row
keeps its position in the log. Invariant: rows read = rows kept + rows quarantined.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_io import storage
from data_io.config import EventSettings, SettingsError
from data_io.schema import (
    ACTION,
    CARRIED_TYPES,
    EVENT_COLUMNS,
    EVENT_TIME,
    ITEM_ID,
    REASON,
    SEARCH_ACTION,
    SOURCE_FILE,
    SOURCE_ROW,
    USER_ID,
    DataContractError,
    EventColumn,
    canonical_type,
    kind_of,
)

EMPTY_IDS = ("", "nan", "none", "null", "<na>")
"""Texts that stand for a missing id, compared in lower case and without surrounding blanks."""
_LONGEST_EMPTY_ID = max(len(text) for text in EMPTY_IDS)
_SCAN_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One row group of one file of the log."""

    file: str
    row_group: int
    first_row: int
    """Position of its first row in the file."""
    first_position: int
    """Position of its first row in the whole log, files taken in name order."""
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A log whose footers all keep the contract."""

    fragments: tuple[Fragment, ...]
    kinds: dict[str, str]
    """Contract columns the log has, each with its family of types."""
    inputs: tuple[tuple[str, int], ...]
    """URL and size of every file, for the fingerprint."""

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(fragment.num_rows for fragment in self.fragments)

    @property
    def carried(self) -> tuple[str, ...]:
        """Optional columns that travel into the store."""
        return tuple(name for name in CARRIED_TYPES if name in self.kinds)


def scan_log(url: str, settings: EventSettings) -> EventLog:
    """Check the footers of all files of a log against the contract, before any row is read.

    Raises:
        DataContractError: a file is empty, torn, lacks a column, has a column of a wrong type, or of another type
            than the files before it; the message names file, column, found and expected.
        SettingsError: a column is mapped that the contract does not have.
    """
    _check_mapping(settings)
    files = storage.find_parquet_files(url)
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        footers = list(pool.map(_read_footer, files))
    kinds = _check_schema(footers[0][0], files[0], settings)
    fragments: list[Fragment] = []
    position = 0
    for file, (schema, group_rows, _) in zip(files, footers, strict=True):
        _check_same(_check_schema(schema, file, settings), kinds, file, files[0])
        starts = np.cumsum([0, *group_rows])
        for group, num_rows in enumerate(group_rows):
            first = int(starts[group])
            fragments.append(
                Fragment(
                    file=file, row_group=group, first_row=first, first_position=position + first, num_rows=num_rows
                )
            )
        position += int(starts[-1])
    if not position:
        raise DataContractError(f"{url}: the log has {len(files)} Parquet files and not one row")
    return EventLog(
        fragments=tuple(fragment for fragment in fragments if fragment.num_rows),
        kinds=kinds,
        inputs=tuple((file, size) for file, (_, _, size) in zip(files, footers, strict=True)),
    )


def _check_mapping(settings: EventSettings) -> None:
    known = [column.name for column in EVENT_COLUMNS]
    unknown = sorted(set(settings.columns) - set(known))
    if unknown:
        raise SettingsError(
            f"events.columns maps {unknown[0]}, which is no contract column; they are {', '.join(known)}"
        )


def _read_footer(url: str) -> tuple[pa.Schema, list[int], int]:
    filesystem, path = storage.locate(url)
    try:
        with filesystem.open_input_file(path) as source:
            size = source.size()
            metadata = pq.read_metadata(source)
            group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            return metadata.schema.to_arrow_schema(), group_rows, size
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataContractError(f"{url}: not a readable Parquet file ({reason}); replace or remove it") from None


def _check_schema(schema: pa.Schema, file: str, settings: EventSettings) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for column in EVENT_COLUMNS:
        name = settings.columns.get(column.name, column.name)
        if name in schema.names:
            kinds[column.name] = _check_type(column, name, schema.field(name).type, file)
        elif column.name == ACTION and settings.default_action:
            kinds[ACTION] = "string"
        elif column.required or column.name in settings.columns:
            raise DataContractError(_missing_column(column, name, schema, file))
    return kinds


def _check_type(column: EventColumn, name: str, found: pa.DataType, file: str) -> str:
    kind = kind_of(found)
    if kind not in column.kinds:
        expected = " or ".join(column.kinds)
        raise DataContractError(
            f"{file}: column {name} ({column.name}) has type {found}, expected {expected}; cast it in the log"
        )
    return kind


def _missing_column(column: EventColumn, name: str, schema: pa.Schema, file: str) -> str:
    remedy = f"set events.columns to map it, such as --events.columns {column.name} YOUR_COLUMN"
    if column.name == ACTION:
        remedy += ", or set events.default_action"
    return f"{file}: no column {name} for {column.name}; it has {', '.join(schema.names)}; {remedy}"


def _check_same(kinds: dict[str, str], expected: dict[str, str], file: str, first_file: str) -> None:
    for name in sorted(kinds.keys() | expected.keys()):
        if kinds.get(name) != expected.get(name):
            raise DataContractError(
                f"{file}: {name} is {kinds.get(name, 'absent')}, but {expected.get(name, 'absent')} in {first_file}; "
                "all files of a log must agree"
            )


def read_fragment(fragment: Fragment, log_kinds: dict[str, str], settings: EventSettings) -> pa.Table:
    """Rows of a fragment under contract names and canonical types.

    Raises:
        DataContractError: the row group cannot be read or a value does not fit its canonical type.
    """
    names = {column: settings.columns.get(column, column) for column in log_kinds}
    filesystem, path = storage.locate(fragment.file)
    try:
        with filesystem.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            wanted = sorted(set(names.values()) & set(file.schema_arrow.names))
            table = file.read_row_group(fragment.row_group, columns=wanted)
        columns = {column: _canonical(table, column, name, log_kinds, settings) for column, name in names.items()}
    except (OSError, pa.ArrowException) as error:
        place = f"{fragment.file}, row group {fragment.row_group}"
        raise DataContractError(f"{place}: cannot be read under the contract ({error})") from error
    return pa.table(columns)


def _canonical(
    table: pa.Table, column: str, name: str, kinds: dict[str, str], settings: EventSettings
) -> pa.ChunkedArray | pa.Array:
    if name not in table.column_names:
        return pa.repeat(pa.scalar(settings.default_action, pa.large_string()), table.num_rows)
    values = table.column(name)
    target = canonical_type(column, kinds[column])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    safe = not (pa.types.is_timestamp(target) or pa.types.is_floating(target))
    return values.cast(target, safe=safe)


def latest_time(settings: EventSettings) -> datetime:
    """The moment after which an event is taken for a clock fault."""
    return settings.latest_time or datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)


def part_events(events: pa.Table, earliest: datetime, latest: datetime) -> tuple[pa.Table, pa.Table]:
    """Part the rows that keep the contract from those that do not.

    Args:
        events: as `read_fragment` gives them.
        earliest, latest: bounds of a believable event time, UTC.

    Returns:
        The good rows with their source row, and the bad rows with their source row and a reason.
    """
    frame = pl.from_arrow(events)
    assert isinstance(frame, pl.DataFrame)
    time = pl.col(EVENT_TIME).dt.replace_time_zone(None)
    no_item = _is_empty(frame, ITEM_ID)
    faults = {
        "empty_user_id": _is_empty(frame, USER_ID),
        "empty_action": _is_empty(frame, ACTION),
        "empty_item_id": no_item & (pl.col(ACTION) != SEARCH_ACTION),
        "empty_event_time": pl.col(EVENT_TIME).is_null(),
        "event_time_too_early": time < pl.lit(_naive(earliest)),
        "event_time_too_late": time > pl.lit(_naive(latest)),
    }
    numbered = frame.with_row_index(SOURCE_ROW)
    if not frame.select(pl.any_horizontal(no_item, *faults.values()).any()).item():
        return numbered.to_arrow(), _mark(numbered.clear(), faults).to_arrow()  # the usual case: nothing is copied
    marked = _mark(numbered, faults)
    good = marked.with_columns(pl.when(~no_item).then(pl.col(ITEM_ID)).alias(ITEM_ID)).filter(pl.col(REASON).is_null())
    return good.drop(REASON).to_arrow(), marked.filter(pl.col(REASON).is_not_null()).to_arrow()


def _mark(frame: pl.DataFrame, faults: dict[str, pl.Expr]) -> pl.DataFrame:
    """Rows with the first of their faults as reason, null where there is none."""
    reasons = [pl.when(fault).then(pl.lit(reason)) for reason, fault in faults.items()]
    return frame.with_columns(pl.coalesce(reasons).alias(REASON))


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _is_empty(frame: pl.DataFrame, column: str) -> pl.Expr:
    missing = pl.col(column).is_null()
    if frame.schema[column] != pl.String or not _may_be_empty(frame[column]):
        return missing
    return missing | pl.col(column).str.strip_chars().str.to_lowercase().is_in(EMPTY_IDS)


def _may_be_empty(texts: pl.Series) -> bool:
    """Whether any text is short enough to stand for a missing id: cheaper to ask than to compare them all."""
    shortest = texts.str.strip_chars().str.len_bytes().min()
    return not isinstance(shortest, int) or shortest <= _LONGEST_EMPTY_ID


def quarantine_table(bad: pa.Table, fragment: Fragment) -> pa.Table:
    """Bad rows with the file and the row they came from."""
    rows = pa.array(bad.column(SOURCE_ROW).to_numpy().astype(np.int64) + fragment.first_row)
    files = pa.repeat(pa.scalar(fragment.file, pa.large_string()), bad.num_rows)
    place = bad.column_names.index(SOURCE_ROW)
    return bad.set_column(place, SOURCE_ROW, rows).append_column(SOURCE_FILE, files)
