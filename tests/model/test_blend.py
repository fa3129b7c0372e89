"""Blends: the logistic regression that scipy would find, calibrated, and no worse than its parts."""

import pickle

import numpy as np
from scipy.optimize import minimize

from data_io.features import FEATURE_NAMES
from model.blend import Blend, fit_blend, fit_logistic, log_odds
from model.metrics import area_under_curve, log_loss
from model.trees import grow_trees

RNG = np.random.default_rng(0)


def make_users(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that hang on a feature and on what a network alone sees; its probability; features."""
    features = RNG.normal(size=(number, len(FEATURE_NAMES))).astype(np.float32)
    hidden = RNG.normal(size=number)
    labels = (RNG.random(number) < 1 / (1 + np.exp(-(1.5 * features[:, 0] + 1.5 * hidden - 1)))).astype(np.float64)
    overconfident = 1 / (1 + np.exp(-3 * hidden))
    return labels, overconfident.astype(np.float32), features


def test_weights_are_those_of_a_logistic_regression() -> None:
    inputs = np.column_stack([np.ones(500), RNG.normal(size=(500, 2))])
    labels = (RNG.random(500) < 1 / (1 + np.exp(-inputs @ [0.5, 1.0, -2.0]))).astype(np.float64)

    def cost(weights: np.ndarray) -> float:
        odds = inputs @ weights
        return float(np.logaddexp(0, odds).sum() - labels @ odds + 0.25 * (weights**2).sum())

    found = fit_logistic(inputs, labels, np.zeros(3))
    np.testing.assert_allclose(found, minimize(cost, np.zeros(3)).x, atol=1e-3)


def test_a_blend_is_better_than_both_and_calibrated() -> None:
    training, held, tested = make_users(3_000), make_users(2_000), make_users(4_000)
    trees = grow_trees((training[2], training[0]), (held[2], held[0]), "binary", 0, seed=0)
    blend = fit_blend(*held, trees)
    labels, alone, features = tested
    blended = blend.apply(alone, features)
    by_trees = Blend((0.0, 0.0, 1.0), trees).apply(alone, features)
    assert area_under_curve(labels, blended) > max(area_under_curve(labels, alone), area_under_curve(labels, by_trees))
    assert log_loss(labels, blended) < min(log_loss(labels, alone), log_loss(labels, by_trees))
    assert abs(blended.mean() - labels.mean()) < 0.02


def test_without_trees_it_calibrates_the_network() -> None:
    labels, alone, features = make_users(3_000)
    blend = fit_blend(labels, alone, features, None)
    assert 0 < blend.weights[1] < 0.8, "it was overconfident"
    assert log_loss(labels, blend.apply(alone, features)) < log_loss(labels, alone)


def test_labels_that_the_network_tells_apart_for_sure_keep_weights_finite() -> None:
    labels = np.array([0.0, 1.0] * 50)
    blend = fit_blend(labels, labels, np.zeros((100, len(FEATURE_NAMES)), np.float32), None)
    assert np.isfinite(blend.weights).all()


def test_a_blend_travels_without_its_parsed_trees() -> None:
    labels, alone, features = make_users(400)
    trees = grow_trees((features, labels), (features, labels), "binary", 0, seed=0)
    blend = fit_blend(labels, alone, features, trees)
    expected = blend.apply(alone, features)
    copied = pickle.loads(pickle.dumps(blend))
    assert "booster" not in vars(copied)
    np.testing.assert_array_equal(copied.apply(alone, features), expected)
    assert blend.apply(alone[:0], features[:0]).shape == (0,)


def test_log_odds_are_bounded() -> None:
    assert np.isfinite(log_odds(np.array([0.0, 1.0, 0.5]))).all()
