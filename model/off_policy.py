"""Off-policy evaluation: what another policy would have earned, from a log of what was shown with which probability.

Pure NumPy, one row an impression. Invariant: every estimate is a mean, or a ratio of means, of values of impressions,
and its interval follows from how these vary; impressions count as independent of each other.
"""

from dataclasses import dataclass

import numpy as np

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether a value lies in the interval."""
        return self.low <= value <= self.high


def on_policy(reward: np.ndarray) -> Estimate:
    """The mean reward [N] of the policy that made the log."""
    return _mean(reward, reward - reward.mean())


def inverse_propensity(reward: np.ndarray, weight: np.ndarray) -> Estimate:
    """IPS: mean of reward times weight [N], the other policy's probability over the propensity.

    Source:
        Horvitz and Thompson 1952, "A generalization of sampling without replacement from a finite universe".
    """
    values = reward * weight
    return _mean(values, values - values.mean())


def self_normalised(reward: np.ndarray, weight: np.ndarray) -> Estimate:
    """SNIPS: IPS over the mean weight, which is 1 but for chance; the interval is that of a ratio (delta method).

    Source:
        Swaminathan and Joachims 2015, "The self-normalized estimator for counterfactual learning", eq. 6.
    """
    mean = max(float(weight.mean()), 1e-12)
    value = float((reward * weight).mean()) / mean
    return _around(value, weight * (reward - value) / mean)


def doubly_robust(
    reward: np.ndarray, weight: np.ndarray, expected_shown: np.ndarray, expected_policy: np.ndarray
) -> Estimate:
    """DR: what a model expects of the other policy, corrected by weighed errors on what was shown.

    Args:
        reward: [N].
        weight: [N].
        expected_shown: [N] reward that a model expects of the item shown.
        expected_policy: [N] reward that it expects of the items the other policy would show there.

    Source:
        Dudik et al. 2011, "Doubly robust policy evaluation and learning", eq. 1.
    """
    values = expected_policy + weight * (reward - expected_shown)
    return _mean(values, values - values.mean())


def effective_sample_size(weight: np.ndarray) -> float:
    """Impressions of equal weight [N] that would tell as much (Kish 1965)."""
    squares = float((weight**2).sum())
    return float(weight.sum() ** 2 / squares) if squares else 0.0


def _mean(values: np.ndarray, influence: np.ndarray) -> Estimate:
    return _around(float(values.mean()), influence)


def _around(value: float, influence: np.ndarray) -> Estimate:
    error = _NORMAL_95 * float(influence.std()) / np.sqrt(len(influence))
    return Estimate(value=value, low=value - error, high=value + error)
