"""Side tables: the contract of the tables of items and users that stand beside the log, and the scan of their footers.

What is said of a column here holds for both tables; `item_table` and `user_table` say which columns they have. Their
contracts are part of `schema.CONTRACT_VERSION`. Invariant: a table that passes the scan has every declared column in
every file that has rows, with ids of the log's kind.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_io import storage
from data_io.config import SettingsError
from data_io.scan import Fragment
from data_io.schema import REASON, SOURCE_FILE, SOURCE_ROW, DataContractError, kind_of

IN_TABLE: Final = "in_table"
"""Whether the table has a row of the item or user; where not, all other columns are null."""

Form = Literal["id", "text", "number", "path", "vector"]

_FORM_TYPES: Final[dict[str, pa.DataType]] = {
    "text": pa.large_string(),
    "number": pa.float32(),
    "path": pa.large_list(pa.large_string()),
    "vector": pa.large_list(pa.float32()),
}
_RESERVED: Final = (IN_TABLE, SOURCE_FILE, SOURCE_ROW, REASON)
_SCAN_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SideColumn:
    """What the contract says of one column of a side table. A missing value stays null, except of the id."""

    name: str
    form: Form
    """What becomes of it: an id, text as it is, a float32, a list of category levels, or a list of float32."""
    kinds: tuple[str, ...]
    """Families of Arrow types that are taken: string, int, float, bool, or a list of one of them."""
    required: bool = False
    """Whether every file must have it."""
    may_be_negative: bool = True
    """Whether a number below 0 is good; where not, its row is quarantined."""

    @property
    def data_type(self) -> pa.DataType:
        """The type it has after reading."""
        if self.form == "id":
            return pa.int64() if self.kinds == ("int",) else pa.large_string()
        return _FORM_TYPES[self.form]


FEATURE_COLUMNS: Final[dict[str, SideColumn]] = {
    "categorical": SideColumn(name="categorical", form="text", kinds=("string", "int", "bool"), required=True),
    "numeric": SideColumn(name="numeric", form="number", kinds=("float", "int", "bool"), required=True),
    "text": SideColumn(name="text", form="text", kinds=("string",), required=True),
    "vector": SideColumn(name="vector", form="vector", kinds=("list of float", "list of int"), required=True),
}
"""What the contract says of a declared feature, by what it is declared as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideContract:
    """The columns of one side table, with the names they have in its files."""

    section: str
    """Section of the settings: items or users."""
    columns: tuple[SideColumn, ...]
    """The id first, then the other columns of the contract, then the declared features."""
    names: dict[str, str]
    """Columns that are mapped, each with its name in the files."""
    sensitive: tuple[str, ...] = ()
    """Columns that stay out of the quarantine."""
    category_separator: str = ">"

    @property
    def id_column(self) -> str:
        """Contract name of the id."""
        return self.columns[0].name

    @property
    def schema(self) -> pa.Schema:
        """Columns after reading."""
        return pa.schema([pa.field(column.name, column.data_type) for column in self.columns])

    def source_name(self, column: SideColumn) -> str:
        """The name a column has in the files."""
        return self.names.get(column.name, column.name)


def make_contract(
    section: str,
    columns: tuple[SideColumn, ...],
    id_kind: str,
    names: Mapping[str, str],
    features: Mapping[str, str],
    *,
    reserved: tuple[str, ...] = (),
) -> SideContract:
    """The contract of a table: the columns it always has, and the features declared for it.

    Args:
        section: of the settings, for messages.
        columns: that the table always has, the id first.
        id_kind: family of the log's ids, string or int.
        names: contract column or feature to its name in the files.
        features: further columns, each with what it is declared as.
        reserved: names that the finished table needs for itself.

    Raises:
        SettingsError: a feature has a name that is taken, or a column is mapped that does not exist.
    """
    taken = sorted({column.name for column in columns}.union(_RESERVED, reserved) & set(features))
    if taken:
        raise SettingsError(
            f"{section}.features declares {taken[0]}, a name of the contract; give the feature another name and map it "
            f"with {section}.columns"
        )
    declared = [replace(FEATURE_COLUMNS[kind], name=name) for name, kind in features.items()]
    whole = (replace(columns[0], kinds=(id_kind,)), *columns[1:], *declared)
    unknown = sorted(set(names) - {column.name for column in whole})
    if unknown:
        raise SettingsError(
            f"{section}.columns maps {unknown[0]}, which is neither a contract column nor a declared feature; they are "
            f"{', '.join(column.name for column in whole)}"
        )
    return SideContract(section=section, columns=whole, names=dict(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class SideTable:
    """A side table whose footers all keep the contract."""

    url: str
    contract: SideContract
    parts: tuple[Fragment, ...]
    """Files in name order, the row groups of a file in theirs: of rows with one id the last one here counts."""
    inputs: tuple[tuple[str, int], ...]
    """URL and size of every file, for the fingerprint."""

    @property
    def num_rows(self) -> int:
        """Rows in all files."""
        return sum(part.num_rows for part in self.parts)


def scan_side_table(url: str, contract: SideContract) -> SideTable:
    """Check the footers of all files of a side table against its contract, before any row is read.

    Raises:
        DataContractError: nothing is there, or a file is torn, lacks a column, or has a column of a wrong type; the
            message names file, column, found, expected and the remedy.
    """
    if not any(sign in url for sign in "*?[") and not storage.exists(url):
        raise DataContractError(f"{url}: no such file or folder; correct {contract.section}.path or leave it out")
    files = storage.find_parquet_files(url)
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        footers = list(pool.map(_read_footer, files))
    present: dict[str, frozenset[str]] = {}
    parts: list[Fragment] = []
    for file, (schema, group_rows, size) in zip(files, footers, strict=True):
        if sum(group_rows):  # writers give columns without a value any type: what has no rows breaks nothing
            present[file] = _check_schema(schema, file, contract)
        parts += _parts(file, group_rows, size)
    _check_same(present, contract)
    inputs = tuple((file, size) for file, (_, _, size) in zip(files, footers, strict=True))
    return SideTable(url=url, contract=contract, parts=tuple(parts), inputs=inputs)


def _read_footer(url: str) -> tuple[pa.Schema, list[int], int]:
    """Columns, rows of each row group, and size."""
    try:
        metadata, size = storage.read_file(url, lambda source: (pq.read_metadata(source), source.size()))
        group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return metadata.schema.to_arrow_schema(), group_rows, size
    except (OSError, ValueError, pa.ArrowException) as error:  # a flipped bit in a name is no UTF-8: a ValueError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataContractError(f"{url}: not a readable Parquet file ({reason}); replace or remove it") from None


def _parts(file: str, group_rows: list[int], size: int) -> list[Fragment]:
    starts = accumulate(group_rows, initial=0)
    return [
        Fragment(file=file, file_bytes=size, row_group=group, first_row=start, num_rows=num_rows)
        for group, (num_rows, start) in enumerate(zip(group_rows, starts, strict=False))
        if num_rows
    ]


def _check_schema(schema: pa.Schema, file: str, contract: SideContract) -> frozenset[str]:
    """Contract names of the columns a file has."""
    found: set[str] = set()
    for column in contract.columns:
        name = contract.source_name(column)
        places = schema.get_all_field_indices(name)
        if len(places) > 1:
            raise DataContractError(f"{file}: column {name} stands {len(places)} times; rename all but one")
        if places:
            _check_type(column, name, schema.field(places[0]).type, file)
            found.add(column.name)
        elif column.required or column.name in contract.names:
            raise DataContractError(
                f"{file}: no column {name} for {column.name}; it has {', '.join(schema.names)}; set "
                f"{contract.section}.columns to map it, such as --{contract.section}.columns {column.name} YOUR_COLUMN"
            )
    return frozenset(found)


def _check_type(column: SideColumn, name: str, found: pa.DataType, file: str) -> None:
    kind = _side_kind(found)
    if kind in column.kinds or (kind == "null" and column.form != "id"):
        return
    expected = " or ".join(column.kinds) + (", as in the log" if column.form == "id" else "")
    raise DataContractError(
        f"{file}: column {name} ({column.name}) has type {found}, expected {expected}; cast it in the table"
    )


def _side_kind(data_type: pa.DataType) -> str:
    """The family a type belongs to; for a list, of its values."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_list(data_type) for is_list in lists):
        return f"list of {kind_of(data_type.value_type)}"
    return kind_of(data_type)


def _check_same(present: Mapping[str, frozenset[str]], contract: SideContract) -> None:
    first_file = next(iter(present), "")
    for file, found in present.items():
        for name in sorted(found ^ present[first_file]):
            here, there = ("present", "absent") if name in found else ("absent", "present")
            raise DataContractError(
                f"{file}: {name} is {here}, but {there} in {first_file}; all files of {contract.section} must agree: "
                "write the column everywhere, with nulls where nothing is known"
            )
