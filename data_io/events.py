"""Events: reading rows of a log under its contract, and parting good rows from bad.

The unit of reading is a fragment, one row group of one file, so that any worker can take any fragment and every row
keeps its place in its file. Ids are compared byte by byte: no Unicode normalisation, no trimming, no change of case; so
"é" in its two spellings is two ids, and "a/../b" or an emoji is an id like any other. Only blanks, and words such as
"nan", stand for no id. Invariant: rows read = rows kept + rows quarantined.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

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
_CODES = pa.dictionary(pa.int32(), pa.large_string())
_UNIT_FACTORS = (1_000, 1_000_000)
_EPOCH = datetime(1970, 1, 1)
_UNIT_TELLS_FROM = 365 * 86_400 * 1_000_000
"""Within a year of 1970 every time looks like one of another unit: the guess is made from there on."""


def read_fragment(fragment: Fragment, log_kinds: Mapping[str, str], settings: EventSettings) -> pa.Table:
    """Rows of a fragment under contract names and canonical types; page checksums are verified where the log has them.

    Numbers that are not finite become null: neither NaN nor an infinity is a value. Actions, of which there are few,
    are read as dictionary codes: spelling one out for every row, and encoding it again, would take a fifth of the time
    of a run.

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
        table = _read_row_group(fragment, place, set(names.values()), names[ACTION])
        columns = {
            column: _canonical(table, column, name, log_kinds[column], settings) for column, name in names.items()
        }
    except FileNotFoundError as error:
        raise DataContractError(f"{place}: the file is gone since it was scanned; restore it, or build anew") from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataContractError(f"{place}: cannot be read under the contract ({error})") from error
    return pa.table(columns)


def _read_row_group(fragment: Fragment, place: str, names: set[str], action: str) -> pa.Table:
    def read(source: pa.NativeFile) -> pa.Table:
        _check_unchanged(place, "bytes", fragment.file_bytes, source.size())
        # Old timestamps (INT96) would be read as nanoseconds, in which the year 2608 wraps round to 2023.
        footer = pq.read_metadata(source)
        file = pq.ParquetFile(
            source,
            metadata=footer,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",
            read_dictionary=[action] if action in footer.schema.names else None,
        )
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
        return pa.repeat(pa.scalar(settings.default_action, pa.large_string()), table.num_rows).dictionary_encode()
    values = table.column(name)
    if column == ACTION:
        return _encoded(values)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    declared = settings.features.get(column)
    target = STORED_TYPES[FEATURE_KINDS[declared]] if declared else canonical_type(column, kind)
    if pa.types.is_timestamp(target):
        return _to_micros(values)
    if pa.types.is_floating(target):
        return _finite(values.cast(target, safe=False))
    return values.cast(target)


def _encoded(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of any kind as codes of one dictionary of large strings, in which each different text stands once."""
    texts = texts.unify_dictionaries()
    if not all(pa.types.is_dictionary(chunk.type) and _is_distinct(chunk.dictionary) for chunk in texts.chunks):
        return texts.cast(pa.large_string()).dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary.cast(pa.large_string()))
        for chunk in texts.chunks
    ]
    return pa.chunked_array(chunks, _CODES)


def _is_distinct(texts: pa.Array) -> bool:
    return len(texts.unique()) == len(texts)


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
    actions = _names_of(events.column(ACTION))
    empty = {name: _is_empty(frame, name) for name in (USER_ID, ITEM_ID, EVENT_ID) if name in frame.columns}
    faults = {} if invalid is None else {"invalid_utf8": pl.lit(invalid)}
    faults |= _faults(frame, actions, empty, settings, latest)
    stray = {name: empty[name] & pl.col(name).is_not_null() for name in (ITEM_ID, EVENT_ID) if name in empty}
    if not frame.select(pl.any_horizontal(*faults.values(), *stray.values()).any()).item():
        return _with_rows(events), _mark(frame.clear().with_row_index(SOURCE_ROW), faults).to_arrow()
    marked = _mark(frame.with_row_index(SOURCE_ROW), faults)
    cleared = [pl.when(~is_stray).then(pl.col(name)).alias(name) for name, is_stray in stray.items()]
    good = marked.with_columns(cleared).filter(pl.col(REASON).is_null()).drop(REASON).to_arrow()
    place = good.column_names.index(ACTION)
    good = good.set_column(place, ACTION, _encoded(good.column(ACTION)))
    return good, marked.filter(pl.col(REASON).is_not_null()).to_arrow()


def _names_of(actions: pa.ChunkedArray) -> pl.Series:
    """The different actions of rows, of which there are few: each is looked at once. Some may have lost their rows."""
    names = _dictionaries(actions) if pa.types.is_dictionary(actions.type) else actions
    return pl.Series(ACTION, names.unique(), pl.String)


def _dictionaries(codes: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts that codes stand for; some may stand there more than once."""
    return pa.chunked_array([chunk.dictionary for chunk in codes.chunks], codes.type.value_type)


def _without_invalid_text(events: pa.Table) -> tuple[pa.Table, pl.Series | None]:
    """The table with null for texts that are not UTF-8, and which rows had one; None: no row."""
    invalid = None
    for place, name in enumerate(events.column_names):
        texts = events.column(name)
        if pa.types.is_dictionary(texts.type) and not is_utf8(_dictionaries(texts)):
            texts = texts.cast(pa.large_string())
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
    frame: pl.DataFrame,
    actions: pl.Series,
    empty: Mapping[str, pl.Expr],
    settings: EventSettings,
    latest: datetime,
) -> dict[str, pl.Expr]:
    faults = {
        "empty_user_id": empty[USER_ID],
        "empty_action": pl.col(ACTION).is_null() | _is_one_of(actions.filter(_stands_for_none(actions))),
        "empty_item_id": empty[ITEM_ID] & ~_is_one_of(actions.filter(actions == SEARCH_ACTION)),
    }
    faults |= {f"{name}_too_long": fault for name, fault in _length_faults(frame, actions, settings.max_string_bytes)}
    if settings.allowed_actions is not None:
        faults["unknown_action"] = _is_one_of(actions.filter(~actions.is_in(settings.allowed_actions)))
    return faults | _time_faults(_micros(settings.earliest_time), _micros(latest))


def _length_faults(frame: pl.DataFrame, actions: pl.Series, max_bytes: int) -> Iterator[tuple[str, pl.Expr]]:
    """Columns that have a text longer than allowed, and which rows do: whether any has is cheap to ask."""
    for name, data_type in frame.schema.items():
        limit = max_bytes * (_QUERY_TIMES if name == QUERY else 1)
        if name == ACTION:
            yield name, _is_one_of(actions.filter(actions.str.len_bytes() > limit))
        elif data_type == pl.String and _longest(frame[name]) > limit:
            yield name, pl.col(name).str.len_bytes() > limit


def _longest(texts: pl.Series) -> int:
    longest = texts.str.len_bytes().max()
    return longest if isinstance(longest, int) else 0


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
    return frame.with_columns(pl.col(ACTION).cast(pl.String), pl.coalesce(reasons).alias(REASON))


def _is_empty(frame: pl.DataFrame, column: str) -> pl.Expr:
    missing = pl.col(column).is_null()
    if frame.schema[column] != pl.String:
        return missing
    return missing | _stands_for_none(pl.col(column)) if _may_be_empty(frame[column]) else missing


def _stands_for_none(texts: Any) -> Any:
    """Whether texts (a series or an expression) stand for a missing id."""
    return texts.str.strip_chars().str.to_lowercase().is_in(EMPTY_IDS)


def _is_one_of(actions: pl.Series) -> pl.Expr:
    """Whether the action of a row is one of a few; never null."""
    return pl.col(ACTION).is_in(actions.implode()).fill_null(False) if len(actions) else pl.lit(False)


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
