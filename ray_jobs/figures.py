"""Figures of the report: metrics and intervals from per-user results, and what they amount to in words.

Figures of lists are in `ray_jobs.list_figures`. Invariant: whatever is worse than its baseline is said to be so.
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
    ndcg_at,
    ranking_metrics,
    recall_at,
)
from model.popularity import GROUPS
from ray_jobs.config import BASELINES, EvaluationSettings

_CALIBRATION_BINS = 10
_CURVE_POINTS = 50


def next_item_figures(url: str, options: EvaluationSettings, seed: int) -> dict[str, Any]:
    """Ranking metrics of every model and baseline, from the per-user ranks at a URL, for all users and in slices.

    A model's gains are over each baseline and over each model whose ranks stand after its own.
    """
    table = pa.concat_tables(iter_buckets(url), promote_options="permissive")
    ranks = {
        name.removeprefix("rank_"): table.column(name).to_numpy()
        for name in table.column_names
        if name.startswith("rank_")
    }
    k = options.headline_k
    figures: dict[str, Any] = {"num_users": table.num_rows, "rankers": {}, "headline": f"ndcg_at_{k}"}
    for name, own in ranks.items():
        values = ranking_metrics(own, options.ks)
        figures["rankers"][name] = {
            metric: _with_interval(value, seed, options.num_resamples) for metric, value in values.items()
        }
    baselines = [name for name in BASELINES if name in ranks]
    figures["best_baseline"] = _best(figures["rankers"], baselines, figures["headline"])
    for name, later in _models(ranks).items():
        figures["rankers"][name]["gain_over"] = {
            other: _gain(ranks[name], ranks[other], k, options, seed) for other in (*baselines, *later)
        }
    figures["slices"] = [
        {"by": by, "name": name} | _slice_figures({key: own[users] for key, own in ranks.items()}, options, seed)
        for by, parts in slices_of(table, options.rare_events).items()
        for name, users in parts.items()
    ]
    return figures


def _models(ranks: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Rankers that are no baselines, each with those after it."""
    names = [name for name in ranks if name not in BASELINES]
    return {name: names[place + 1 :] for place, name in enumerate(names)}


def slices_of(table: pa.Table, rare_events: int) -> dict[str, dict[str, np.ndarray]]:
    """Users [B] that are in each slice, by what the slices go by; each user is in one of each kind.

    Args:
        table: per-user ranks, with history_length, target_group and target_training_events.
        rare_events: training events up to which a target is rare.
    """
    length = table.column("history_length").to_numpy()
    group = np.asarray(table.column("target_group").to_pylist(), object)
    events = table.column("target_training_events").to_numpy()
    return {
        "length of history": _quarters(length),
        "popularity of the target": {f"{name} items": group == name for name in GROUPS},
        "training events of the target": {
            "new (none)": events == 0,
            f"rare (1 to {rare_events})": (events > 0) & (events <= rare_events),
            f"known (more than {rare_events})": events > rare_events,
        },
    }


def _quarters(length: np.ndarray) -> dict[str, np.ndarray]:
    """Quarters of the users by a count, fewer where many users share one."""
    if not len(length):
        return {}
    tops = np.unique(np.quantile(length, [0.25, 0.5, 0.75, 1], method="lower")).tolist()
    bottoms = [int(length.min()), *(int(length[length > top].min()) for top in tops[:-1])]
    names = [f"{low:,} to {top:,} events" if low < top else f"{top:,} event{'s' if top > 1 else ''}"
             for low, top in zip(bottoms, tops, strict=True)]  # fmt: skip
    return {name: (length >= low) & (length <= top) for name, low, top in zip(names, bottoms, tops, strict=True)}


def _slice_figures(ranks: dict[str, np.ndarray], options: EvaluationSettings, seed: int) -> dict[str, Any]:
    """Headline NDCG and recall of every ranker, and gains of models over the best baseline here and later models."""
    k, num_users = options.headline_k, len(next(iter(ranks.values())))
    rankers: dict[str, Any] = {}
    for name, own in ranks.items():
        values = {f"ndcg_at_{k}": ndcg_at(own, k), f"recall_at_{k}": recall_at(own, k)}
        rankers[name] = {metric: _with_interval(value, seed, options.num_resamples) for metric, value in values.items()}
    best = _best(rankers, [name for name in BASELINES if name in ranks], f"ndcg_at_{k}")
    for name, later in _models(ranks).items():
        rankers[name]["gain_over"] = {
            other: _gain(ranks[name], ranks[other], k, options, seed) for other in (best, *later)
        }
    return {"num_users": num_users, "best_baseline": best, "rankers": rankers}


def _best(rankers: dict[str, Any], names: list[str], metric: str) -> str:
    """The ranker of the largest value, the first of equal ones; the first too where there are no values."""
    return max(names, key=lambda name: np.nan_to_num(rankers[name][metric]["value"]))


def _gain(own: np.ndarray, other: np.ndarray, k: int, options: EvaluationSettings, seed: int) -> dict[str, float]:
    """NDCG of one ranker minus that of another, user by user."""
    return _with_interval(ndcg_at(own, k) - ndcg_at(other, k), seed, options.num_resamples)


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
    """What the figures amount to: a sentence for each model and what it is held against, the best baseline first, then
    each slice in which it loses to the baseline that is best there or to a later model; then one for each outcome.
    """
    lines = []
    headline, best = next_item["headline"], next_item.get("best_baseline")
    for name, metrics in next_item["rankers"].items():
        gains = metrics.get("gain_over", {})
        for base in sorted(gains, key=lambda base: base != best):
            compared = f"{name} {_compared(gains[base])} {base}{', the best baseline,' if base == best else ''}"
            against = _against(next_item["rankers"], name, base, headline)
            lines.append(f"{compared} in {headline}: {against}, gain {_with_ends(gains[base], '+.4f')}")
    lines += _losses_in_slices(next_item)
    for name, figures in outcomes.items():
        own, feature = figures["auc"], figures["best_feature"]
        lines.append(
            f"{name} {_compared(figures['gain_over_feature'])} the best single feature ({feature['name']}) in AUC: "
            f"{own['value']:.4f} against {feature['auc']['value']:.4f}"
        )
    return lines


def own_intervals(next_item: dict[str, Any]) -> list[str]:
    """A line for each ranker: the headline metric with its interval."""
    headline = next_item["headline"]
    return [f"{headline} of {name}: {_with_ends(of[headline], '.4f')}" for name, of in next_item["rankers"].items()]


def _with_ends(figure: dict[str, float], form: str) -> str:
    return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"


def _losses_in_slices(next_item: dict[str, Any]) -> list[str]:
    headline = next_item["headline"]
    return [
        f"{name} loses to {base} in the slice {part['by']}, {part['name']} ({part['num_users']:,} users), "
        f"in {headline}: "
        f"{_against(part['rankers'], name, base, headline)}"
        for part in next_item.get("slices", [])
        for name, metrics in part["rankers"].items()
        for base, gain in metrics.get("gain_over", {}).items()
        if gain["high"] < 0
    ]


def _against(rankers: dict[str, Any], name: str, base: str, metric: str) -> str:
    return f"{rankers[name][metric]['value']:.4f} against {rankers[base][metric]['value']:.4f}"


def _compared(gain: dict[str, float]) -> str:
    if gain["low"] > 0:
        return "beats"
    return "loses to" if gain["high"] < 0 else "is not clearly apart from"
