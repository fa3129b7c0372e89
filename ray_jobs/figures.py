"""Figures of the report: metrics of rankings and intervals from counts of ranks, and what they amount to in words.

Figures of lists are in `ray_jobs.list_figures`, of outcomes in `ray_jobs.outcome_figures`. Invariant: whatever is worse
than its baseline is said to be so.
"""

from typing import Any

import numpy as np

from model.metrics import bootstrap_counted_mean, ndcg_at, ranking_metrics, recall_at
from ray_jobs.config import BASELINES, EvaluationSettings
from ray_jobs.rank_counts import EVERYONE, RankCounts, count_ranks, models_of


def next_item_figures(url: str, options: EvaluationSettings, seed: int) -> dict[str, Any]:
    """Ranking metrics of every model and baseline, from the per-user ranks at a URL, for all users and in slices.

    A model's gains are over each baseline and over each model whose ranks stand after its own.
    """
    counts = count_ranks(url, options)
    everyone = counts.pop(EVERYONE)
    values = ranking_metrics(np.arange(max(options.ks) + 2).clip(1), options.ks)
    figures: dict[str, Any] = {
        "num_users": everyone.num_users,
        "rankers": {name: _means(values, own, options, seed) for name, own in everyone.ranks.items()},
        "headline": f"ndcg_at_{options.headline_k}",
    }
    baselines = [name for name in BASELINES if name in everyone.ranks]
    figures["best_baseline"] = _best(figures["rankers"], baselines, figures["headline"])
    for name, later in models_of(everyone.ranks).items():
        figures["rankers"][name]["gain_over"] = _gains(everyone, name, [*baselines, *later], options, seed)
    figures["slices"] = [
        {"by": by, "name": name} | _slice_figures(own, options, seed) for (by, name), own in counts.items()
    ]
    return figures


def _slice_figures(counts: RankCounts, options: EvaluationSettings, seed: int) -> dict[str, Any]:
    """Headline NDCG and recall of every ranker, and gains of models over the best baseline here and later models."""
    k, ranks = options.headline_k, np.arange(max(options.ks) + 2).clip(1)
    values = {f"ndcg_at_{k}": ndcg_at(ranks, k), f"recall_at_{k}": recall_at(ranks, k)}
    rankers: dict[str, Any] = {name: _means(values, own, options, seed) for name, own in counts.ranks.items()}
    best = _best(rankers, [name for name in BASELINES if name in rankers], f"ndcg_at_{k}")
    for name, later in models_of(counts.ranks).items():
        rankers[name]["gain_over"] = _gains(counts, name, [best, *later], options, seed)
    return {"num_users": counts.num_users, "best_baseline": best, "rankers": rankers}


def _best(rankers: dict[str, Any], names: list[str], metric: str) -> str:
    """The ranker of the largest value, the first of equal ones; the first too where there are no values."""
    return max(names, key=lambda name: np.nan_to_num(rankers[name][metric]["value"]))


def _means(
    values: dict[str, np.ndarray], counts: np.ndarray, options: EvaluationSettings, seed: int
) -> dict[str, dict[str, float]]:
    """Metrics of a ranker, from their values by rank and how many users have each."""
    return {metric: _with_interval(of, counts, seed, options.num_resamples) for metric, of in values.items()}


def _gains(
    counts: RankCounts, name: str, others: list[str], options: EvaluationSettings, seed: int
) -> dict[str, dict[str, float]]:
    """NDCG of one ranker minus that of others, user by user."""
    k = options.headline_k
    own = ndcg_at(np.arange(k + 2).clip(1), k)
    values = np.subtract.outer(own, own).ravel()
    return {
        other: _with_interval(values, counts.pairs[name, other].ravel(), seed, options.num_resamples)
        for other in others
    }


def _with_interval(values: np.ndarray, counts: np.ndarray, seed: int, num_resamples: int) -> dict[str, float]:
    low, high = bootstrap_counted_mean(values, counts, seed, num_resamples)
    num_users = counts.sum()
    return {"value": float(values @ counts / num_users) if num_users else float("nan"), "low": low, "high": high}


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
        if "trees" in figures:
            lines.append(
                f"{name} {_compared(figures['gain_over_trees'])} gradient-boosted trees on the counts in AUC: "
                f"{own['value']:.4f} against {figures['trees']['auc']['value']:.4f}"
            )
        if "network" in figures:
            lines.append(
                f"{name} {_compared(figures['gain_over_network'])} its network alone, without trees, in AUC: "
                f"{own['value']:.4f} against {figures['network']['auc']['value']:.4f}"
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
