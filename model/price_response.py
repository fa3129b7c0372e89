"""Price response: how an encoder's scores of a user move with price, among items of one category.

Scores are dot products, so the slope of a least-squares line through a user's scores over the whole catalogue is a dot
product too: of the user's vector with one direction, the same for all users. Invariant: nothing is sampled, and what
items have in common for all users, such as being popular, has no part in it.
"""

import numpy as np
import polars as pl

from data_io.item_facts import ItemFacts


def price_direction(vectors: np.ndarray, facts: ItemFacts) -> np.ndarray | None:
    """[D] direction whose dot product with a user's vector is the slope of the user's scores over log price.

    The slope is that of weighted least squares with an effect of its own for each category and one of log popularity,
    items weighing as much as they have events (Frisch-Waugh-Lovell: price is freed of both first).

    Args:
        vectors: [V, D] of items, as states are held against them.
        facts: of the items; those beyond V are left out.

    Returns:
        None where no category has two prices.
    """
    size = len(vectors)
    category, price, weight = (part[:size] for part in (facts.category.code, facts.log_price, facts.num_events))
    used = (category >= 0) & ~np.isnan(price) & (weight > 0)
    if not used.any():
        return None
    category, weight = category[used], weight[used].astype(np.float64)
    price, popularity = (_within(values, category, weight) for values in (price[used], np.log(weight)))
    spread = (weight * popularity**2).sum()
    slope = (weight * popularity * price).sum() / spread if spread > 0 else 0.0
    freed = price - slope * popularity
    total = (weight * freed**2).sum()
    return (weight * freed) @ vectors[used].astype(np.float64) / total if total > 1e-9 else None


def _within(values: np.ndarray, category: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[P] values less the weighted mean of their category."""
    sums = np.bincount(category, weight * values)
    return values - (sums / np.maximum(np.bincount(category, weight), 1e-12))[category]


def price_sensitivities(embeddings: np.ndarray, mean: np.ndarray, direction: np.ndarray | None) -> np.ndarray:
    """[U] by how much more than for the average user the log-odds of an item fall when its price is twice as high.

    Above 0: drawn to the cheaper items of a category; below 0: to the dearer. Not-a-number where there is no direction.

    Args:
        embeddings: [U, D].
        mean: [D] embedding of the average user.
        direction: as `price_direction` gives it.
    """
    if direction is None:
        return np.full(len(embeddings), np.nan)
    return -np.log(2) * (embeddings.astype(np.float64) - mean) @ direction


def cheap_shares(user: np.ndarray, relative_price: np.ndarray, num_users: int) -> np.ndarray:
    """[U] share of a user's events whose item costs less than the median of its category; not-a-number for none.

    Args:
        user: row of the user of each event.
        relative_price: log price over the category's median of each event's item; not-a-number counts nowhere.
        num_users: U.
    """
    frame = pl.DataFrame({"user": user, "cheap": relative_price < 0}).filter(pl.Series(~np.isnan(relative_price)))
    found = frame.group_by("user").agg(pl.col("cheap").mean())
    shares = np.full(num_users, np.nan)
    shares[found["user"].to_numpy()] = found["cheap"].to_numpy()
    return shares
