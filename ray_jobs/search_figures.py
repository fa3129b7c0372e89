"""Figures of search: ranks by user counted in tasks, the weight chosen on validation, and what test searches say.

Invariant: only counts of ranks come to the driver, so memory does not follow the users.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from data_io.buckets import read_bucket
from data_io.schema import DataContractError
from data_io.snapshots import read_manifest
from data_io.splits import Stage
from model.metrics import bootstrap_counted_mean, ndcg_at, recall_at
from ray_jobs.bucket_map import map_buckets
from ray_jobs.search_evaluator import (
    BLEND,
    BLENDED,
    BM25,
    COUNTED_BLEND,
    COUNTED_LIFT,
    COUNTED_QUERY_BLEND,
    HISTORY_ONLY,
    PERSONALISED,
    POPULARITY,
    QUERY_BLEND,
    QUERY_ONLY,
    QUERY_POPULARITY,
    RANK,
    STAGE,
    weighted_name,
)

_K: Final = 10
_LATER: Final = _K + 1
"""Stands for every rank after the K that are measured."""
_RANKERS = (
    POPULARITY,
    QUERY_POPULARITY,
    BM25,
    QUERY_ONLY,
    QUERY_BLEND,
    COUNTED_QUERY_BLEND,
    HISTORY_ONLY,
    PERSONALISED,
    BLEND,
    COUNTED_BLEND,
    COUNTED_LIFT,
)
_HELD = {
    PERSONALISED: (POPULARITY, QUERY_POPULARITY, BM25, QUERY_ONLY, HISTORY_ONLY),
    BLEND: (QUERY_POPULARITY, BM25, QUERY_BLEND, PERSONALISED),
    COUNTED_BLEND: (QUERY_POPULARITY, COUNTED_QUERY_BLEND, PERSONALISED, BLEND),
    COUNTED_LIFT: (QUERY_POPULARITY, COUNTED_QUERY_BLEND, PERSONALISED),
}
"""What rankings that know the user are held against."""
_MEANINGS = {
    POPULARITY: "what searches led to most",
    QUERY_POPULARITY: "what the same query led to most, then popularity",
    BM25: "words of title, category path and brand",
    QUERY_ONLY: "the network with the query, without history",
    HISTORY_ONLY: "the network with the history, without query",
    PERSONALISED: "the network with both",
    QUERY_BLEND: "BM25 and the network with the query",
    COUNTED_QUERY_BLEND: "log of query_popularity and the network with the query",
    BLEND: "BM25 and the network with both",
    COUNTED_BLEND: "log of query_popularity and the network with both",
    COUNTED_LIFT: "log of query_popularity and what the history changes in the network",
}
Pair = tuple[str, str]


def search_figures(url: str, weights: Sequence[float], num_resamples: int, seed: int) -> dict[str, Any]:
    """What published ranks say.

    Args:
        url: of the ranks by user.
        weights: that were tried.
        num_resamples: of users, behind each interval.
        seed: of the resampling.

    Raises:
        DataContractError: no search was held out at a stage.
    """
    places = range(len(weights))
    tried = {blended: [weighted_name(blended, place) for place in places] for blended in BLENDED}
    validation = count_pairs(url, "validation", [(name, name) for names in tried.values() for name in names])
    tuned = {
        blended: [_mean(np.diagonal(validation[name, name])) for name in names] for blended, names in tried.items()
    }
    best = {blended: int(np.argmax(values)) for blended, values in tuned.items()}
    own = {name: weighted_name(name, best[name]) if name in best else name for name in _RANKERS}
    pairs = [(name, name) for name in _RANKERS]
    pairs += [(name, other) for name, others in _HELD.items() for other in others]
    counts = count_pairs(url, "test", [(own[a], own[b]) for a, b in pairs])
    found = {(a, b): counts[own[a], own[b]] for a, b in pairs}
    return {
        "num_searches": {
            "validation": int(next(iter(validation.values())).sum()),
            "test": int(found[BM25, BM25].sum()),
        },
        "weight": float(weights[best[BLEND]]),
        "weights": {blended: float(weights[place]) for blended, place in best.items()},
        "tuning": [
            {"ranker": blended, "weight": float(weight), "ndcg_at_10": tuned[blended][place]}
            for blended in BLENDED
            for place, weight in enumerate(weights)
        ],
        "rankers": {
            name: {"meaning": _MEANINGS[name]} | _figures(np.diagonal(found[name, name]), num_resamples, seed)
            for name in _RANKERS
        },
        "gains": [{"of": a, "over": b} | _gain(found[a, b], num_resamples, seed) for a, b in found if a != b],
    }


def count_pairs(url: str, stage: Stage, pairs: list[Pair]) -> dict[Pair, np.ndarray]:
    """[12, 12] users by the ranks of two rankers, those after the tenth as 11, for each pair.

    Raises:
        DataContractError: the stage has no search.
    """
    manifest = read_manifest(url)
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    totals = {pair: np.zeros((_LATER + 1, _LATER + 1), np.int64) for pair in pairs}
    for found in map_buckets(partial(_count_bucket, url, manifest, stage, pairs), buckets):
        for pair, own in found.items():
            totals[pair] += own
    if not totals[pairs[0]].sum():
        raise DataContractError(
            f"no {stage} search led to an item of target_actions right after it: the log needs events of action "
            "search with a query, followed by such an event of the same user"
        )
    return totals


def lines_of(figures: dict[str, Any]) -> Iterable[str]:
    """What a person is told."""
    for name, own in figures["rankers"].items():
        yield (
            f"ndcg_at_10 of {name}: {_with_interval(own['ndcg_at_10'])}, recall_at_10 "
            f"{_with_interval(own['recall_at_10'])} ({own['meaning']})"
        )
    yield from verdicts_of(figures)


def verdicts_of(figures: dict[str, Any]) -> Iterable[str]:
    """Who wins, in words."""
    chosen = ", ".join(f"{weight:g} in {name}" for name, weight in figures["weights"].items())
    yield f"weights of the network, chosen on validation searches: {chosen}"
    for gain in figures["gains"]:
        low, high = gain["interval"]
        verdict = "beats" if low > 0 else "falls behind" if high < 0 else "is not clearly apart from"
        amount = f"{gain['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
        yield f"{gain['of']} {verdict} {gain['over']} in ndcg_at_10: gain {amount}"


def _count_bucket(
    url: str, manifest: dict[str, Any], stage: Stage, pairs: list[Pair], bucket: int
) -> dict[Pair, np.ndarray]:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    table = read_bucket(url, manifest, bucket, columns=[STAGE, *(f"{RANK}{name}" for name in names)])
    table = table.filter(pc.field(STAGE) == stage)
    ranks = {name: np.minimum(table.column(f"{RANK}{name}").to_numpy(), _LATER) for name in names}
    size = _LATER + 1
    return {(a, b): np.bincount(ranks[a] * size + ranks[b], minlength=size**2).reshape(size, size) for a, b in pairs}


def _mean(counts: np.ndarray) -> float:
    return float(_ndcg() @ counts / max(counts.sum(), 1))


def _ndcg() -> np.ndarray:
    """[12] NDCG@10 by rank; there is no rank 0."""
    return np.append(0.0, ndcg_at(np.arange(1, _LATER + 1), _K))


def _recall() -> np.ndarray:
    return np.append(0.0, recall_at(np.arange(1, _LATER + 1), _K))


def _figures(counts: np.ndarray, num_resamples: int, seed: int) -> dict[str, Any]:
    found = {}
    for name, values in (("ndcg_at_10", _ndcg()), ("recall_at_10", _recall())):
        interval = bootstrap_counted_mean(values, counts, seed, num_resamples)
        found[name] = {"value": float(values @ counts / counts.sum()), "interval": interval}
    return found


def _gain(counts: np.ndarray, num_resamples: int, seed: int) -> dict[str, Any]:
    values = (_ndcg()[:, None] - _ndcg()[None, :]).ravel()
    interval = bootstrap_counted_mean(values, counts.ravel(), seed, num_resamples)
    return {"value": float(values @ counts.ravel() / counts.sum()), "interval": interval}


def _with_interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.4f} [{low:.4f}, {high:.4f}]"
