"""What is made of impressions: click models fitted across blocks of time, and estimates of what policies earn.

Pure functions on impressions in memory. Invariant: what is expected of an impression comes from a model that was fitted
to other blocks of time, so that no estimate profits from its own clicks (cross-fitting).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_io.impressions import Impressions
from model.click_head import ClickHead, ClickShape, click_probabilities, fit_click_head, item_probabilities
from model.metrics import log_loss
from model.off_policy import (
    Estimate,
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    on_policy,
    self_normalised,
)
from model.score_counts import ScoreCounts
from ray_jobs.feedback_config import FeedbackSettings

_AT_ONCE, _BINS, _CLIP, _NORMAL_95 = 4_096, 10, 1e-7, 1.959963984540054
_SHRINKAGE = 100.0
"""Impressions at the mean rate that an item's own rate is mixed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Click heads of all blocks of time."""

    heads: list[ClickHead]
    fold: np.ndarray
    """[N] block of each impression, which the head at that place has not seen."""
    probability: np.ndarray
    """[N] of what was shown."""
    mean_rate: np.ndarray
    """[N] of the other blocks."""
    item_rate: np.ndarray
    """[N] of the item in the other blocks, mixed with the mean."""
    penalty: float


def cross_fit(impressions: Impressions, options: FeedbackSettings, seed: int) -> Fitted:
    """Heads of the penalty whose predictions of blocks they have not seen are best."""
    fold = np.arange(len(impressions)) * options.num_folds // max(len(impressions), 1)
    shape = ClickShape(
        num_items=len(impressions.items),
        num_positions=int(impressions.position.max()) + 1,
        num_context=impressions.context.shape[1],
        width=options.width,
        interaction=options.interaction,
    )
    tried = [_fit_folds(impressions, fold, shape, penalty, seed) for penalty in options.penalties]
    return min(tried, key=lambda fitted: log_loss(impressions.reward, fitted.probability))


def _fit_folds(impressions: Impressions, fold: np.ndarray, shape: ClickShape, penalty: float, seed: int) -> Fitted:
    heads: list[ClickHead] = []
    probability, mean_rate, item_rate = (np.zeros(len(fold)) for _ in range(3))
    for block in np.unique(fold):
        others, own = impressions.take(np.flatnonzero(fold != block)), np.flatnonzero(fold == block)
        heads.append(fit_click_head(shape, others, penalty, seed))
        probability[own] = click_probabilities(heads[-1], impressions.take(own))
        mean = others.reward.mean()
        shown = np.bincount(others.item, minlength=shape.num_items)
        clicked = np.bincount(others.item, others.reward, shape.num_items)
        mean_rate[own] = mean
        item_rate[own] = ((clicked + _SHRINKAGE * mean) / (shown + _SHRINKAGE))[impressions.item[own]]
    return Fitted(
        heads=heads, fold=fold, probability=probability, mean_rate=mean_rate, item_rate=item_rate, penalty=penalty
    )


def click_figures(impressions: Impressions, fitted: Fitted) -> dict[str, Any]:
    """Log loss, AUC and calibration of the click head beside the mean rate and each item's own rate."""
    rankers = {
        "click head": fitted.probability,
        "the mean rate": fitted.mean_rate,
        "the rate of each item": fitted.item_rate,
    }
    losses = {name: _losses(impressions.reward, probability) for name, probability in rankers.items()}
    counts = {name: ScoreCounts.of(impressions.reward, probability) for name, probability in rankers.items()}
    return {
        "num_clicks": int(impressions.reward.sum()),
        "penalty": fitted.penalty,
        "log_loss": {name: float(loss.mean()) for name, loss in losses.items()},
        "auc": {name: own.area() for name, own in counts.items()},
        "calibration": counts["click head"].calibration(_BINS),
        "calibration_error": counts["click head"].calibration_error(_BINS),
        "gain_over": {
            name: _mean(loss - losses["click head"]) for name, loss in losses.items() if name != "click head"
        },
    }


def policy_figures(impressions: Impressions, fitted: Fitted, options: FeedbackSettings) -> list[dict[str, Any]]:
    """From each log, what every other logging policy and the click head's policy would earn there."""
    shown = {name: _shown_by(impressions, place) for place, name in enumerate(impressions.policies)}
    expected = _Expected(impressions, fitted, shown, options.explore)
    own = {
        name: on_policy(impressions.reward[impressions.policy == place])
        for place, name in enumerate(impressions.policies)
    }
    figures = []
    for place, log in enumerate(impressions.policies):
        rows = np.flatnonzero(impressions.policy == place)
        figures.append(_own_figures(log, own[log], len(rows)))
        for policy in (*(name for name in impressions.policies if name != log), "click head"):
            weight = expected.probability[policy][rows] / impressions.propensity[rows]
            estimates = _estimates(
                impressions.reward[rows], weight, fitted.probability[rows], expected.value[policy][rows]
            )
            figures.append(
                {
                    "log": log,
                    "policy": policy,
                    "effective_sample_size": effective_sample_size(weight),
                    "mean_weight": float(weight.mean()),
                    "estimates": {name: asdict(estimate) for name, estimate in estimates.items()},
                    "on_policy": asdict(own[policy]) if policy in own else None,
                }
            )
    return figures


def _own_figures(log: str, own: Estimate, size: int) -> dict[str, Any]:
    facts = {"log": log, "policy": log, "effective_sample_size": float(size), "mean_weight": 1.0}
    return facts | {"estimates": {"mean": asdict(own)}, "on_policy": None}


def _estimates(
    reward: np.ndarray, weight: np.ndarray, expected_shown: np.ndarray, expected_policy: np.ndarray
) -> dict[str, Estimate]:
    return {
        "IPS": inverse_propensity(reward, weight),
        "SNIPS": self_normalised(reward, weight),
        "DR": doubly_robust(reward, weight, expected_shown, expected_policy),
    }


def _shown_by(impressions: Impressions, policy: int) -> np.ndarray:
    """[positions, V] how often a logging policy shows each item at a position, whatever the context."""
    rows = impressions.policy == policy
    counts = np.zeros((int(impressions.position.max()) + 1, len(impressions.items)))
    np.add.at(counts, (impressions.position[rows], impressions.item[rows]), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


class _Expected:
    """What policies would do with each impression, and what the click heads expect of it.

    Args:
        impressions: N of them.
        fitted: click heads.
        shown: [positions, V] probabilities of logging policies by name.
        explore: of the click head's policy.
    """

    def __init__(self, impressions: Impressions, fitted: Fitted, shown: dict[str, np.ndarray], explore: float) -> None:
        self.probability = {name: np.zeros(len(impressions)) for name in (*shown, "click head")}
        """[N] with which each policy shows the item that was shown."""
        self.value = {name: np.zeros(len(impressions)) for name in (*shown, "click head")}
        """[N] rewards that are expected of it there."""
        for block, head in enumerate(fitted.heads):
            of_block = np.flatnonzero(fitted.fold == block)
            for rows in np.array_split(of_block, max(1, -(-len(of_block) // _AT_ONCE))):
                part = impressions.take(rows)
                clicks = item_probabilities(head, part)
                for name, table in shown.items():
                    self._note(name, rows, table[part.position], part.item, clicks)
                best = np.eye(clicks.shape[1])[clicks.argmax(axis=1)]
                mixed = (1 - explore) * best + explore / clicks.shape[1]
                self._note("click head", rows, mixed, part.item, clicks)

    def _note(self, name: str, rows: np.ndarray, policy: np.ndarray, item: np.ndarray, clicks: np.ndarray) -> None:
        self.probability[name][rows] = policy[np.arange(len(rows)), item]
        self.value[name][rows] = (policy * clicks).sum(axis=1)


def _losses(reward: np.ndarray, probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    return -(reward * np.log(clipped) + (1 - reward) * np.log1p(-clipped))


def _mean(values: np.ndarray) -> dict[str, float]:
    error = _NORMAL_95 * float(values.std()) / np.sqrt(max(len(values), 1))
    value = float(values.mean())
    return {"value": value, "low": value - error, "high": value + error}
