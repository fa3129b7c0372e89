"""Segments: groups of users whose embeddings lie close together, and how stable such groups are.

Embeddings are scaled to length 1, centred, and turned onto their leading principal components, which keeps what most
users differ in and drops what few do; then k-means, the best of many starts. Fitted on a bounded sample. Invariant: a
user's segment depends on the user's own embedding and on what was fitted, so buckets can be assigned anywhere.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

CANDIDATES = range(3, 11)
"""Numbers of segments that are tried where the settings name none."""
NUM_COMPONENTS = 8
"""Principal components that are kept, at most."""
_NUM_FITS = 5
"""Fits, each with a seed and a sample of its own, whose agreement is stability: ten pairs."""
_SAMPLE_SHARE = 2 / 3
"""Share of the users of a part that one of these fits sees."""
_REPORT_SHARE = 0.4
"""Share of the sample on which stability is reported, and which has no say in the number of segments."""
_AS_STABLE = 0.05
"""Adjusted Rand index by which a number of segments may be less stable than the most stable: few segments are stable
with ease, and say little."""
_NUM_STARTS = 20
_NUM_STEPS = 100
_NUM_BLOCKS = 20
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """What puts users into K segments."""

    mean: np.ndarray
    """[D] of embeddings of length 1."""
    components: np.ndarray
    """[C, D] leading principal components."""
    centres: np.ndarray
    """[K, C] of the segments, the largest first."""

    @property
    def num_segments(self) -> int:
        """K."""
        return len(self.centres)

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """[U, C] embeddings [U, D] where segments are told apart."""
        return (_to_length_1(embeddings) - self.mean) @ self.components.T

    def assign(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment [U] int32 of users with embeddings [U, D], and how clear it is [U]: 1 minus the distance to its
        centre over that to the next one, 0 being half-way."""
        distances = _distances(self.project(embeddings), self.centres)
        order = np.argsort(distances, axis=1, kind="stable")
        near = np.take_along_axis(distances, order[:, :2], axis=1)
        if self.num_segments == 1:
            return order[:, 0].astype(np.int32), np.ones(len(embeddings))
        return order[:, 0].astype(np.int32), 1 - near[:, 0] / np.maximum(near[:, 1], 1e-12)

    def to_json(self) -> dict[str, Any]:
        """The segmentation as JSON content."""
        return {name: getattr(self, name).tolist() for name in ("mean", "components", "centres")}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Segmentation":
        """The segmentation that `to_json` gave this content."""
        return cls(**{name: np.array(values, np.float64) for name, values in content.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How far fits that differ in seed and sample put the same users together: adjusted Rand index, 1 for alike."""

    value: float
    """Mean over pairs of fits, on users that no fit saw."""
    low: float
    high: float
    """95 % interval over these users (jackknife of blocks)."""
    least: float
    """Of the least alike pair."""
    seeds_only: float
    """Mean over pairs of fits that saw the same users and differ in their seed alone."""
    num_users: int
    """Users it was measured on."""
    by_num_segments: dict[int, float]
    """Mean over pairs for each number of segments that was tried, on the users that have a say in it."""


def fit_segments(
    embeddings: np.ndarray, num_segments: int | None, seed: int, candidates: Sequence[int] = CANDIDATES
) -> tuple[Segmentation, Stability]:
    """Segments of a sample of users and their stability.

    Args:
        embeddings: [N, D] of the sample.
        num_segments: K; None: the most of the candidates that are about as stable as any.
        seed: of everything drawn.
        candidates: numbers to choose from.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(embeddings))
    num_held = int(_REPORT_SHARE * len(embeddings))
    held, rest = embeddings[order[:num_held]], embeddings[order[num_held:]]
    tried = {k: _mean_agreement(_labels(rest, rest, k, [seed, 1, k])) for k in candidates if 2 * k <= len(rest)}
    chosen = num_segments or choose_number(tried)
    labels = _labels(rest, held, chosen, [seed, 2])
    low, high = _interval(labels)
    alike = [fit_once(embeddings, chosen, [seed, 3, number]).assign(held)[0] for number in range(_NUM_FITS)]
    return fit_once(embeddings, chosen, [seed, 4]), Stability(
        value=_mean_agreement(labels),
        low=low,
        high=high,
        least=min((adjusted_rand(a, b) for a, b in combinations(labels, 2)), default=1.0),
        seeds_only=_mean_agreement(alike),
        num_users=len(held),
        by_num_segments=tried,
    )


def choose_number(tried: Mapping[int, float]) -> int:
    """The most segments that are about as stable as any, given the stability of each number; 1 where none was tried."""
    return max((k for k, value in tried.items() if value >= max(tried.values()) - _AS_STABLE), default=1)


def fit_once(embeddings: np.ndarray, num_segments: int, seed: Sequence[int]) -> Segmentation:
    """One fit: K-means of embeddings [N, D], the best of `_NUM_STARTS` starts.

    Source:
        Starts by Arthur and Vassilvitskii 2007, "k-means++".
    """
    unit = _to_length_1(embeddings)
    mean = unit.mean(axis=0)
    _, scale, directions = np.linalg.svd(unit - mean, full_matrices=False)
    components = directions[: min(NUM_COMPONENTS, int((scale > 1e-9).sum()) or 1)]
    points = (unit - mean) @ components.T
    num_segments = min(num_segments, len(np.unique(points, axis=0)))
    generator = np.random.default_rng(list(seed))
    best, least = points[:1], np.inf
    for _ in range(_NUM_STARTS):
        with warnings.catch_warnings():  # of a start whose cluster became empty, which costs more and is not taken
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            centres, labels = kmeans2(points, num_segments, iter=_NUM_STEPS, minit="++", rng=generator)
        cost = float(((points - centres[labels]) ** 2).sum())
        if cost < least:
            best, least = centres, cost
    sizes = np.bincount(_distances(points, best).argmin(axis=1), minlength=len(best))
    return Segmentation(mean=mean, components=components, centres=best[np.argsort(-sizes, kind="stable")])


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Adjusted Rand index of two labellings [N]: 1 where they group alike, about 0 where by chance.

    Source:
        Hubert and Arabie 1985, "Comparing partitions", eq. 5.
    """
    counts = np.zeros((int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1))
    np.add.at(counts, (first, second), 1)
    pairs, rows, columns = (_pairs(own) for own in (counts, counts.sum(axis=1), counts.sum(axis=0)))
    expected = rows * columns / max(_pairs(np.array([len(first)])), 1)
    most = (rows + columns) / 2
    return 1.0 if most == expected else float((pairs - expected) / (most - expected))


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _labels(seen: np.ndarray, asked: np.ndarray, num_segments: int, seed: list[int]) -> list[np.ndarray]:
    """Segments [U] of users by several fits, each with a seed of its own on a sample of its own."""
    found = []
    for number in range(_NUM_FITS):
        drawn = np.random.default_rng([*seed, number]).permutation(len(seen))[: int(_SAMPLE_SHARE * len(seen))]
        found.append(fit_once(seen[drawn], num_segments, [*seed, number, 1]).assign(asked)[0])
    return found


def _mean_agreement(labels: list[np.ndarray]) -> float:
    return float(np.mean([adjusted_rand(first, second) for first, second in combinations(labels, 2)]))


def _interval(labels: list[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the mean agreement over users, by jackknife of blocks of users.

    A bootstrap would draw users twice, and a user always agrees with itself.

    Source:
        Tukey 1958, "Bias and confidence in not-quite large samples", Annals of Mathematical Statistics 29.
    """
    value, num_users = _mean_agreement(labels), len(labels[0])
    block = np.arange(num_users) % _NUM_BLOCKS  # users stand in random order
    left = np.array([_mean_agreement([own[block != number] for own in labels]) for number in range(_NUM_BLOCKS)])
    error = float(np.sqrt((_NUM_BLOCKS - 1) * ((left - left.mean()) ** 2).mean()))
    return value - _NORMAL_95 * error, min(value + _NORMAL_95 * error, 1.0)


def _to_length_1(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[U, K] distances."""
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    return np.sqrt(np.maximum(squares, 0))
