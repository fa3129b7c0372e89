"""Anomaly: how odd the signs of a user are among users of the same history length.

The score is the mean over signs of minus the log of the share of such users who are at least as odd, as in ECOD: about
1 for a usual user, whatever the signs are. Invariant: what others are like comes from a bounded sample, and is a table
of quantiles that goes with the run.

Source: Li et al. 2022, "ECOD: Unsupervised outlier detection using empirical cumulative distribution functions", IEEE
TKDE 35(12); there signs are summed, and their odd side is the longer tail, where here it is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

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
        """[U] share of users of like history length whose sign is at least as odd; not-a-number where not known.

        Beyond those who were seen it is at most Cantelli's bound, 1 / (1 + deviation squared).
        """
        side = SIDES[name]
        tails = np.full(len(values), np.nan)
        for own, known, size in self._parts(name, values, lengths):
            odd, spreads = _deviations(known, values[own])
            bound = 1 / (1 + odd**2) if spreads else np.ones(len(odd))
            high = np.minimum(_share_at_least(known, size, values[own]), np.where(odd > 0, bound, 1.0))
            low = np.minimum(_share_at_least(-known[::-1], size, -values[own]), np.where(odd < 0, bound, 1.0))
            tails[own] = {"high": high, "low": low, "both": np.minimum(2 * np.minimum(high, low), 1.0)}[side]
        return tails

    def deviation(self, name: str, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[U] distance from the median of users of like history length, in robust standard deviations (the range
        between quartiles over 1.349)."""
        found = np.full(len(values), np.nan)
        for own, known, _ in self._parts(name, values, lengths):
            found[own] = _deviations(known, values[own])[0]
        return found

    def _parts(self, name: str, values: np.ndarray, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Users of each bin who have the sign, its known values there, and of how many users those are."""
        place = np.searchsorted(self.edges, lengths, side="right")
        bins = enumerate(zip(self.quantiles.get(name, []), self.sizes.get(name, []), strict=True))
        found = (((place == number) & ~np.isnan(values), np.array(known), size) for number, (known, size) in bins)
        return [(own, known, size) for own, known, size in found if size]


def _deviations(known: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, bool]:
    """[U] robust deviations of values from the known ones, and whether these spread at all."""
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    return (values - middle) / max((high - low) / _IQR_OF_NORMAL, _LEAST_SCALE), bool(high > low)


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
    """[U] mean over signs that anybody has of minus the log of the tail.

    A sign that a user has not counts 1, as it does on average.
    """
    told = [name for name in signs if any(reference.sizes.get(name, []))]
    tails = [reference.tail(name, signs[name], lengths) for name in told]
    logs = [np.where(np.isnan(tail), 1.0, -np.log(np.nan_to_num(tail, nan=1.0))) for tail in tails]
    return np.mean(logs, axis=0) if logs else np.ones(len(lengths))
