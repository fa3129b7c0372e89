"""Off-policy estimates on a bandit whose value is known: unbiased, doubly robust narrower, intervals that hold."""

import numpy as np
import pytest

from model.off_policy import (
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    on_policy,
    self_normalised,
)

CLICKS = np.array([0.1, 0.3, 0.6])
LOGGED, OTHER = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.3, 0.6])
VALUE = float(CLICKS @ OTHER)


def draw(seed: int, size: int = 2_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, weights and items of a log of one policy."""
    rng = np.random.default_rng(seed)
    item = rng.choice(3, size, p=LOGGED)
    return (rng.random(size) < CLICKS[item]).astype(float), (OTHER / LOGGED)[item], item


def test_estimates_are_unbiased_and_their_intervals_hold() -> None:
    names = ("IPS", "SNIPS", "DR")
    values: dict[str, list[float]] = {name: [] for name in names}
    held = dict.fromkeys(names, 0)
    widths: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(300):
        reward, weight, item = draw(seed)
        found = (
            inverse_propensity(reward, weight),
            self_normalised(reward, weight),
            doubly_robust(reward, weight, CLICKS[item], np.full(len(item), VALUE)),
        )
        for name, estimate in zip(names, found, strict=True):
            values[name].append(estimate.value)
            held[name] += estimate.contains(VALUE)
            widths[name].append(estimate.high - estimate.low)
    for name in names:
        assert np.mean(values[name]) == pytest.approx(VALUE, abs=0.004)
        assert 0.91 <= held[name] / 300 <= 0.985
    assert np.mean(widths["DR"]) < np.mean(widths["SNIPS"]) < np.mean(widths["IPS"])


def test_a_wrong_model_does_not_bias_the_doubly_robust_estimate() -> None:
    wrong = np.array([0.9, 0.1, 0.1])
    values = [
        doubly_robust(reward, weight, wrong[item], np.full(len(item), float(wrong @ OTHER))).value
        for reward, weight, item in map(draw, range(200))
    ]
    assert np.mean(values) == pytest.approx(VALUE, abs=0.01)


def test_the_same_policy_needs_no_correction() -> None:
    reward = np.array([0.0, 1.0, 1.0, 0.0])
    same = np.ones(4)
    assert on_policy(reward) == inverse_propensity(reward, same) == self_normalised(reward, same)
    assert effective_sample_size(same) == 4
    assert effective_sample_size(np.array([1.0, 0, 0, 0])) == 1
    assert effective_sample_size(np.zeros(3)) == 0
