"""Figures of lists beyond accuracy: how much of the catalogue they show, how surprising and how popular it is.

Invariant: what is held follows the catalogue and the rankers; nothing per user is read.
"""

from typing import Any

import numpy as np

from data_io.buckets import iter_buckets
from data_io.schema import ITEM_INDEX
from model.popularity import coverage, mean_over, rank_percentiles, self_information
from ray_jobs.evaluator import HISTORIES, NUM_LISTED, RANKER


def list_figures(url: str, training_events: np.ndarray, k: int) -> dict[str, Any]:
    """Coverage, novelty and popularity of the lists of every ranker, and popularity of the histories.

    Args:
        url: counts of items by ranker and bucket (see `ray_jobs.evaluator`).
        training_events: [V] events of each item in training history.
        k: length of the lists.

    Returns:
        For each ranker: coverage, share of the catalogue in any list; novelty, mean self-information of the items in
        bits; popularity, their mean percentile among the catalogue by training events, also for the histories.

    Source:
        Abdollahpouri et al. 2019, "The unfairness of popularity bias in recommendation": popularity of lists beside
        that of histories. For the others see `model.popularity`.
    """
    listed = _read_counts(url, len(training_events))
    percentiles, information = rank_percentiles(training_events), self_information(training_events)
    histories = listed.pop(HISTORIES, np.zeros(len(training_events), np.int64))
    return {
        "k": k,
        "rankers": {
            name: {
                "coverage": coverage(counts),
                "novelty_bits": mean_over(counts, information),
                "popularity_percentile": mean_over(counts, percentiles),
            }
            for name, counts in listed.items()
        },
        "histories_novelty_bits": mean_over(histories, information),
        "histories_popularity_percentile": mean_over(histories, percentiles),
    }


def _read_counts(url: str, size: int) -> dict[str, np.ndarray]:
    """[V] places in lists of each item, by ranker, summed over buckets."""
    totals: dict[str, np.ndarray] = {}
    for table in iter_buckets(url):
        rankers = table.column(RANKER).combine_chunks().dictionary_encode()
        places = rankers.indices.to_numpy()
        for place, name in enumerate(rankers.dictionary.to_pylist()):
            own = places == place
            items, counts = (table.column(column).to_numpy()[own] for column in (ITEM_INDEX, NUM_LISTED))
            totals.setdefault(name, np.zeros(size, np.int64))[items] += counts
    return totals
