"""Counts by score against naive pairs, resampling and sorting; parts add up to the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import score_counts
from model.metrics import area_under_curve, log_loss
from model.score_counts import AreaMoments, ScoreCounts, total_counts

labelled_scores = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=14)


def users(size: int, *noise: float, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels, and scores that know of them, the less the more noise there is."""
    generator = np.random.default_rng(seed)
    truth = generator.random(size)
    labels = (truth > generator.random(size)).astype(np.float64)
    return labels, [(truth + of * generator.random(size)).astype(np.float32) for of in noise]


@given(rows=labelled_scores, cut=st.integers(0, 14))
def test_the_area_is_that_of_all_pairs_however_the_users_are_parted(rows: list[tuple[bool, int]], cut: int) -> None:
    labels, scores = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)
    parts = [ScoreCounts.of(labels[part], scores[part]) for part in (slice(cut), slice(cut, None))]
    (found,) = total_counts([part] for part in parts)
    assert found.num_users == len(rows)
    assert found.area() == pytest.approx(area_under_curve(labels, scores), nan_ok=True)


@given(rows=labelled_scores)
def test_placements_average_to_the_area_in_either_class(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)
    counts = ScoreCounts.of(labels, scores)
    placed = counts.placements(labels, scores)
    if counts.num_positive and counts.num_negative:
        assert placed[labels == 1].mean() == pytest.approx(counts.area())
        assert placed[labels == 0].mean() == pytest.approx(counts.area())


def test_more_scores_than_are_held_are_told_apart_by_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, (scores,) = users(20_000, 1.0)
    exact = ScoreCounts.of(labels, scores)
    monkeypatch.setattr(score_counts, "MAX_CELLS", 500)
    (bounded,) = total_counts([ScoreCounts.of(labels[part::7], scores[part::7])] for part in range(7))
    assert len(bounded.keys) <= 500 < len(exact.keys)
    assert bounded.num_users == exact.num_users
    assert bounded.area() == pytest.approx(exact.area(), abs=1e-4)
    assert bounded.placements(labels, scores).mean() == pytest.approx(bounded.area(), abs=1e-3)


def test_an_interval_is_that_of_resampled_users() -> None:
    labels, scores = users(600, 0.5, 2.0)
    counts = [ScoreCounts.of(labels, of) for of in scores]
    moments = AreaMoments.of(labels, scores, counts)
    draws = [np.random.default_rng(seed).integers(0, 600, 600) for seed in range(600)]
    areas = np.array([[area_under_curve(labels[draw], of[draw]) for of in scores] for draw in draws])
    for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
        expected = np.quantile(areas @ weights, [0.025, 0.975])
        np.testing.assert_allclose(moments.interval(weights), expected, atol=0.008)


def test_moments_of_parts_add_up() -> None:
    labels, scores = users(300, 0.5, 2.0)
    counts = [ScoreCounts.of(labels, of) for of in scores]
    whole = AreaMoments.of(labels, scores, counts)
    first, second = (AreaMoments.of(labels[p], [of[p] for of in scores], counts) for p in (slice(99), slice(99, None)))
    np.testing.assert_allclose((first + second).interval([1, -1]), whole.interval([1, -1]))


def test_a_score_has_no_gain_over_itself_and_the_gain_is_known_better_than_areas_apart() -> None:
    labels, (better, worse) = users(300, 0.2, 1.0)
    same = AreaMoments.of(labels, [better, better], [ScoreCounts.of(labels, better)] * 2)
    assert same.interval([1, -1]) == pytest.approx((0, 0))
    moments = AreaMoments.of(labels, [better, worse], [ScoreCounts.of(labels, of) for of in (better, worse)])
    widths = [np.diff(moments.interval(weights))[0] for weights in ([1, -1], [1, 0], [0, 1])]
    assert widths[0] < widths[1] + widths[2]


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1], [0, 1]])
def test_too_few_of_a_class_have_no_interval(labels: list[float]) -> None:
    scores = np.arange(len(labels))
    moments = AreaMoments.of(np.array(labels), [scores], [ScoreCounts.of(np.array(labels), scores)])
    assert np.isnan(moments.interval([1.0])).all()


def test_the_loss_of_one_probability_is_that_of_all_users() -> None:
    labels, (scores,) = users(50, 1.0)
    found = ScoreCounts.of(labels, scores).log_loss_of(0.3)
    assert found == pytest.approx(log_loss(labels, np.full(50, 0.3)))
    assert math.isnan(ScoreCounts.of(np.zeros(0), np.zeros(0)).log_loss_of(0.3))


def test_equal_scores_share_what_falls_to_their_parts() -> None:
    bins = ScoreCounts.of(np.array([0, 1, 1, 1]), np.array([0.5, 0.5, 0.5, 0.5])).calibration(2)
    assert bins == [{"predicted": 0.5, "observed": 0.75}] * 2


def test_the_curve_is_straight_over_equal_scores() -> None:
    assert ScoreCounts.of(np.array([0, 1]), np.array([7, 7])).curve(2) == [(0, 0), (0.5, 0.5), (1, 1)]
    assert ScoreCounts.of(np.array([0, 1]), np.array([-1, 1])).curve(2) == [(0, 0), (0, 1), (1, 1)]


def test_scores_are_ordered_over_zero() -> None:
    scores = np.array([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 2.5, np.inf])
    counts = ScoreCounts.of(np.ones(8), scores)
    assert counts.positive.tolist() == [1, 1, 1, 2, 1, 1, 1]
