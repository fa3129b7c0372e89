"""Preferences: what a user has most often, when, on what, and at which prices.

Pure functions of the flat events of a bucket, a user's row beside each. Invariant: nothing here calls Python once a
user, and a user without a fact has null, not a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.item_facts import ItemFacts
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences

DAY_HOURS = 24
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_PARTS = ("0 to 6 h UTC", "6 to 12 h UTC", "12 to 18 h UTC", "18 to 24 h UTC")
BAND_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Quantiles of the log's prices between the price bands 1 (cheapest) to 5."""
_HOUR_US = 3_600_000_000
_MONDAY_HOURS = 3 * DAY_HOURS
"""1970 began on a Thursday."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The events of a bucket with what profiles read of them; every array is [E]."""

    sequences: Sequences
    user: np.ndarray
    """Row of the user."""
    price: np.ndarray
    """float64 price of the event, or of its item; not-a-number where neither is known."""
    features: Mapping[str, pl.Series]
    """Declared categorical columns of the events, by name; null where missing."""

    @classmethod
    def of(
        cls, sequences: Sequences, price: np.ndarray | None, features: Mapping[str, pl.Series], facts: ItemFacts
    ) -> "Events":
        """Events of a bucket.

        Args:
            sequences: U users.
            price: [E] of the events; None: the log has none.
            features: categorical columns of the events.
            facts: of the items.
        """
        own = np.full(len(sequences.item_index), np.nan) if price is None else price.astype(np.float64)
        of_item = np.exp(facts.log_price[sequences.item_index])
        return cls(
            sequences=sequences,
            user=np.repeat(np.arange(sequences.num_users), np.diff(sequences.offsets)),
            price=np.where(own > 0, own, of_item),
            features=features,
        )

    @property
    def hour(self) -> np.ndarray:
        """[E] hour of the day, UTC."""
        return self.sequences.event_time // _HOUR_US % DAY_HOURS

    @property
    def weekday(self) -> np.ndarray:
        """[E] day of the week, 0 for Monday, UTC."""
        return (self.sequences.event_time // _HOUR_US + _MONDAY_HOURS) // DAY_HOURS % 7


def top_values(
    user: np.ndarray, code: np.ndarray, names: Sequence[str | int], num_users: int, most: int
) -> pa.ListArray:
    """[U] the values each user has most often, most frequent first, ties by code; null where there is none.

    Args:
        user, code: of events; a code below 0 is no value.
        names: of the codes.
        num_users: U.
        most: values of a user.
    """
    kept = code >= 0
    counts = pl.DataFrame({"user": user[kept].astype(np.int64), "code": code[kept].astype(np.int64)})
    best = (
        counts.group_by("user", "code")
        .agg(pl.len().alias("n"))
        .sort(["user", "n", "code"], descending=[False, True, False])
        .group_by("user", maintain_order=True)
        .agg(pl.col("code").head(most))
    )
    everyone = pl.DataFrame({"user": np.arange(num_users)}).join(best, on="user", how="left", maintain_order="left")
    lists = everyone["code"].to_arrow().cast(pa.list_(pa.int64()))
    kind = pa.int32() if len(names) and isinstance(names[0], int) else pa.string()
    values = pa.array(list(names), kind).take(lists.flatten())
    lengths = np.where(everyone["code"].is_null().to_numpy(), 0, everyone["code"].list.len().fill_null(0).to_numpy())
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), mask=None)
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(everyone["code"].is_null().to_numpy()))


def top_of_texts(user: np.ndarray, values: pl.Series, num_users: int, most: int) -> pa.ListArray:
    """The same of a column of texts."""
    names = values.drop_nulls().unique().sort()
    places = pl.DataFrame({"name": names}).with_row_index("code")
    found = pl.DataFrame({"name": values}).join(places, on="name", how="left", maintain_order="left")["code"]
    return top_values(user, found.cast(pl.Int64).fill_null(-1).to_numpy(), names.to_list(), num_users, most)


def share_of(user: np.ndarray, is_so: np.ndarray, counted: np.ndarray, num_users: int) -> np.ndarray:
    """[U] share of the counted events that are so; not-a-number where a user has none that counts."""
    total = np.bincount(user[counted], minlength=num_users)
    found = np.bincount(user[counted & is_so], minlength=num_users)
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def median_prices(events: Events, counted: np.ndarray) -> np.ndarray:
    """[U] median price of the counted events that have one; not-a-number where none has."""
    kept = counted & (events.price > 0)
    frame = pl.DataFrame({"user": events.user[kept], "price": events.price[kept]})
    medians = np.full(events.sequences.num_users, np.nan)
    found = frame.group_by("user").agg(pl.col("price").median())
    medians[found["user"].to_numpy()] = found["price"].to_numpy()
    return medians


def price_bands(prices: np.ndarray, edges: Sequence[float]) -> pa.Array:
    """[U] band 1 to 5 of each price among the log's quantiles; null where the price is not known."""
    known = ~np.isnan(prices) & bool(len(edges))
    bands = np.searchsorted(np.asarray(edges, np.float64), np.nan_to_num(prices), side="right") + 1
    return pa.array(bands.astype(np.int32), mask=~known)


def shares_of_terms(events: Events, facts: ItemFacts, actions: Sequence[str], chosen: np.ndarray) -> pl.DataFrame:
    """What users have, as shares: columns user, group, term and share; the shares of a user add up to 1 in each group.

    Groups are category, action, time of day, weekday or weekend, and each categorical column of the events.

    Args:
        events: of a bucket.
        facts: of its items.
        actions: names, the first of index 2.
        chosen: [U] whose shares are wanted.
    """
    items, known_action = events.sequences.item_index, events.sequences.action_index >= FIRST_INDEX
    category = facts.category.code[items]
    groups = [
        ("category", category, facts.category.names),
        ("action", np.where(known_action, events.sequences.action_index - FIRST_INDEX, -1), list(actions)),
        ("time", events.hour // (DAY_HOURS // len(DAY_PARTS)), list(DAY_PARTS)),
        ("day", (events.weekday >= 5).astype(np.int64), ["weekdays", "weekends"]),
    ]
    parts = [_shares(events.user, pl.Series(code), group, names) for group, code, names in groups if names]
    parts += [_shares(events.user, values, name, None) for name, values in events.features.items()]
    whole = pl.concat(parts)
    return whole.filter(pl.col("user").is_in(np.flatnonzero(chosen)))


def _shares(user: np.ndarray, values: pl.Series, group: str, names: Sequence[str] | None) -> pl.DataFrame:
    frame = pl.DataFrame({"user": user.astype(np.int64), "value": values})
    frame = frame.filter(pl.col("value") >= 0) if names is not None else frame.drop_nulls()
    counts = frame.group_by("user", "value").agg(pl.len().alias("n"))
    shares = counts.with_columns((pl.col("n") / pl.col("n").sum().over("user")).alias("share"))
    term = pl.col("value") if names is None else pl.lit(pl.Series(list(names))).gather(pl.col("value").cast(pl.UInt32))
    return shares.select("user", pl.lit(group).alias("group"), term.cast(pl.String).alias("term"), "share")
