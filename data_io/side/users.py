"""The user table: what the shop knows of its users, laid out in the buckets of the sequence store.

The first pass reads the table part by part and orders each by bucket; the second joins the rows of a bucket, from all
parts, to the bucket's users. Invariant: an attribute declared sensitive is marked so in every table made here, and a
reader that does not ask for it does not get it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from data_io.buckets import bucket_of
from data_io.config import UserSettings
from data_io.schema import USER_ID
from data_io.side.rows import JoinFacts, add_up, match_rows, take_rows
from data_io.side.tables import IN_TABLE, SideColumn, SideContract, SideTable, make_contract, scan_side_table

USER_COLUMNS: Final = (SideColumn(name=USER_ID, form="id", kinds=("string", "int"), required=True),)
"""The user contract: one row of the shop's table; declared attributes follow."""

_SENSITIVE: Final = {"sensitive": "true"}


def user_contract(settings: UserSettings, id_kind: str) -> SideContract:
    """The contract of the shop's user table, for the family of the log's user ids (string or int).

    Raises:
        SettingsError: an attribute or mapped column has a name that cannot be.
    """
    contract = make_contract("users", USER_COLUMNS, id_kind, settings.columns, settings.features)
    return replace(contract, sensitive=tuple(name for name in settings.features if name in settings.sensitive))


def scan_users(url: str, settings: UserSettings, id_kind: str) -> SideTable:
    """Check the footers of the shop's user table, before any row is read.

    Args:
        url: folder, file or glob.
        settings: of the table.
        id_kind: family of the log's user ids, string or int.

    Raises:
        DataContractError: a file breaks the contract; the message names file, column, found, expected and the remedy.
        SettingsError: an attribute or mapped column has a name that cannot be.
    """
    return scan_side_table(url, user_contract(settings, id_kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRows:
    """Rows of one part of the user table, laid out by bucket."""

    rows: pa.Table
    """By bucket, and in a bucket in file order."""
    bucket_rows: np.ndarray
    """[num_buckets] rows of each bucket."""

    @property
    def groups(self) -> list[pa.Table]:
        """The rows of each bucket, as `runs.write_pieces` takes them."""
        ends = np.cumsum(self.bucket_rows)
        return [self.rows.slice(int(end - rows), int(rows)) for end, rows in zip(ends, self.bucket_rows, strict=True)]


def bucket_user_rows(rows: pa.Table, num_buckets: int) -> UserRows:
    """Good rows of a part of the user table, as `read_side_rows` gives them, laid out by bucket."""
    bucket = bucket_of(rows.column(USER_ID).combine_chunks(), num_buckets)
    order = np.argsort(bucket, kind="stable")
    return UserRows(
        rows=rows.take(pa.array(order)).combine_chunks(), bucket_rows=np.bincount(bucket, minlength=num_buckets)
    )


def join_users(user_ids: pa.Array, rows: pa.Table, settings: UserSettings) -> tuple[pa.Table, JoinFacts]:
    """What is known of the users of a bucket, in their order, and what was counted on the way.

    Args:
        user_ids: of the bucket in the store, int64 or large_string; each once.
        rows: of the bucket, from all parts in their order: of the rows of a user the last counts. May be empty.
        settings: of the table.

    Returns:
        user_id, in_table and the attributes, null where nothing is known; sensitive ones are marked in their field.
    """
    contract = user_contract(settings, "int" if pa.types.is_integer(user_ids.type) else "string")
    ids = user_ids.cast(contract.schema.field(USER_ID).type)
    row, facts = match_rows(ids, rows.column(USER_ID))
    known = take_rows(rows.select(list(settings.features)), row)
    schema = joined_schema(contract)
    return pa.table([ids, pa.array(row >= 0), *known.columns], schema=schema), facts


def align_users(user_ids: pa.Array, table: pa.Table) -> pa.Table:
    """Rows of a joined table for other users, in their order; null attributes where it has none."""
    row, _ = match_rows(user_ids.cast(table.schema.field(USER_ID).type), table.column(USER_ID))
    known = take_rows(table.drop_columns([USER_ID, IN_TABLE]), row)
    columns = [user_ids.cast(table.schema.field(USER_ID).type), pa.array(row >= 0), *known.columns]
    return pa.table(columns, schema=table.schema)


def joined_schema(contract: SideContract) -> pa.Schema:
    """Columns of the user table in the store."""
    marks = dict.fromkeys(contract.sensitive, _SENSITIVE)
    attributes = [field.with_metadata(marks.get(field.name, {})) for field in contract.schema if field.name != USER_ID]
    user_id = pa.field(USER_ID, contract.schema.field(USER_ID).type, nullable=False)
    return pa.schema([user_id, pa.field(IN_TABLE, pa.bool_(), nullable=False), *attributes])


def user_facts(
    source: SideTable, reasons: Counter[str], joined: Iterable[JoinFacts], settings: UserSettings
) -> dict[str, Any]:
    """The facts of the joined user table, as JSON content.

    Args:
        source: as `scan_users` gives it.
        reasons: quarantined rows of all parts, by reason.
        joined: of all buckets.
        settings: of the table.

    Raises:
        DataContractError: more rows than `users.max_bad_share` are bad, or rows were lost or doubled on the way.
    """
    return add_up(source, reasons, joined, settings.max_bad_share, where="the quarantine folder of the store")


def visible(table: pa.Table, *, include_sensitive: bool) -> pa.Table:
    """A user table without its sensitive columns, or whole for a reader that asks for them."""
    if include_sensitive:
        return table
    return table.drop_columns([field.name for field in table.schema if is_sensitive(field)])


def is_sensitive(field: pa.Field) -> bool:
    """Whether a column was declared sensitive."""
    return (field.metadata or {}).get(b"sensitive") == b"true"
