"""Rows of side tables: read under their contract, the bad ones parted from the good, the good ones joined to ids.

Ids are compared exactly, without any normalisation. A value that is missing stays null; a value that cannot be meant
puts its whole row aside. Invariant: rows read = rows quarantined + rows joined + earlier rows of the same id + rows
whose id has no events.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_io import storage
from data_io.scan import Fragment
from data_io.schema import REASON, SOURCE_FILE, SOURCE_ROW, DataContractError
from data_io.side.tables import SideContract, SideTable
from data_io.side.values import Faults, read_values, vector_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRows:
    """The rows of one part of a side table."""

    good: pa.Table
    """Contract columns in their types after reading, in file order."""
    bad: pa.Table
    """Quarantine: source_row, the contract columns that are not sensitive, reason and source_file."""
    vector_sizes: dict[str, int]
    """Numbers in a vector, for each feature of which the part has one."""


def read_side_rows(part: Fragment, contract: SideContract) -> SideRows:
    """The rows of a part, the bad ones aside with file, row and reason.

    Raises:
        DataContractError: the file was replaced since the scan, cannot be read, or has vectors of unequal lengths.
    """
    faults: Faults = {}
    try:
        source = _read_part(part, contract)
        columns: dict[str, pa.Array] = {}
        for column in contract.columns:
            name = contract.source_name(column)
            values = source.column(name) if name in source.column_names else pa.chunked_array([pa.nulls(len(source))])
            columns[column.name], found = read_values(values, column, contract.category_separator)
            faults |= found
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataContractError(f"{_place(part)}: cannot be read under the contract ({error})") from error
    rows = pa.table(columns, schema=contract.schema)
    sizes = {
        column.name: _one_length(rows, column.name, part) for column in contract.columns if column.form == "vector"
    }
    good, bad = _part_rows(rows, faults, part, contract)
    return SideRows(good=good, bad=bad, vector_sizes={name: size for name, size in sizes.items() if size is not None})


def _read_part(part: Fragment, contract: SideContract) -> pa.Table:
    def read(source: pa.NativeFile) -> pa.Table:
        if source.size() != part.file_bytes:
            raise DataContractError(
                f"{part.file}: has {source.size():,} bytes, but {part.file_bytes:,} when it was scanned; it was "
                "replaced meanwhile: run again"
            )
        file = pq.ParquetFile(source, page_checksum_verification=True)
        wanted = {contract.source_name(column) for column in contract.columns}
        return file.read_row_group(part.row_group, columns=sorted(wanted & set(file.schema_arrow.names)))

    return storage.read_file(part.file, read)


def _place(part: Fragment) -> str:
    return f"{part.file}, row group {part.row_group}"


def _one_length(rows: pa.Table, name: str, part: Fragment) -> int | None:
    """Numbers in each vector of a column; None where no row has one."""
    lengths = vector_lengths(rows.column(name).combine_chunks())
    known = np.flatnonzero(lengths >= 0)
    if not len(known):
        return None
    other = known[lengths[known] != lengths[known[0]]]
    if len(other):
        raise DataContractError(
            f"{_place(part)}: vectors of {name} must all have one length, but row {part.first_row + known[0]} has "
            f"{lengths[known[0]]} numbers and row {part.first_row + other[0]} has {lengths[other[0]]}; mend them, or "
            "write null where there is no vector"
        )
    return int(lengths[known[0]])


def _part_rows(rows: pa.Table, faults: Faults, part: Fragment, contract: SideContract) -> tuple[pa.Table, pa.Table]:
    """Good rows, and the quarantine of the others by the first of their faults."""
    reason = np.zeros(rows.num_rows, np.int8)
    for number, mask in reversed(list(enumerate(faults.values(), start=1))):
        reason[mask] = number
    bad = np.flatnonzero(reason)
    shown = rows.drop_columns(list(contract.sensitive)).take(pa.array(bad))
    reasons = pa.array([None, *faults], pa.large_string()).take(pa.array(reason[bad]))
    files = pa.repeat(pa.scalar(part.file, pa.large_string()), len(bad))
    places = pa.array(bad + part.first_row, pa.int64())
    quarantined = pa.table([places, *shown.columns, reasons, files], schema=quarantine_schema(contract))
    return rows.filter(pa.array(reason == 0)) if len(bad) else rows, quarantined


def quarantine_schema(contract: SideContract) -> pa.Schema:
    """Columns of the quarantine of a side table: those of the events' quarantine around its own."""
    shown = [field for field in contract.schema if field.name not in contract.sensitive]
    place, reason = pa.field(SOURCE_ROW, pa.int64()), pa.field(REASON, pa.large_string())
    return pa.schema([place, *shown, reason, pa.field(SOURCE_FILE, pa.large_string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFacts:
    """What became of good rows that were joined to the ids of the log; adds up over buckets."""

    num_matched: int = 0
    """Ids that have a row."""
    num_without_row: int = 0
    """Ids that have none."""
    num_duplicates: int = 0
    """Rows that a later row of the same id replaced."""
    num_without_events: int = 0
    """Rows whose id the log does not have."""
    num_forgotten: int = 0
    """Rows of users that must not come back."""

    def then(self, other: "JoinFacts") -> "JoinFacts":
        """The facts after another lot of rows was joined, beside those kept so far, to the same ids."""
        return replace(
            other,
            num_duplicates=self.num_duplicates + other.num_duplicates,
            num_without_events=self.num_without_events + other.num_without_events,
            num_forgotten=self.num_forgotten + other.num_forgotten,
        )

    def __add__(self, other: "JoinFacts") -> "JoinFacts":
        return JoinFacts(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


def match_rows(ids: pa.Array, row_ids: pa.ChunkedArray) -> tuple[np.ndarray, JoinFacts]:
    """For each id the last row that has it, -1 where none does, and what was counted on the way.

    Args:
        ids: different ids, none null.
        row_ids: id of each row, none null, in the order in which later rows replace earlier ones.
    """
    found = pc.call_function("index_in", [row_ids.cast(ids.type)], pc.SetLookupOptions(ids))
    places = found.fill_null(-1).to_numpy()
    known = np.flatnonzero(places >= 0)
    row = np.full(len(ids), -1, np.int64)
    row[places[known]] = known  # of equal places NumPy keeps the last
    num_matched = int(np.count_nonzero(row >= 0))
    facts = JoinFacts(
        num_matched=num_matched,
        num_without_row=len(ids) - num_matched,
        num_duplicates=len(known) - num_matched,
        num_without_events=len(places) - len(known),
    )
    return row, facts


def take_rows(rows: pa.Table, row: np.ndarray) -> pa.Table:
    """The rows of these numbers, all null where the number is -1."""
    return rows.combine_chunks().take(pa.array(row, mask=row < 0))


def count_reasons(bad: pa.Table) -> Counter[str]:
    """Quarantined rows by reason."""
    counts = bad.column(REASON).value_counts()
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))


def add_up(
    table: SideTable, reasons: Counter[str], joined: Iterable[JoinFacts], max_bad_share: float, *, where: str
) -> dict[str, Any]:
    """The facts of a finished side table, as JSON content.

    Args:
        table: that was read.
        reasons: quarantined rows of all parts, by reason.
        joined: of all buckets.
        max_bad_share: largest share of quarantined rows (0 to 1).
        where: what to look at if there are more, for the message.

    Raises:
        DataContractError: too many rows are bad, or rows were lost or doubled on the way.
    """
    total = sum(joined, JoinFacts())
    num_bad, num_rows = reasons.total(), table.num_rows
    described = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "no reason"
    if num_bad > max_bad_share * num_rows:
        raise DataContractError(
            f"{table.url}: {num_bad / num_rows:.2%} of rows are bad ({described}), more than "
            f"{table.contract.section}.max_bad_share {max_bad_share:.2%}; see {where}, mend the table or raise the "
            "share"
        )
    joined_rows = total.num_matched + total.num_duplicates + total.num_without_events
    if num_rows != num_bad + joined_rows + total.num_forgotten:
        raise DataContractError(
            f"{table.url}: row conservation broken: {num_rows:,} rows read, {num_bad:,} quarantined ({described}), "
            f"{total.num_matched:,} joined, {total.num_duplicates:,} duplicates, {total.num_without_events:,} without "
            f"events, {total.num_forgotten:,} forgotten; nothing was published"
        )
    return {"num_rows": num_rows, "num_quarantined": num_bad, "reasons": dict(reasons.most_common())} | asdict(total)
