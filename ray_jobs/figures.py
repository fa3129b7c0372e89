"""Figures of the report: metrics and intervals from per-user results, and what they amount to in words.

Pure functions over tables. Invariant: whatever is worse than its baseline is said to be so.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from data_io.buckets import iter_buckets
from data_io.features import FEATURE_NAMES
from model.metrics import (
    area_under_curve,
    bootstrap_area,
    bootstrap_area_gain,
    bootstrap_mean,
    log_loss,
    ranking_metrics,
)
from ray_jobs.config import BASELINES, EvaluationSettings

_CALIBRATION_BINS = 10
_CURVE_POINTS = 50


def next_item_figures(url: str, options: EvaluationSettings, seed: int) -> dict[str, Any]:
    """Ranking metrics of every model and baseline, from the per-user ranks at a URL."""
    table = pa.concat_tables(iter_buckets(url), promote_options="permissive")
    rankers = [name.removeprefix("rank_") for name in table.column_names if name.startswith("rank_")]
    figures: dict[str, Any] = {"num_users": table.num_rows, "rankers": {}}
    for name in rankers:
        ranks = table.column(f"rank_{name}").to_numpy()
        values = ranking_metrics(ranks, options.ks)
        figures["rankers"][name] = {
            metric: _with_interval(value, seed, options.num_resamples) for metric, value in values.items()
        }
    ndcg = f"ndcg_at_{_headline_k(options.ks)}"
    figures["headline"] = ndcg
    best_baseline = np.stack(
        [ranking_metrics(table.column(f"rank_{name}").to_numpy(), options.ks)[ndcg] for name in BASELINES]
    )
    for name in set(rankers) - set(BASELINES):
        own = ranking_metrics(table.column(f"rank_{name}").to_numpy(), options.ks)[ndcg]
        gains = {base: own - best_baseline[place] for place, base in enumerate(BASELINES)}
        figures["rankers"][name]["gain_over"] = {
            base: _with_interval(gain, seed, options.num_resamples) for base, gain in gains.items()
        }
    return figures


def _headline_k(ks: tuple[int, ...]) -> int:
    return 10 if 10 in ks else ks[0]


def _with_interval(values: np.ndarray, seed: int, num_resamples: int) -> dict[str, float]:
    low, high = bootstrap_mean(values, seed, num_resamples)
    return {"value": float(values.mean()) if len(values) else float("nan"), "low": low, "high": high}


def outcome_figures(url: str, seed: int) -> dict[str, Any]:
    """AUC, log loss and calibration of a task beside the mean rate and the best single feature.

    The feature and its direction are chosen on validation users and measured on test users.
    """
    table = pa.concat_tables(iter_buckets(url), promote_options="permissive")
    stage = np.asarray(table.column("stage").to_pylist())
    label = table.column("outcome").to_numpy().astype(np.float64)
    test, validation = stage == "test", stage == "validation"
    probability = table.column("probability").to_numpy().astype(np.float64)[test]
    feature, sign, validation_area = _best_feature(table, label, validation)
    feature_scores = sign * table.column(f"feature_{feature}").to_numpy().astype(np.float64)[test]
    rate = float(label[validation].mean()) if validation.any() else 0.5
    low, high = bootstrap_area(label[test], probability, seed)
    feature_low, feature_high = bootstrap_area(label[test], feature_scores, seed)
    gain_low, gain_high = bootstrap_area_gain(label[test], probability, feature_scores, seed)
    return {
        "num_users": int(test.sum()),
        "rate": float(label[test].mean()) if test.any() else float("nan"),
        "auc": {"value": area_under_curve(label[test], probability), "low": low, "high": high},
        "log_loss": log_loss(label[test], probability),
        "mean_rate_log_loss": log_loss(label[test], np.full(int(test.sum()), rate)),
        "best_feature": {
            "name": feature,
            "validation_auc": validation_area,
            "auc": {
                "value": area_under_curve(label[test], feature_scores),
                "low": feature_low,
                "high": feature_high,
            },
        },
        "gain_over_feature": {"low": gain_low, "high": gain_high},
        "calibration": _calibration(label[test], probability),
        "curve": _roc(label[test], probability),
        "feature_curve": _roc(label[test], feature_scores),
    }


def _best_feature(table: pa.Table, label: np.ndarray, chosen: np.ndarray) -> tuple[str, int, float]:
    areas = {}
    for name in FEATURE_NAMES:
        area = area_under_curve(label[chosen], table.column(f"feature_{name}").to_numpy()[chosen])
        areas[name] = 0.5 if np.isnan(area) else area
    best = max(areas, key=lambda name: abs(areas[name] - 0.5))
    sign = 1 if areas[best] >= 0.5 else -1
    return best, sign, max(areas[best], 1 - areas[best])


def _calibration(label: np.ndarray, probability: np.ndarray) -> list[dict[str, float]]:
    """Mean prediction and observed rate in tenths of the users, by rising prediction."""
    parts = np.array_split(np.argsort(probability, kind="stable"), _CALIBRATION_BINS)
    return [
        {"predicted": float(probability[part].mean()), "observed": float(label[part].mean())}
        for part in parts
        if len(part)
    ]


def _roc(label: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """Points (false positive rate, true positive rate) of the ROC curve."""
    order = np.argsort(-scores, kind="stable")
    positive = np.cumsum(label[order]) / max(label.sum(), 1)
    negative = np.cumsum(1 - label[order]) / max((1 - label).sum(), 1)
    places = np.unique(np.linspace(0, len(order) - 1, _CURVE_POINTS).astype(int)) if len(order) else []
    return [(0.0, 0.0), *((float(negative[place]), float(positive[place])) for place in places)]


def verdicts(next_item: dict[str, Any], outcomes: dict[str, Any]) -> list[str]:
    """What the figures amount to, one sentence a model and a baseline."""
    lines = []
    headline = next_item["headline"]
    for name, metrics in next_item["rankers"].items():
        for base, gain in metrics.get("gain_over", {}).items():
            own, other = metrics[headline]["value"], next_item["rankers"][base][headline]["value"]
            lines.append(f"{name} {_compared(gain)} {base} in {headline}: {own:.4f} against {other:.4f}")
    for name, figures in outcomes.items():
        own, feature = figures["auc"], figures["best_feature"]
        lines.append(
            f"{name} {_compared(figures['gain_over_feature'])} the best single feature ({feature['name']}) in AUC: "
            f"{own['value']:.4f} against {feature['auc']['value']:.4f}"
        )
    return lines


def _compared(gain: dict[str, float]) -> str:
    if gain["low"] > 0:
        return "beats"
    return "loses to" if gain["high"] < 0 else "is not clearly apart from"
