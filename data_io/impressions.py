"""Impressions: what was shown to whom, with which probability, and what came of it.

Read from a table of the shop, one row an impression. Invariant: rows in = rows kept + rows quarantined, by reason.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.hashing import hash_values
from data_io.schema import DataContractError

NUM_CONTEXT_ROWS = 509
"""Rows of the table of a context column's values; a value shares its row with another at a chance of 1 % among five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpressionColumns:
    """What the columns of the table are called."""

    item_id: str
    reward: str
    propensity: str
    policy: str | None
    position: str | None
    time: str | None
    history: str | None
    context: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """Those that there should be."""
        named = (self.item_id, self.reward, self.propensity, self.policy, self.position, self.time, self.history)
        return list(dict.fromkeys([*(name for name in named if name), *self.context]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Impressions:
    """N impressions in the order of time."""

    item: np.ndarray
    """[N] place among `items`."""
    items: tuple[str, ...]
    reward: np.ndarray
    """[N] 0 or 1."""
    propensity: np.ndarray
    """[N] probability with which the item was shown there."""
    policy: np.ndarray
    """[N] place among `policies`."""
    policies: tuple[str, ...]
    position: np.ndarray
    """[N] 0, 1, ...: place among the positions there are."""
    context: np.ndarray
    """[N, C] row of each context value; 0 where it is missing."""
    history: np.ndarray
    """[N, H] items the user had before, as places among `items` plus 1; 0 pads."""
    quarantined: Mapping[str, int]
    """Rows left out, by reason."""

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: np.ndarray) -> "Impressions":
        """The impressions at these rows."""
        names = ("item", "reward", "propensity", "policy", "position", "context", "history")
        taken = {name: getattr(self, name)[rows] for name in names}
        return Impressions(items=self.items, policies=self.policies, quarantined=self.quarantined, **taken)


def read_impressions(url: str, columns: ImpressionColumns) -> Impressions:
    """Read and check a table of impressions.

    Args:
        url: Parquet, a file or folder, local or s3://.
        columns: what they are called.

    Raises:
        DataContractError: a column is missing or has a type that cannot be, or no row is good.
    """
    table = storage.read_parquet(storage.absolute(url), columns=columns.all)
    missing = [name for name in columns.all if name not in table.column_names]
    if missing:
        raise DataContractError(f"{url}: impressions have no column {missing[0]}; see feedback in the settings")
    if columns.time:
        table = table.sort_by(columns.time)
    reward, propensity = (_numbers(table, name, url) for name in (columns.reward, columns.propensity))
    reasons = _reasons(table.column(columns.item_id), reward, propensity)
    good = np.flatnonzero(reasons == "")
    counts = Counter(reasons[reasons != ""].tolist())
    if not len(good):
        raise DataContractError(f"{url}: none of {table.num_rows:,} impressions can be used: {dict(counts)}")
    kept = table.take(pa.array(good))
    items, item = _codes(kept.column(columns.item_id))
    policies, policy = _codes(kept.column(columns.policy)) if columns.policy else (("log",), np.zeros(len(good), int))
    _, position = _codes(kept.column(columns.position)) if columns.position else ((), np.zeros(len(good), int))
    return Impressions(
        item=item,
        items=items,
        reward=reward[good],
        propensity=propensity[good],
        policy=policy,
        policies=policies,
        position=position,
        context=_context(kept, columns.context),
        history=_history(kept, columns.history, items),
        quarantined=dict(counts),
    )


def _numbers(table: pa.Table, name: str, url: str) -> np.ndarray:
    try:
        return table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        kind = table.schema.field(name).type
        raise DataContractError(f"{url}: {name} is {kind}, expected numbers ({error})") from None


def _reasons(items: pa.ChunkedArray, reward: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """[N] why a row cannot be used; empty where it can."""
    no_item = items.is_null().to_numpy()
    with np.errstate(invalid="ignore"):
        not_in_range = ~((propensity > 0) & (propensity <= 1))
        no_reward = ~((reward == 0) | (reward == 1))
    conditions = [no_item, np.isnan(propensity), not_in_range, no_reward]
    names = ["no item", "no propensity", "propensity not above 0 and up to 1", "reward neither 0 nor 1"]
    return np.select(conditions, names, "")


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """Different values as text, ascending, and the place of each row among them; a missing value is the text null."""
    values = column.combine_chunks().cast(pa.large_string()).fill_null("null")
    encoded = values.dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist())
    order = np.argsort(names)
    places = np.empty(len(names), np.int64)
    places[order] = np.arange(len(names))
    return tuple(names[order].tolist()), places[encoded.indices.to_numpy()]


def _context(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    parts = [
        hash_values(table.column(name).combine_chunks().cast(pa.large_string()), NUM_CONTEXT_ROWS) for name in names
    ]
    return np.stack(parts, axis=1) if parts else np.zeros((table.num_rows, 0), np.int32)


def _history(table: pa.Table, name: str | None, items: tuple[str, ...]) -> np.ndarray:
    """[N, H] items of a list column, those that are ever shown; others and padding are 0."""
    if name is None:
        return np.zeros((table.num_rows, 0), np.int64)
    places = pl.DataFrame({"item": items, "place": np.arange(1, len(items) + 1)})
    lists = pl.DataFrame({"item": pl.Series(table.column(name)).cast(pl.List(pl.String))}).with_row_index("row")
    flat = lists.explode("item").drop_nulls().join(places, on="item", how="left", maintain_order="left")
    flat = flat.with_columns(pl.int_range(pl.len()).over("row").alias("at"))
    longest = int(flat["at"].to_numpy().max(initial=-1)) + 1
    history = np.zeros((table.num_rows, longest), np.int64)
    history[flat["row"].to_numpy(), flat["at"].to_numpy()] = flat["place"].fill_null(0).to_numpy()
    return history
