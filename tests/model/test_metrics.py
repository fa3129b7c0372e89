"""Metrics against numbers worked out by hand and against naive counting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.metrics import (
    area_under_curve,
    bootstrap_counted_mean,
    bootstrap_mean,
    log_loss,
    ndcg_at,
    ranking_metrics,
    recall_at,
    reciprocal_rank_at,
)

RANKS = np.array([1, 2, 3, 10, 11])
labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=12)


def test_recall_counts_targets_among_the_first_k() -> None:
    assert recall_at(RANKS, 3).tolist() == [1, 1, 1, 0, 0]
    assert recall_at(RANKS, 10).tolist() == [1, 1, 1, 1, 0]


def test_ndcg_discounts_by_the_logarithm_of_the_rank() -> None:
    expected = [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0]
    np.testing.assert_allclose(ndcg_at(RANKS, 10), expected)


def test_reciprocal_rank_is_cut_at_k() -> None:
    np.testing.assert_allclose(reciprocal_rank_at(RANKS, 10), [1, 1 / 2, 1 / 3, 1 / 10, 0])


def test_ranking_metrics_are_named_by_function_and_k() -> None:
    found = ranking_metrics(RANKS, (1, 10))
    names = {"recall_at_1", "ndcg_at_1", "mrr_at_1", "recall_at_10", "ndcg_at_10", "mrr_at_10"}
    assert found.keys() == names
    assert found["mrr_at_1"].tolist() == [1, 0, 0, 0, 0]


@given(rows=labelled_scores)
def test_area_equals_naive_counting_of_pairs_with_ties_counting_half(rows: list[tuple[bool, int]]) -> None:
    positive = [score for label, score in rows if label]
    negative = [score for label, score in rows if not label]
    found = area_under_curve(np.array([row[0] for row in rows], np.float64), np.array([row[1] for row in rows], float))
    if not positive or not negative:
        assert math.isnan(found)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert found == pytest.approx(wins / (len(positive) * len(negative)))


def test_area_of_a_perfect_a_reversed_and_a_constant_score() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert area_under_curve(labels, scores) == 1
    assert area_under_curve(labels, -scores) == 0
    assert area_under_curve(labels, np.zeros(4)) == 0.5


def test_log_loss_by_hand() -> None:
    found = log_loss(np.array([1.0, 0.0, 1.0]), np.array([0.8, 0.4, 0.5]))
    assert found == pytest.approx(-(math.log(0.8) + math.log(0.6) + math.log(0.5)) / 3)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_log_loss_of_certain_and_wrong_is_large_but_finite(kind: type[np.floating]) -> None:
    found = log_loss(np.array([1, 0, 1], kind), np.array([0, 1, 1], kind))
    assert 10 < found < 12


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30), seed=st.integers(0, 5))
def test_interval_is_deterministic_and_within_the_values(values: list[float], seed: int) -> None:
    found = bootstrap_mean(np.array(values), seed, num_resamples=50)
    assert found == bootstrap_mean(np.array(values), seed, num_resamples=50)
    assert min(values) - 1e-9 <= found[0] <= found[1] <= max(values) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_interval_contains_the_mean_and_has_the_width_of_the_standard_error(seed: int) -> None:
    values = np.random.default_rng(seed).random(200)
    low, high = bootstrap_mean(values, seed)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(200), rel=0.15)


def test_an_interval_is_that_of_drawing_users_one_by_one() -> None:
    """Numbers of equal values are drawn at once; drawing each user gives the same interval but for chance."""
    generator = np.random.default_rng(0)
    values = ndcg_at(generator.integers(1, 30, 400), 10)
    means = [values[generator.integers(0, 400, 400)].mean() for _ in range(4_000)]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_mean(values, seed=1, num_resamples=4_000), expected, atol=0.003)


def test_interval_of_no_user_is_not_a_number() -> None:
    assert np.isnan(bootstrap_mean(np.zeros(0), seed=0)).all()


def test_counted_values_have_the_interval_of_the_users_one_by_one() -> None:
    values, counts = np.array([0.5, 0.0, 1.0, 0.5, 9.0]), np.array([2, 7, 3, 4, 0])
    assert bootstrap_counted_mean(values, counts, seed=1) == bootstrap_mean(np.repeat(values, counts), seed=1)
