"""Metrics: figures from ranks, labels and probabilities, with intervals.

Pure NumPy. Ranks count from 1 over the full catalogue. Invariant: every figure is the mean of a value per user, or a
statistic of all users, so that users can be resampled.
"""

import numpy as np

_CLIP = 1e-7


def recall_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """[B] 1 where the one target of a user is among the first k."""
    return (ranks <= k).astype(np.float64)


def ndcg_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """[B] 1 / log2(1 + rank) within the first k, else 0 (Järvelin and Kekäläinen 2002, one relevant item)."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """[B] 1 / rank within the first k, else 0."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def ranking_metrics(ranks: np.ndarray, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Per-user values of every ranking metric, by name such as ndcg_at_10."""
    functions = {"recall": recall_at, "ndcg": ndcg_at, "mrr": reciprocal_rank_at}
    return {f"{name}_at_{k}": function(ranks, k) for k in ks for name, function in functions.items()}


def area_under_curve(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Not-a-number where one of the classes is absent.
    """
    positive = labels > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    above = mean_rank[inverse][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log likelihood of binary outcomes."""
    clipped = np.clip(probabilities, _CLIP, 1 - _CLIP)
    return float(-np.mean(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped)))


def bootstrap_mean(values: np.ndarray, seed: int, num_resamples: int = 1_000) -> tuple[float, float]:
    """95 % interval of a mean over users (Efron 1979, percentile method)."""
    return bootstrap_counted_mean(values, np.ones(len(values), np.int64), seed, num_resamples)


def bootstrap_counted_mean(
    values: np.ndarray, counts: np.ndarray, seed: int, num_resamples: int = 1_000
) -> tuple[float, float]:
    """95 % interval of a mean over users of whom so many have each value (Efron 1979, percentile method).

    A mean depends on how often each value is drawn only: these numbers are drawn at once, which is the same resampling
    at a cost that does not grow with the users.

    Args:
        values: [N] values; one may come up more than once.
        counts: [N] users that have it.
        seed: of the resampling.
        num_resamples: of the users.
    """
    distinct, place = np.unique(values, return_inverse=True)
    totals = np.bincount(place, counts, len(distinct)).astype(np.int64)
    distinct, totals = distinct[totals > 0], totals[totals > 0]
    num_users = int(totals.sum())
    if not num_users:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    draws = (generator.multinomial(num_users, totals / num_users) for _ in range(num_resamples))
    means = np.array([draw @ distinct for draw in draws]) / num_users
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
