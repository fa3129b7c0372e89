"""Binary outcomes by score as counts: area, its interval, calibration and curve of any number of users.

Pure NumPy. Counts of parts of the users add up to those of all, so nobody needs the users in one place. Invariant: what
is held is bounded; scores are told apart to the last bit of a 32-bit float until more than `MAX_CELLS` differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model.metrics import log_loss

MAX_CELLS = 1 << 18
_MERGED_AT = 4
_SIGN = np.uint32(1 << 31)
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCounts:
    """How many positives and negatives have each score, scores rising."""

    keys: np.ndarray
    """[C] uint32, rising: scores as numbers of the same order, without their last `shift` bits."""
    positive: np.ndarray
    """[C] int64."""
    negative: np.ndarray
    """[C] int64."""
    shift: int = 0

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray) -> "ScoreCounts":
        """Counts of users with labels [N], 0 or 1, and scores [N]."""
        keys, place = np.unique(_ordered(scores), return_inverse=True)
        positive = np.bincount(place, labels > 0.5, len(keys)).astype(np.int64)
        negative = np.bincount(place, minlength=len(keys)).astype(np.int64) - positive
        return _bounded(cls(keys=keys, positive=positive, negative=negative))

    def with_shift(self, shift: int) -> "ScoreCounts":
        """The same with scores told apart without their last `shift` bits."""
        return _grouped(self.keys >> np.uint32(shift - self.shift), self.positive, self.negative, shift)

    @property
    def num_positive(self) -> int:
        """Users with the outcome."""
        return int(self.positive.sum())

    @property
    def num_negative(self) -> int:
        """Users without it."""
        return int(self.negative.sum())

    @property
    def num_users(self) -> int:
        """All users."""
        return self.num_positive + self.num_negative

    @property
    def rate(self) -> float:
        """Share of the users with the outcome; not-a-number where there is no user."""
        return self.num_positive / self.num_users if self.num_users else float("nan")

    def area(self) -> float:
        """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

        Not-a-number where one of the classes is absent.
        """
        if not self.num_positive or not self.num_negative:
            return float("nan")
        above = float(self.positive @ _below(self.negative))
        return above / (self.num_positive * self.num_negative)

    def placements(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """[N] for each user, the share of the other class that the score is on the right side of; their mean over
        either class is the area (DeLong et al. 1988, "Comparing the areas under two or more correlated receiver
        operating characteristic curves", eq. 4)."""
        place = np.searchsorted(self.keys, _ordered(scores) >> np.uint32(self.shift))
        below = _below(self.negative)[place] / max(self.num_negative, 1)
        above = 1 - _below(self.positive)[place] / max(self.num_positive, 1)
        return np.where(labels > 0.5, below, above)

    def log_loss_of(self, probability: float) -> float:
        """Mean negative log likelihood of one probability for all."""
        if not self.num_users:
            return float("nan")
        of_one, of_none = (log_loss(np.array([label]), np.array([probability])) for label in (1.0, 0.0))
        return (self.num_positive * of_one + self.num_negative * of_none) / self.num_users

    def calibration(self, num_bins: int) -> list[dict[str, float]]:
        """Mean score and rate of the outcome in equal parts of the users, by rising score; equal scores share."""
        ends = np.linspace(0, self.num_users, min(num_bins, self.num_users) + 1).round()
        users = self.positive + self.negative
        predicted, observed = (
            np.diff(np.interp(ends, _sums(users), _sums(own))) for own in (_scores_of(self) * users, self.positive)
        )
        return [
            {"predicted": float(score / size), "observed": float(seen / size)}
            for score, seen, size in zip(predicted, observed, np.diff(ends), strict=True)
        ]

    def calibration_error(self, num_bins: int) -> float:
        """Mean distance of score and rate in equal parts of the users (Naeini et al. 2015, "Obtaining well calibrated
        probabilities using Bayesian binning", with parts of equal size)."""
        bins = self.calibration(num_bins)
        distances = [abs(part["predicted"] - part["observed"]) for part in bins]
        return float(np.mean(distances)) if distances else float("nan")

    def curve(self, num_points: int) -> list[tuple[float, float]]:
        """Points (false positive rate, true positive rate) of the ROC curve, from corner to corner."""
        ends = np.unique(np.linspace(0, self.num_users, num_points + 1).round())
        falling = [own[::-1] for own in (self.positive + self.negative, self.negative, self.positive)]
        users, negative, positive = (_sums(own) for own in falling)
        wrong, right = (np.interp(ends, users, own) / max(int(own[-1]), 1) for own in (negative, positive))
        return list(zip(wrong.tolist(), right.tolist(), strict=True))


def total_counts(rows: Iterable[Sequence[ScoreCounts]]) -> list[ScoreCounts]:
    """Counts of the users of all rows, place by place; rows may come one after the other."""
    held: list[list[ScoreCounts]] = []
    for row in rows:
        held = held or [[] for _ in row]
        for place, part in enumerate(row):
            held[place].append(part)
            if sum(len(own.keys) for own in held[place]) > _MERGED_AT * MAX_CELLS:
                held[place] = [_merged(held[place])]
    return [_merged(parts) for parts in held]


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaMoments:
    """Sums over users from which follows how areas of S scores of the same users vary together; they add up.

    Source: DeLong et al. 1988, eq. 5 and 6: asymptotic, without resampling.
    """

    areas: np.ndarray
    """[S] areas, about which moments are."""
    products: np.ndarray
    """[2, S, S] sums of products of placements less areas, over negatives and over positives."""
    counts: np.ndarray
    """[2] negatives and positives."""

    @classmethod
    def of(cls, labels: np.ndarray, scores: list[np.ndarray], counts: list[ScoreCounts]) -> "AreaMoments":
        """Moments of some users with labels [N] and S scores [N], within all users, whose counts are given."""
        areas = np.array([own.area() for own in counts])
        placed = np.stack([own.placements(labels, of) for own, of in zip(counts, scores, strict=True)]) - areas[:, None]
        parts = [placed[:, (labels > 0.5) == label] for label in (False, True)]
        products = np.stack([part @ part.T for part in parts])
        return cls(areas=areas, products=products, counts=np.array([part.shape[1] for part in parts]))

    def __add__(self, other: "AreaMoments") -> "AreaMoments":
        return AreaMoments(areas=self.areas, products=self.products + other.products, counts=self.counts + other.counts)

    def interval(self, weights: list[float]) -> tuple[float, float]:
        """95 % interval of the sum of areas by weights [S]; not-a-number with fewer than two of a class."""
        if self.counts.min() < 2:
            return float("nan"), float("nan")
        covariance = sum(own / (count * (count - 1)) for own, count in zip(self.products, self.counts, strict=True))
        by = np.array(weights)
        value, error = float(by @ self.areas), float(np.sqrt(max(by @ covariance @ by, 0.0)))
        return value - _NORMAL_95 * error, value + _NORMAL_95 * error


def _ordered(scores: np.ndarray) -> np.ndarray:
    """[N] scores as uint32 of the same order."""
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _scores_of(counts: ScoreCounts) -> np.ndarray:
    """[C] the smallest score of each key."""
    keys = counts.keys << np.uint32(counts.shift)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32).astype(np.float64)


def _merged(parts: list[ScoreCounts]) -> ScoreCounts:
    shift = max(part.shift for part in parts)
    alike = [part.with_shift(shift) for part in parts]
    keys = np.concatenate([part.keys for part in alike])
    positive = np.concatenate([part.positive for part in alike])
    return _bounded(_grouped(keys, positive, np.concatenate([part.negative for part in alike]), shift))


def _grouped(keys: np.ndarray, positive: np.ndarray, negative: np.ndarray, shift: int) -> ScoreCounts:
    distinct, place = np.unique(keys, return_inverse=True)
    totals = [np.bincount(place, own, len(distinct)).astype(np.int64) for own in (positive, negative)]
    return ScoreCounts(keys=distinct, positive=totals[0], negative=totals[1], shift=shift)


def _bounded(counts: ScoreCounts) -> ScoreCounts:
    while len(counts.keys) > MAX_CELLS:
        counts = counts.with_shift(counts.shift + 1)
    return counts


def _below(counts: np.ndarray) -> np.ndarray:
    """[C] how many are in an earlier cell, and half of those in the same."""
    return np.cumsum(counts) - counts / 2


def _sums(values: np.ndarray) -> np.ndarray:
    """[C + 1] sums of the first c values."""
    return np.concatenate([[0], np.cumsum(values)])
