"""Scan: the footers of a log held against the event contract, before any row is read.

A footer says which columns a file has, of which types, and how many rows. A file that breaks the contract gets a
verdict; it is left out where `events.max_bad_files` allows it and stops the build where not. A file that cannot be
reached is no verdict but an error: it may be whole. Invariant: every file is read, refused with its verdict, or
already ingested.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from data_io import storage
from data_io.config import EventSettings, SettingsError
from data_io.schema import (
    ACTION,
    CARRIED_KINDS,
    EVENT_COLUMNS,
    FEATURE_COLUMNS,
    FEATURE_KINDS,
    RESERVED_COLUMNS,
    DataContractError,
    EventColumn,
    kind_of,
)

MAX_VERDICTS = 20
"""Bad files that an error names, each with its verdict."""
_SCAN_THREADS = 16
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """One row group of one file of the log, or of a side table."""

    file: str
    file_bytes: int
    """Size of the file when it was scanned: another size means it was replaced."""
    row_group: int
    first_row: int
    """Position of its first row in the file."""
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVerdict:
    """What the footer of a file says of it."""

    file: str
    num_bytes: int
    num_rows: int
    """0 where the footer cannot be read."""
    problem: str | None
    """What breaks the contract, and the remedy; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """The files of a log whose footers keep the contract."""

    fragments: tuple[Fragment, ...]
    kinds: dict[str, str]
    """Contract columns and declared features the log has, each with its family of types; empty if nothing is left to
    read."""
    carried: dict[str, str]
    """Columns that travel into the store as they are, each with its kind there: string or float."""
    inputs: tuple[tuple[str, int], ...]
    """URL and size of every file, for the fingerprint."""
    refused: tuple[FileVerdict, ...] = ()
    """Files that are left out."""

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(fragment.num_rows for fragment in self.fragments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The columns files must have, each with its family of types."""

    kinds: dict[str, str]
    where: str
    """What has them, for the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footer:
    verdict: FileVerdict
    group_rows: tuple[int, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)

    def spoilt(self, problem: str) -> "_Footer":
        return replace(self, verdict=replace(self.verdict, problem=problem))


def scan_log(
    url: str,
    settings: EventSettings,
    *,
    ingested: Mapping[str, int] | None = None,
    expected: Expected | None = None,
) -> EventLog:
    """Check the footers of all files of a log against the contract, before any row is read.

    Args:
        url: folder, file or glob.
        settings: of the log.
        ingested: URL and size of files that are in a store already: they are not scanned again.
        expected: columns of that store; None: what most files have.

    Returns:
        What is to be read; without fragments if `ingested` leaves nothing new.

    Raises:
        DataContractError: more files than `events.max_bad_files` are torn, lack a column, or have a column of a wrong
            type or of another type than most files; the message has a verdict for each. Or no file is good, the log
            has no row, a file cannot be reached, or an ingested one has changed.
        SettingsError: a column is mapped that the contract does not have, or a feature has a name that is taken.
    """
    _check_names(settings)
    done = ingested or {}
    files = storage.find_parquet_files(url)
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        known = [file for file in files if file in done]
        for file, size in zip(known, pool.map(_file_size, known), strict=True):
            _check_size(file, size, done[file])
        new = [file for file in files if file not in done]
        footers = _compare(list(pool.map(partial(_read_footer, settings=settings), new)), expected)
    refused = tuple(footer.verdict for footer in footers if footer.verdict.problem)
    _check_allowance(url, refused, len(footers), settings, is_first=not done)
    good = [footer for footer in footers if not footer.verdict.problem]
    fragments = tuple(fragment for footer in good for fragment in _fragments(footer))
    if not fragments and not done:
        raise DataContractError(f"{url}: the log has {len(files)} Parquet files and not one row")
    kinds = next((footer.kinds for footer in good if footer.kinds), {})
    return EventLog(
        fragments=fragments,
        kinds=kinds,
        carried=_carried(kinds, settings),
        inputs=tuple((footer.verdict.file, footer.verdict.num_bytes) for footer in good),
        refused=refused,
    )


def _check_names(settings: EventSettings) -> None:
    known = [column.name for column in EVENT_COLUMNS]
    unknown = sorted(set(settings.columns) - set(known))
    if unknown:
        raise SettingsError(
            f"events.columns maps {unknown[0]}, which is no contract column; they are {', '.join(known)}"
        )
    taken = sorted(RESERVED_COLUMNS & set(settings.features))
    if taken:
        raise SettingsError(
            f"events.features declares {taken[0]}, a name of the contract or the store; rename the column in the log"
        )


def _carried(kinds: Mapping[str, str], settings: EventSettings) -> dict[str, str]:
    features = {name: FEATURE_KINDS[declared] for name, declared in settings.features.items()}
    return {name: kind for name, kind in (CARRIED_KINDS | features).items() if name in kinds}


def _fragments(footer: _Footer) -> list[Fragment]:
    starts = accumulate(footer.group_rows, initial=0)
    return [
        Fragment(
            file=footer.verdict.file,
            file_bytes=footer.verdict.num_bytes,
            row_group=group,
            first_row=first_row,
            num_rows=num_rows,
        )
        for group, (num_rows, first_row) in enumerate(zip(footer.group_rows, starts, strict=False))
        if num_rows
    ]


def _file_size(file: str) -> int:
    try:
        return storage.read_file(file, lambda source: source.size())
    except (OSError, pa.ArrowException) as error:
        raise _unreachable(file, error) from error


def _check_size(file: str, size: int, ingested: int) -> None:
    if size != ingested:
        raise DataContractError(
            f"{file}: was ingested with {ingested:,} bytes and now has {size:,}; files of a log must not change: "
            "restore it and add corrections as new files"
        )


def _unreachable(file: str, error: Exception) -> DataContractError:
    return DataContractError(f"{file}: cannot be reached ({_first_line(error)}); see to the storage and run again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_footer(file: str, settings: EventSettings) -> _Footer:
    try:
        size, tail = storage.read_file(file, lambda source: (source.size(), _read_tail(source, source.size())))
    except (OSError, pa.ArrowException) as error:
        raise _unreachable(file, error) from error
    return _judge(_Footer(verdict=FileVerdict(file=file, num_bytes=size, num_rows=0, problem=None)), tail, settings)


def _read_tail(source: pa.NativeFile, size: int) -> bytes:
    """The end of a file, long enough to hold its footer; in one request for nearly every file."""
    num_bytes = min(size, _TAIL_BYTES)
    tail = source.read_at(num_bytes, size - num_bytes)
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and num_bytes < needed <= size:
        return source.read_at(needed, size - needed)
    return tail


def _judge(footer: _Footer, tail: bytes, settings: EventSettings) -> _Footer:
    """The footer with what its bytes say: the rows of its groups and its columns, or a problem."""
    if not tail:
        return footer.spoilt(_not_parquet("0 bytes: an upload that never finished?"))
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
        schema = metadata.schema.to_arrow_schema()
    except (OSError, ValueError, pa.ArrowException) as error:  # a flipped bit in a name is no UTF-8: a ValueError
        return footer.spoilt(_not_parquet(_first_line(error)))
    group_rows = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    if min(group_rows, default=0) < 0 or sum(group_rows) != metadata.num_rows:
        return footer.spoilt(_not_parquet(f"{metadata.num_rows} rows, but its row groups have {list(group_rows)[:5]}"))
    footer = replace(footer, group_rows=group_rows, verdict=replace(footer.verdict, num_rows=sum(group_rows)))
    if not metadata.num_rows:
        return footer  # writers give columns without a value any type: what has no rows breaks nothing
    try:
        return replace(footer, kinds=_check_schema(schema, settings))
    except DataContractError as error:
        return footer.spoilt(str(error))


def _not_parquet(reason: str) -> str:
    return f"not a readable Parquet file ({reason}); replace or remove it"


def _check_schema(schema: pa.Schema, settings: EventSettings) -> dict[str, str]:
    features = [replace(FEATURE_COLUMNS[declared], name=name) for name, declared in settings.features.items()]
    kinds: dict[str, str] = {}
    for column in (*EVENT_COLUMNS, *features):
        name = settings.columns.get(column.name, column.name)
        if name in schema.names:
            kinds[column.name] = _check_type(column, name, schema)
        elif column.name == ACTION and settings.default_action:
            kinds[ACTION] = "string"
        elif column.required or column.name in settings.columns:
            raise DataContractError(_missing_column(column, name, schema, settings))
    return kinds


def _check_type(column: EventColumn, name: str, schema: pa.Schema) -> str:
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        raise DataContractError(f"column {name} ({column.name}) stands {len(places)} times; rename all but one")
    found = schema.field(name).type
    kind = kind_of(found)
    if kind not in column.kinds:
        expected = " or ".join(column.kinds)
        raise DataContractError(
            f"column {name} ({column.name}) has type {found}, expected {expected}; cast it in the log"
        )
    return "float" if "float" in column.kinds else kind  # whole numbers here and fractions there are one column


def _missing_column(column: EventColumn, name: str, schema: pa.Schema, settings: EventSettings) -> str:
    remedy = f"set events.columns to map it, such as --events.columns {column.name} YOUR_COLUMN"
    if column.name in settings.features:
        remedy = "add the column to the file or take it out of events.features"
    elif column.name == ACTION:
        remedy += ", or set events.default_action"
    return f"no column {name} for {column.name}; it has {', '.join(schema.names)}; {remedy}"


def _compare(footers: list[_Footer], expected: Expected | None) -> list[_Footer]:
    """The footers, with a problem for those whose columns are not the expected ones, or what they are in most files."""
    voters = [footer for footer in footers if footer.kinds and not footer.verdict.problem]
    if not voters:
        return footers
    agreed = expected or _majority(voters)
    return [
        footer.spoilt(_difference(footer.kinds, agreed)) if _differs(footer, agreed.kinds) else footer
        for footer in footers
    ]


def _majority(voters: list[_Footer]) -> Expected:
    votes = Counter(tuple(sorted(footer.kinds.items())) for footer in voters)
    kinds = dict(votes.most_common(1)[0][0])
    example = next(footer.verdict.file for footer in voters if footer.kinds == kinds)
    return Expected(kinds=kinds, where=f"most files, such as {example}")


def _differs(footer: _Footer, expected: Mapping[str, str]) -> bool:
    return bool(footer.kinds) and not footer.verdict.problem and footer.kinds != expected


def _difference(kinds: Mapping[str, str], agreed: Expected) -> str:
    expected = agreed.kinds
    name = min(name for name in kinds.keys() | expected.keys() if kinds.get(name) != expected.get(name))
    return (
        f"{name} is {kinds.get(name, 'absent')}, but {expected.get(name, 'absent')} in {agreed.where}; all files of a "
        "log must agree"
    )


def _check_allowance(
    url: str, refused: tuple[FileVerdict, ...], num_files: int, settings: EventSettings, *, is_first: bool
) -> None:
    none_left = is_first and len(refused) == num_files
    if not none_left and len(refused) <= settings.max_bad_files:
        return
    verdicts = [f"{verdict.file}: {verdict.problem}" for verdict in refused[:MAX_VERDICTS]]
    if len(refused) == 1:
        raise DataContractError(verdicts[0])
    if len(refused) > MAX_VERDICTS:
        verdicts.append(f"and {len(refused) - MAX_VERDICTS} more")
    rule = "so none is left to read" if none_left else f"more than events.max_bad_files {settings.max_bad_files}"
    remedy = "mend or remove them" + ("" if none_left else ", or set events.max_bad_files to leave them out")
    raise DataContractError(
        f"{url}: {len(refused)} of {num_files} files break the contract, {rule}; {remedy}:\n  " + "\n  ".join(verdicts)
    )
