"""What profiles know of each item: category, brand, seller, price and how often it was had.

Arrays are by item index, as models have them; padding and unknown have nothing. Invariant: facts come from the item
table and from the log, never from the users' attributes.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.config import SettingsError
from data_io.schema import COUNT, FIRST_INDEX, ITEM_INDEX, PRICE
from data_io.side.items import BRAND, CATEGORY
from data_io.store import SequenceStore

_NONE = np.int32(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemLabels:
    """One label an item, such as its brand."""

    code: np.ndarray
    """[V] int32 place of the item's label among `names`; -1: it has none."""
    names: list[str]

    @classmethod
    def none(cls, num_items: int) -> "ItemLabels":
        """Labels where nothing is known of any of V items."""
        return cls(code=np.full(num_items, _NONE), names=[])

    @classmethod
    def of(cls, values: pl.Series) -> "ItemLabels":
        """Labels from the texts (or null) of all items but padding and unknown."""
        names = values.drop_nulls().unique().sort()
        places = pl.DataFrame({"name": names}).with_row_index("code")
        found = pl.DataFrame({"name": values}).join(places, on="name", how="left", maintain_order="left")["code"]
        code = found.cast(pl.Int32).fill_null(-1).to_numpy()
        return cls(code=np.concatenate([np.full(FIRST_INDEX, _NONE), code]), names=names.to_list())

    @property
    def is_known(self) -> bool:
        """Whether any item has a label."""
        return bool(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """What is known of V items."""

    category: ItemLabels
    brand: ItemLabels
    seller: ItemLabels
    log_price: np.ndarray
    """[V] float64 natural log of the price; not-a-number where it is not known."""
    num_events: np.ndarray
    """[V] int64 events of each item in the log."""
    in_table: bool = field(default=True)
    """Whether the shop's item table is in the store."""

    @property
    def num_items(self) -> int:
        """V, padding and unknown included."""
        return len(self.num_events)

    def relative_prices(self) -> np.ndarray:
        """[V] log of the price over the median price of the category; not-a-number where either is not known."""
        frame = pl.DataFrame({"category": self.category.code, "log_price": self.log_price}).with_columns(
            pl.col("log_price").fill_nan(None)
        )
        own = frame.select(pl.col("log_price") - pl.col("log_price").median().over("category"))["log_price"]
        relative = own.fill_null(np.nan).to_numpy().astype(np.float64)
        return np.where(self.category.code >= 0, relative, np.nan)


def read_item_facts(
    store: SequenceStore, category_level: int, seller: str | None, observed_log_price: np.ndarray | None = None
) -> ItemFacts:
    """The facts of a store's items.

    Args:
        store: with or without an item table.
        category_level: which level of a category path counts, from 1; of shorter paths the last.
        seller: column of the item table that says who sells an item; None: nobody is known.
        observed_log_price: [V] mean log price that events had, where the item table has no price; None: not known.

    Raises:
        SettingsError: the item table has no column of the seller, or one of numbers with a fraction.
    """
    counts = store.item_table.filter(pl.col(ITEM_INDEX) >= FIRST_INDEX).sort(ITEM_INDEX)[COUNT].to_numpy()
    num_events = np.concatenate([np.zeros(FIRST_INDEX, np.int64), counts.astype(np.int64)])
    observed = np.full(len(num_events), np.nan) if observed_log_price is None else observed_log_price
    nothing = ItemLabels.none(len(num_events))
    if not store.manifest.get("items"):
        if seller is not None:
            raise SettingsError(f"profile.seller {seller}: the store has no item table; give items.path, or drop it")
        return ItemFacts(
            category=nothing, brand=nothing, seller=nothing, log_price=observed, num_events=num_events, in_table=False
        )
    table = store.read_items([CATEGORY, BRAND, PRICE, *([seller] if seller else [])])
    if seller is not None and seller not in table.column_names:
        raise SettingsError(f"profile.seller {seller}: the item table has no such column; declare it in items.features")
    prices = _log_prices(table)
    return ItemFacts(
        category=ItemLabels.of(_level_of(pl.Series(table.column(CATEGORY)), category_level)),
        brand=ItemLabels.of(pl.Series(table.column(BRAND)).cast(pl.String)),
        seller=ItemLabels.of(pl.Series(table.column(seller)).cast(pl.String)) if seller else nothing,
        log_price=np.where(np.isnan(prices), observed, prices),
        num_events=num_events,
    )


def _level_of(paths: pl.Series, level: int) -> pl.Series:
    """One level of each path, of shorter ones the last; null where there is none."""
    if paths.dtype == pl.Null:
        return paths.cast(pl.String)
    frame = pl.DataFrame({"path": paths}).with_columns(pl.col("path").list.len().alias("depth"))
    chosen = pl.col("path").list.get(
        pl.min_horizontal(pl.col("depth").cast(pl.Int64), pl.lit(level)) - 1, null_on_oob=True
    )
    return frame.select(pl.when(pl.col("depth") > 0).then(chosen).alias("name"))["name"]


def _log_prices(table: pa.Table) -> np.ndarray:
    """[V] natural log of the prices of the item table; not-a-number where there is none, or none above 0."""
    prices = pl.Series(table.column(PRICE)).cast(pl.Float64).fill_null(np.nan).to_numpy()
    logs = np.log(np.where(prices > 0, prices, np.nan))
    return np.concatenate([np.full(FIRST_INDEX, np.nan), logs])


def mean_log_prices(parts: list[pl.DataFrame], num_items: int) -> np.ndarray:
    """[V] mean log price of the events of each item, from sums of parts of them; not-a-number where there is none.

    Args:
        parts: as `log_price_sums` gives them.
        num_items: V.
    """
    sums = np.full(num_items, np.nan)
    total = pl.concat(parts).group_by(ITEM_INDEX).agg(pl.col("sum").sum(), pl.col("n").sum())
    sums[total[ITEM_INDEX].to_numpy()] = (total["sum"] / total["n"]).to_numpy()
    return sums


def log_price_sums(item_index: np.ndarray, price: np.ndarray) -> pl.DataFrame:
    """item_index, sum of log prices and number n of the events that have a known item and a price above 0."""
    known = (item_index >= FIRST_INDEX) & (price > 0)
    frame = pl.DataFrame({ITEM_INDEX: item_index[known], "sum": np.log(price[known].astype(np.float64))})
    return frame.group_by(ITEM_INDEX).agg(pl.col("sum").sum(), pl.len().cast(pl.Int64).alias("n"))
