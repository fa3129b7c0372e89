"""Events: reading rows of a log under its contract, and parting good rows from bad.

The unit of reading is a fragment, one row group of one file, so that any worker can take any fragment and every row
keeps its place in its file. Ids are compared byte by byte: no Unicode normalisation, no trimming, no change of case; so
"é" in its two spellings is two ids, and "a/../b" or an emoji is an id like any other. Only blanks, and words such as
"nan", stand for no id. Invariant: rows read = rows kept + rows quarantined.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_io import storage
from data_io.config import EventSettings
from data_io.scan import Fragment
from data_io.schema import (
    ACTION,
    EVENT_ID,
    EVENT_TIME,
    FEATURE_KINDS,
    ITEM_ID,
    QUERY,
    REASON,
    SEARCH_ACTION,
    SOURCE_FILE,
    SOURCE_ROW,
    STORED_TYPES,
    TIME_TYPE,
    USER_ID,
    DataContractError,
    canonical_type,
)
from data_io.utf8 import invalid_utf8, is_utf8

EMPTY_IDS = ("", "nan", "none", "null", "<na>")
"""Texts that stand for a missing id, compared in lower case and without surrounding blanks."""
_LONGEST_EMPTY_ID = max(len(text) for text in EMPTY_IDS)
_QUERY_TIMES = 10
"""How many times the bytes of an id a query may have."""
_END_OF_TIME = (2**63 - 1) // 1_000_000 * 1_000_000
"""The last second that 64 bits of microseconds hold: what lies in it or beyond can only be of another unit."""
_UNIT_FACTORS = (1_000, 1_000_000)
_EPOCH = datetime(1970, 1, 1)
_UNIT_TELLS_FROM = 365 * 86_400 * 1_000_000
"""Within a year of 1970 every time looks like one of another unit: the guess is made from there on."""


def read_fragment(fragment: Fragment, log_kinds: Mapping[str, str], settings: EventSettings) -> pa.Table:
    """Rows of a fragment under contract names and canonical types; page checksums are verified where the log has them.

    Numbers that are not finite become null: neither NaN nor an infinity is a value.

    Args:
        fragment: of `scan_log`.
        log_kinds: columns to read, `EventLog.kinds`.
        settings: the log was scanned with.

    Raises:
        DataContractError: the file is gone or was replaced since the scan, the row group cannot be read, or a value
            does not fit its canonical type; the message names file and row group.
    """
    place = f"{fragment.file}, row group {fragment.row_group}"
    names = {column: settings.columns.get(column, column) for column in log_kinds}
    try:
        table = _read_row_group(fragment, place, set(names.values()))
        columns = {
            column: _canonical(table, column, name, log_kinds[column], settings) for column, name in names.items()
        }
    except FileNotFoundError as error:
        raise DataContractError(f"{place}: the file is gone since it was scanned; restore it, or build anew") from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataContractError(f"{place}: cannot be read under the contract ({error})") from error
    return pa.table(columns)


def _read_row_group(fragment: Fragment, place: str, names: set[str]) -> pa.Table:
    def read(source: pa.NativeFile) -> pa.Table:
        _check_unchanged(place, "bytes", fragment.file_bytes, source.size())
        # Old timestamps (INT96) would be read as nanoseconds, in which the year 2608 wraps round to 2023.
        file = pq.ParquetFile(source, page_checksum_verification=True, coerce_int96_timestamp_unit="us")
        footer = file.metadata
        found = footer.row_group(fragment.row_group).num_rows if fragment.row_group < footer.num_row_groups else 0
        _check_unchanged(place, "rows", fragment.num_rows, found)
        table = file.read_row_group(fragment.row_group, columns=sorted(names & set(file.schema_arrow.names)))
        _check_unchanged(place, "readable rows", fragment.num_rows, table.num_rows)
        return table

    return storage.read_file(fragment.file, read)


def _check_unchanged(place: str, what: str, scanned: int, found: int) -> None:
    if found != scanned:
        raise DataContractError(
            f"{place}: {scanned:,} {what} when it was scanned and now {found:,}; files of a log must not change: "
            "restore it, or build anew"
        )


def _canonical(
    table: pa.Table, column: str, name: str, kind: str, settings: EventSettings
) -> pa.ChunkedArray | pa.Array:
    if column == ACTION and name not in table.column_names and settings.default_action:
        return pa.repeat(pa.scalar(settings.default_action, pa.large_string()), table.num_rows)
    values = table.column(name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    declared = settings.features.get(column)
    target = STORED_TYPES[FEATURE_KINDS[declared]] if declared else canonical_type(column, kind)
    if pa.types.is_timestamp(target):
        return _to_micros(values)
    if pa.types.is_floating(target):
        return _finite(values.cast(target, safe=False))
    return values.cast(target)


def _to_micros(times: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Times in microseconds; those that do not fit stand at an end of the range, and do not wrap round into it."""
    factor = {"s": 1_000_000, "ms": 1_000}.get(times.type.unit, 1)
    if factor == 1:
        return times.cast(TIME_TYPE, safe=False)
    limit = _END_OF_TIME // factor
    return (pl.Series(times.cast(pa.int64())).clip(-limit, limit) * factor).to_arrow().cast(TIME_TYPE)


def _finite(numbers: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    series = pl.Series(numbers)
    finite = series.is_finite()
    return numbers if finite.all() else pl.select(pl.when(finite).then(series)).to_series().to_arrow()


def latest_time(settings: EventSettings) -> datetime:
    """The moment after which an event is taken for a clock fault."""
    return settings.latest_time or datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)


def part_events(events: pa.Table, settings: EventSettings, latest: datetime) -> tuple[pa.Table, pa.Table]:
    """Part the rows that keep the contract from those that do not.

    Args:
        events: as `read_fragment` gives them.
        settings: earliest time, allowed actions and longest text.
        latest: last believable event time, UTC.

    Returns:
        The good rows with their source row, and the bad rows with their source row and the first reason in the order
        of `_faults`. A text that is not UTF-8 is null in a bad row, one that stands for no id null in a good one.
    """
    events, invalid = _without_invalid_text(events)
    frame = pl.DataFrame(pl.from_arrow(events))
    empty = {name: _is_empty(frame, name) for name in (USER_ID, ITEM_ID, ACTION, EVENT_ID) if name in frame.columns}
    faults = {} if invalid is None else {"invalid_utf8": pl.lit(invalid)}
    faults |= _faults(frame, empty, settings, latest)
    stray = {name: empty[name] & pl.col(name).is_not_null() for name in (ITEM_ID, EVENT_ID) if name in empty}
    if not frame.select(pl.any_horizontal(*faults.values(), *stray.values()).any()).item():
        return _with_rows(events), _mark(frame.clear().with_row_index(SOURCE_ROW), faults).to_arrow()
    marked = _mark(frame.with_row_index(SOURCE_ROW), faults)
    cleared = [pl.when(~is_stray).then(pl.col(name)).alias(name) for name, is_stray in stray.items()]
    good = marked.with_columns(cleared).filter(pl.col(REASON).is_null())
    return good.drop(REASON).to_arrow(), marked.filter(pl.col(REASON).is_not_null()).to_arrow()


def _without_invalid_text(events: pa.Table) -> tuple[pa.Table, pl.Series | None]:
    """The table with null for texts that are not UTF-8, and which rows had one; None: no row."""
    invalid = None
    for place, name in enumerate(events.column_names):
        texts = events.column(name)
        if pa.types.is_large_string(texts.type) and not is_utf8(texts):
            here = pl.Series(invalid_utf8(texts))
            valid = pc.call_function("if_else", [here.to_arrow(), pa.scalar(None, texts.type), texts])
            events = events.set_column(place, name, valid)
            invalid = here if invalid is None else invalid | here
    return events, invalid


def _with_rows(events: pa.Table) -> pa.Table:
    """The events with the row each stands in; no value is copied."""
    return events.add_column(0, SOURCE_ROW, pa.array(np.arange(events.num_rows, dtype=np.uint32)))


def _faults(
    frame: pl.DataFrame, empty: Mapping[str, pl.Expr], settings: EventSettings, latest: datetime
) -> dict[str, pl.Expr]:
    faults = {
        "empty_user_id": empty[USER_ID],
        "empty_action": empty[ACTION],
        "empty_item_id": empty[ITEM_ID] & (pl.col(ACTION) != SEARCH_ACTION),
    }
    faults |= {f"{name}_too_long": fault for name, fault in _length_faults(frame, settings.max_string_bytes)}
    if settings.allowed_actions is not None:
        faults["unknown_action"] = ~pl.col(ACTION).is_in(settings.allowed_actions)
    return faults | _time_faults(_micros(settings.earliest_time), _micros(latest))


def _length_faults(frame: pl.DataFrame, max_bytes: int) -> list[tuple[str, pl.Expr]]:
    """Columns that have a text longer than allowed, and which rows do: whether any has is cheap to ask."""
    limits = {
        name: max_bytes * (_QUERY_TIMES if name == QUERY else 1)
        for name, data_type in frame.schema.items()
        if data_type == pl.String
    }
    longest = frame.select(pl.col(name).str.len_bytes().max() for name in limits).row(0) if limits else ()
    return [
        (name, pl.col(name).str.len_bytes() > limit)
        for (name, limit), found in zip(limits.items(), longest, strict=True)
        if found is not None and found > limit
    ]


def _time_faults(earliest: int, latest: int) -> dict[str, pl.Expr]:
    time = pl.col(EVENT_TIME).dt.epoch("us")
    clamped = time.clip(-_END_OF_TIME, _END_OF_TIME)
    first = max(earliest, _UNIT_TELLS_FROM)
    in_other_unit = [time.is_between(-(-first // factor), latest // factor) for factor in _UNIT_FACTORS]
    in_other_unit += [clamped.is_between(_clamp(first * factor), _clamp(latest * factor)) for factor in _UNIT_FACTORS]
    outside = (time < earliest) | (time > latest)
    return {
        "empty_event_time": time.is_null(),
        "event_time_wrong_unit": outside & pl.any_horizontal(in_other_unit),
        "event_time_too_early": time < earliest,
        "event_time_too_late": time > latest,
    }


def _clamp(micros: int) -> int:
    return min(max(micros, -_END_OF_TIME), _END_OF_TIME)


def _micros(moment: datetime) -> int:
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return (naive - _EPOCH) // timedelta(microseconds=1)


def _mark(frame: pl.DataFrame, faults: Mapping[str, pl.Expr]) -> pl.DataFrame:
    """Rows with the first of their faults as reason, null where there is none."""
    reasons = [pl.when(fault).then(pl.lit(reason)) for reason, fault in faults.items()]
    return frame.with_columns(pl.coalesce(reasons).alias(REASON))


def _is_empty(frame: pl.DataFrame, column: str) -> pl.Expr:
    missing = pl.col(column).is_null()
    if frame.schema[column] != pl.String:
        return missing
    stands_for_none = pl.col(column).str.strip_chars().str.to_lowercase().is_in(EMPTY_IDS)
    if column == ACTION:  # of which there are few: each is looked at once
        names = frame.select(pl.col(ACTION).unique()).filter(stands_for_none)
        return missing | pl.col(ACTION).is_in(names[ACTION].to_list()) if names.height else missing
    return missing | stands_for_none if _may_be_empty(frame[column]) else missing


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
