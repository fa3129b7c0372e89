"""The item table: what the shop knows of its items, in the order of the vocabulary.

Row r belongs to the item of index r + FIRST_INDEX, whether the shop's table has it or not. Text stays as it is, for
encoders to read. Invariant: prices fall into the same buckets as long as the edges are handed on.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from data_io.config import ItemSettings, SettingsError
from data_io.scan import Fragment
from data_io.schema import ITEM_ID, PRICE, REASON, SOURCE_FILE, SOURCE_ROW, DataContractError
from data_io.side.rows import (
    JoinFacts,
    SideRows,
    add_up,
    count_reasons,
    match_rows,
    quarantine_schema,
    read_side_rows,
    take_rows,
)
from data_io.side.tables import IN_TABLE, SideColumn, SideTable, make_contract, scan_side_table

TITLE: Final = "title"
CATEGORY: Final = "category"
BRAND: Final = "brand"
PRICE_BUCKET: Final = "price_bucket"

MISSING_PRICE_BUCKET: Final = 0
"""Bucket of an item without a price."""

ITEM_COLUMNS: Final = (
    SideColumn(name=ITEM_ID, form="id", kinds=("string", "int"), required=True),
    SideColumn(name=TITLE, form="text", kinds=("string",)),
    SideColumn(name=CATEGORY, form="path", kinds=("string", "list of string")),
    SideColumn(name=BRAND, form="text", kinds=("string", "int")),
    SideColumn(name=PRICE, form="number", kinds=("float", "int"), may_be_negative=False),
)
"""The item contract: one row of the shop's table; declared features follow."""

_ROWS_AT_ONCE = 500_000
_READ_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTable:
    """The items of a vocabulary with what is known of them."""

    table: pa.Table
    """One row per item, the first of them of index FIRST_INDEX."""
    facts: dict[str, Any]
    """Counts, price edges and vector sizes, as JSON content."""
    quarantined: pa.Table
    """Bad rows with file, row and reason."""


def scan_items(url: str, settings: ItemSettings, id_kind: str) -> SideTable:
    """Check the footers of the shop's item table, before any row is read.

    Args:
        url: folder, file or glob.
        settings: of the table.
        id_kind: family of the log's item ids, string or int.

    Raises:
        DataContractError: a file breaks the contract; the message names file, column, found, expected and the remedy.
        SettingsError: a feature or mapped column has a name that cannot be.
    """
    contract = make_contract(
        "items", ITEM_COLUMNS, id_kind, settings.columns, settings.features, reserved=(PRICE_BUCKET,)
    )
    return scan_side_table(url, replace(contract, category_separator=settings.category_separator))


def build_item_table(
    source: SideTable, settings: ItemSettings, item_ids: pa.Array, *, edges: Sequence[float] | None = None
) -> ItemTable:
    """Everything known of the items of a vocabulary, in index order; of its good rows an item has the last.

    Args:
        source: as `scan_items` gives it.
        settings: of the table.
        item_ids: in index order.
        edges: between price buckets, from the facts of an earlier build; None: quantiles of the known prices.

    Raises:
        DataContractError: more rows than `items.max_bad_share` are bad, a file changed since the scan or cannot be
            read, or vectors of a feature have unequal lengths.
        SettingsError: the edges do not belong to `items.num_price_buckets`.
    """
    if edges is not None:
        _check_edges(edges, settings.num_price_buckets)
    ids = item_ids.cast(source.contract.schema.field(ITEM_ID).type)
    found = _find_rows(source, ids)
    facts = add_up(
        source,
        count_reasons(found.quarantined),
        [found.joined],
        settings.max_bad_share,
        where=_first_place(found.quarantined),
    )
    prices = found.rows.column(PRICE).combine_chunks().to_numpy(zero_copy_only=False)
    used_edges = price_edges(prices, settings.num_price_buckets) if edges is None else list(edges)
    return ItemTable(
        table=_in_index_order(found, ids, price_buckets(prices, used_edges)),
        facts=facts | {"price_edges": used_edges, "vector_sizes": found.vector_sizes},
        quarantined=found.quarantined,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the shop's table says of the items."""

    rows: pa.Table
    """One row per item, all null where there is none."""
    is_known: np.ndarray
    """[items] whether there is one."""
    joined: JoinFacts
    vector_sizes: dict[str, int]
    quarantined: pa.Table


def _find_rows(source: SideTable, ids: pa.Array) -> _Found:
    """Read the whole table, with never more than about two catalogues of it in memory."""
    newest = source.contract.schema.empty_table()
    row, joined = match_rows(ids, newest.column(ITEM_ID))
    bad = [quarantine_schema(source.contract).empty_table()]
    sizes: dict[str, tuple[int, str]] = {}
    for batch in _read_batches(source, max(_ROWS_AT_ONCE, len(ids))):
        for part, rows in batch:
            _check_sizes(sizes, rows.vector_sizes, part)
            bad.append(rows.bad)
        newest = pa.concat_tables([take_rows(newest, row[row >= 0]), *(rows.good for _, rows in batch)])
        row, found = match_rows(ids, newest.column(ITEM_ID))
        joined = joined.then(found)
    return _Found(
        rows=take_rows(newest, row),
        is_known=row >= 0,
        joined=joined,
        vector_sizes={name: size for name, (size, _) in sizes.items()},
        quarantined=pa.concat_tables(bad).combine_chunks(),
    )


def extend_item_table(table: pa.Table, item_ids: pa.Array) -> pa.Table:
    """A finished table with a row for each item that came up since, of which nothing is known.

    Args:
        table: as `build_item_table` made it.
        item_ids: in index order; the table has the first of them.
    """
    num_new = len(item_ids) - table.num_rows
    known = {
        ITEM_ID: item_ids.slice(table.num_rows).cast(table.schema.field(ITEM_ID).type),
        IN_TABLE: pa.repeat(pa.scalar(False), num_new),
        PRICE_BUCKET: pa.repeat(pa.scalar(MISSING_PRICE_BUCKET, pa.int16()), num_new),
    }
    new = {field.name: known.get(field.name, pa.nulls(num_new, field.type)) for field in table.schema}
    return pa.concat_tables([table, pa.table(new, schema=table.schema)])


def _in_index_order(found: _Found, ids: pa.Array, buckets: np.ndarray) -> pa.Table:
    features = [name for name in found.rows.column_names if name not in (ITEM_ID, TITLE, CATEGORY, BRAND, PRICE)]
    known = {name: found.rows.column(name) for name in (TITLE, CATEGORY, BRAND, PRICE)}
    columns = {ITEM_ID: ids, IN_TABLE: pa.array(found.is_known)} | known | {PRICE_BUCKET: pa.array(buckets)}
    return pa.table(columns | {name: found.rows.column(name) for name in features})


def _read_batches(source: SideTable, least_rows: int) -> Iterator[list[tuple[Fragment, SideRows]]]:
    """Neighbouring parts, read on threads; as many as make up the rows, so that ids are looked up few times."""
    batch: list[Fragment] = []
    num_rows = 0
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for part in source.parts:
            batch.append(part)
            num_rows += part.num_rows
            if num_rows >= least_rows or part is source.parts[-1]:
                rows = pool.map(partial(read_side_rows, contract=source.contract), batch)
                yield list(zip(batch, rows, strict=True))
                batch, num_rows = [], 0


def _check_sizes(known: dict[str, tuple[int, str]], found: dict[str, int], part: Fragment) -> None:
    for name, size in found.items():
        expected, file = known.setdefault(name, (size, part.file))
        if size != expected:
            raise DataContractError(
                f"{part.file}: vectors of {name} have {size} numbers, but {expected} in {file}; all vectors of a "
                "feature must have one length"
            )


def _first_place(quarantined: pa.Table) -> str:
    """Where to look first, for a message."""
    if not quarantined.num_rows:
        return "the quarantine"
    row, file = quarantined.column(SOURCE_ROW)[0].as_py(), quarantined.column(SOURCE_FILE)[0].as_py()
    return f"row {row:,} of {file} ({quarantined.column(REASON)[0].as_py()})"


def price_edges(prices: np.ndarray, num_buckets: int) -> list[float]:
    """Rising prices at which the next bucket begins, at most num_buckets - 1: quantiles of the known prices.

    Args:
        prices: [items] NaN where the price is missing.
        num_buckets: most buckets.
    """
    known = prices[~np.isnan(prices)].astype(np.float64)
    if not len(known):
        return []
    edges = np.unique(np.quantile(known, np.arange(1, num_buckets) / num_buckets))
    return edges[edges > known.min()].tolist()  # an edge at the lowest price would leave bucket 1 empty


def price_buckets(prices: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """[items] int16 bucket of each price, 1 for the cheapest; 0 where the price is missing (NaN)."""
    buckets = np.searchsorted(np.asarray(edges, np.float64), prices.astype(np.float64), side="right") + 1
    return np.where(np.isnan(prices), MISSING_PRICE_BUCKET, buckets).astype(np.int16)


def _check_edges(edges: Sequence[float], num_buckets: int) -> None:
    if len(edges) >= num_buckets or any(low >= high for low, high in pairwise(edges)):
        raise SettingsError(
            f"{len(edges)} price edges ({list(edges)[:5]} ...) of an earlier build do not suit items.num_price_buckets "
            f"{num_buckets}: they must rise and be fewer; keep the setting of that build"
        )
