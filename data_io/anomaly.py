"""Anomaly: how odd the signs of a user are among users of the same history length, and alerts in words.

The score is the mean over signs of minus the log of the share of such users who are at least as odd, as in ECOD: about
1 for a usual user, whatever the signs are. Invariant: what others are like comes from a bounded sample, and is a table
of quantiles that goes with the run.

Source: Li et al. 2022, "ECOD: Unsupervised outlier detection using empirical cumulative distribution functions", IEEE
TKDE 35(12); there signs are summed, and their odd side is the longer tail, where here it is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from data_io.quality.behaviour import ROBOT_MOMENTS_PER_HOUR, ROBOT_MOMENTS_PER_MINUTE

Side = Literal["high", "low", "both"]
SIDES: dict[str, Side] = {
    "surprise": "both",
    "surprise_shift": "high",
    "moments_per_day": "high",
    "gap_variation": "low",
    "action_share": "high",
    "item_burst": "high",
    "seller_burst": "high",
}
"""Which side of each sign is odd."""
ALERTS = ("bot", "brushing", "takeover", "unusual")
"""Kinds of alerts, in the order they are listed."""
_MOST_BINS = 10
_LEAST_IN_BIN = 100
_MOST_QUANTILES = 513
_IQR_OF_NORMAL = 1.349
_LEAST_SCALE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What signs are like among users, by history length; JSON content by `dataclasses.asdict`."""

    edges: list[float]
    """Rising history lengths at which the next bin begins."""
    quantiles: dict[str, list[list[float]]]
    """By sign and bin, rising values at even shares of the users; empty where nobody has the sign."""
    sizes: dict[str, list[int]]
    """By sign and bin, users it was seen of."""

    @classmethod
    def of(cls, lengths: np.ndarray, signs: Mapping[str, np.ndarray]) -> "Reference":
        """The reference of a sample of N users with history lengths [N] and signs [N]."""
        edges = _length_edges(lengths)
        place = np.searchsorted(edges, lengths, side="right")
        quantiles: dict[str, list[list[float]]] = {}
        sizes: dict[str, list[int]] = {}
        for name, values in signs.items():
            known = [values[(place == number) & ~np.isnan(values)] for number in range(len(edges) + 1)]
            quantiles[name] = [_quantiles(part) for part in known]
            sizes[name] = [len(part) for part in known]
        return cls(edges=edges, quantiles=quantiles, sizes=sizes)

    def tail(self, name: str, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[U] share of users of like history length whose sign is at least as odd; not-a-number where not known."""
        side = SIDES[name]
        tails = np.full(len(values), np.nan)
        for own, known, size in self._parts(name, values, lengths):
            high = _share_at_least(known, size, values[own])
            low = _share_at_least(-known[::-1], size, -values[own])
            tails[own] = {"high": high, "low": low, "both": np.minimum(2 * np.minimum(high, low), 1.0)}[side]
        return tails

    def deviation(self, name: str, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[U] distance from the median of users of like history length, in robust standard deviations (the range
        between quartiles over 1.349)."""
        found = np.full(len(values), np.nan)
        for own, known, _ in self._parts(name, values, lengths):
            low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
            found[own] = (values[own] - middle) / max((high - low) / _IQR_OF_NORMAL, _LEAST_SCALE)
        return found

    def _parts(self, name: str, values: np.ndarray, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Users of each bin who have the sign, its known values there, and of how many users those are."""
        place = np.searchsorted(self.edges, lengths, side="right")
        bins = enumerate(zip(self.quantiles.get(name, []), self.sizes.get(name, []), strict=True))
        found = (((place == number) & ~np.isnan(values), np.array(known), size) for number, (known, size) in bins)
        return [(own, known, size) for own, known, size in found if size]


def _length_edges(lengths: np.ndarray) -> list[float]:
    num_bins = int(np.clip(len(lengths) // _LEAST_IN_BIN, 1, _MOST_BINS))
    if not len(lengths):
        return []
    edges = np.unique(np.quantile(lengths, np.arange(1, num_bins) / num_bins, method="inverted_cdf"))
    return edges[edges > lengths.min()].astype(float).tolist()


def _quantiles(values: np.ndarray) -> list[float]:
    num_points = min(len(values), _MOST_QUANTILES)
    return np.quantile(values, np.linspace(0, 1, num_points)).tolist() if num_points else []


def _share_at_least(known: np.ndarray, size: int, values: np.ndarray) -> np.ndarray:
    """[U] share of users whose value is at least as high, each user counted among them."""
    above = (len(known) - np.searchsorted(known, values, side="left")) / len(known)
    return (above * size + 1) / (size + 1)


def anomaly_scores(reference: Reference, signs: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """[U] mean over signs of minus the log of the tail; a sign that is not known counts 1, as it does on average."""
    tails = [reference.tail(name, values, lengths) for name, values in signs.items()]
    logs = [np.where(np.isnan(tail), 1.0, -np.log(np.nan_to_num(tail, nan=1.0))) for tail in tails]
    return np.mean(logs, axis=0) if logs else np.ones(len(lengths))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLimits:
    """From where on a user is alerted to."""

    deviations: float
    """Robust standard deviations of surprise, and of its shift."""
    gap_variation: float
    """Variation of gaps up to which they are a clockwork's."""
    purchases: int
    """Purchases of one item, or from one seller, within 24 hours."""


def find_alerts(
    signs: Mapping[str, np.ndarray],
    robots: np.ndarray,
    reference: Reference,
    lengths: np.ndarray,
    limits: AlertLimits,
) -> pl.DataFrame:
    """Columns alerts and alert_reasons: lists of kinds (see `ALERTS`) and of reasons in words, empty for most users.

    Args:
        signs: [U] by name.
        robots: [rules, U] who breaks which of `data_io.quality.behaviour.ROBOT_RULES`.
        reference: what others are like.
        lengths: [U] history lengths.
        limits: of the alerts.
    """
    odd = {name: reference.deviation(name, signs[name], lengths) for name in ("surprise", "surprise_shift")}
    known = {name: np.nan_to_num(values, nan=-np.inf) for name, values in signs.items()}
    gaps = np.nan_to_num(signs["gap_variation"], nan=np.inf)
    frame = pl.DataFrame({**signs, **{f"odd_{name}": values for name, values in odd.items()}})
    per_hour, per_minute = ROBOT_MOMENTS_PER_HOUR, ROBOT_MOMENTS_PER_MINUTE
    found = [
        ("bot", robots[0], pl.lit(f"more than {per_hour} moments with events in an hour")),
        ("bot", robots[1], pl.lit(f"more than {per_minute} moments with events in a minute")),
        ("bot", robots[2], pl.lit("events in all 24 hours of a day")),
        ("bot", gaps <= limits.gap_variation, _text("gaps as regular as a clock's (variation {})", "gap_variation", 2)),
        ("brushing", known["item_burst"] >= limits.purchases, _text("{} purchases of one item in 24 h", "item_burst")),
        (
            "brushing",
            known["seller_burst"] >= limits.purchases,
            _text("{} purchases from one seller in 24 h", "seller_burst"),
        ),
        (
            "takeover",
            np.nan_to_num(odd["surprise_shift"]) >= limits.deviations,
            _text("newest events {} nats less expected than those before", "surprise_shift", 1),
        ),
        (
            "unusual",
            np.abs(np.nan_to_num(odd["surprise"])) >= limits.deviations,
            _text(
                "mean surprise {} nats, {} deviations from users with as long a history", "surprise", 1, "odd_surprise"
            ),
        ),
    ]
    columns = [pl.when(pl.lit(pl.Series(is_so))).then(text) for _, is_so, text in found]
    kinds = [pl.when(pl.lit(pl.Series(is_so))).then(pl.lit(kind)) for kind, is_so, _ in found]
    return frame.select(
        pl.concat_list(kinds).list.drop_nulls().list.unique(maintain_order=True).alias("alerts"),
        pl.concat_list(columns).list.drop_nulls().alias("alert_reasons"),
    )


def _text(template: str, name: str, digits: int = 0, further: str | None = None) -> pl.Expr:
    def number(column: str) -> pl.Expr:
        rounded = pl.col(column).round(digits)
        return rounded.cast(pl.Int64, strict=False) if digits == 0 else rounded

    return pl.format(template, number(name), *([number(further)] if further else []))


def count_alerts(alerts: pl.Series) -> dict[str, int]:
    """Users by kind of alert, of a column of lists."""
    counts = alerts.explode(empty_as_null=False).drop_nulls().value_counts()
    found: dict[str, Any] = dict(counts.iter_rows())
    return {kind: int(found.get(kind, 0)) for kind in ALERTS}
