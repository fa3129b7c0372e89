"""A probability put together of a network's and of boosted trees': calibrated, and seldom worse than either.

The log odds of both are weighed, and shifted, as a logistic regression on held-out users finds best (stacking). Without
trees it is a calibration of the network alone.

Source:
    Wolpert 1992, "Stacked generalization"; Platt 1999, "Probabilistic outputs for support vector machines".
"""

from dataclasses import dataclass
from functools import cached_property

import lightgbm
import numpy as np

from model.trees import load_trees, predict_trees

_CLIP = 1e-6
_RIDGE = 1e-3
_MOST_STEPS, _LEAST_STEP = 50, 1e-8


@dataclass(frozen=True)
class Blend:
    """How a probability is put together."""

    weights: tuple[float, ...]
    """Of 1, of the network's log odds and, if there are trees, of theirs."""
    trees: str | None
    """LightGBM's text."""

    @cached_property
    def booster(self) -> lightgbm.Booster | None:
        """The trees, read once."""
        return None if self.trees is None else load_trees(self.trees)

    def __getstate__(self) -> dict[str, object]:
        """Without the trees that were read: LightGBM's are read again elsewhere."""
        return {"weights": self.weights, "trees": self.trees}

    def apply(self, probability: np.ndarray, features: np.ndarray) -> np.ndarray:
        """[N] float32 probabilities from the network's [N] and features [N, F] of the histories."""
        odds = self._log_odds(probability, features) @ np.array(self.weights)
        return (1 / (1 + np.exp(-odds))).astype(np.float32)

    def _log_odds(self, probability: np.ndarray, features: np.ndarray) -> np.ndarray:
        columns = [np.ones(len(probability)), log_odds(probability)]
        if self.booster is not None:
            columns.append(log_odds(predict_trees(self.booster, features)[:, 0]))
        return np.stack(columns, axis=1)


def fit_blend(labels: np.ndarray, probability: np.ndarray, features: np.ndarray, trees: str | None) -> Blend:
    """The blend that suits held-out users best.

    Args:
        labels: [N] 0 or 1.
        probability: [N] of the network.
        features: [N, F] of the histories, for the trees.
        trees: LightGBM's text; None: the network alone is calibrated.
    """
    start = Blend((0.0, 1.0) if trees is None else (0.0, 0.5, 0.5), trees)
    weights = fit_logistic(start._log_odds(probability, features), labels, np.array(start.weights))
    return Blend(tuple(weights.tolist()), trees)


def fit_logistic(inputs: np.ndarray, labels: np.ndarray, start: np.ndarray) -> np.ndarray:
    """[C] weights of a logistic regression by Newton's method with halved steps, drawn a little to where it starts.

    Args:
        inputs: [N, C].
        labels: [N] 0 or 1.
        start: [C].
    """
    ridge = _RIDGE * max(len(labels), 1)

    def cost(weights: np.ndarray) -> float:
        odds = inputs @ weights
        return float(np.logaddexp(0, odds).sum() - labels @ odds + ridge / 2 * ((weights - start) ** 2).sum())

    weights = start.astype(np.float64)
    for _ in range(_MOST_STEPS):
        rate = np.exp(-np.logaddexp(0, -(inputs @ weights)))
        slope = inputs.T @ (rate - labels) + ridge * (weights - start)
        bend = (inputs * (rate * (1 - rate))[:, None]).T @ inputs + ridge * np.eye(len(start))
        step = np.linalg.solve(bend, slope)
        while cost(weights - step) > cost(weights) and np.abs(step).max() > _LEAST_STEP:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < _LEAST_STEP:
            break
    return weights


def log_odds(probability: np.ndarray) -> np.ndarray:
    """[N] logarithms of p / (1 - p), bounded."""
    clipped = np.clip(probability.astype(np.float64), _CLIP, 1 - _CLIP)
    return np.log(clipped) - np.log1p(-clipped)
