"""Figures of responses against what NumPy says of all pairs at once, with whole users resampled."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.metrics import area_under_curve, log_loss
from ray_jobs import response_figures as module
from ray_jobs.bucket_map import map_on_threads
from ray_jobs.response_figures import BASES, UserSums, response_figures, response_verdicts
from tests.ray_jobs.test_answer_figures import publish

NUM_ITEMS, NUM_PAIRS, NUM_USERS = 6, 600, 60


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "map_buckets", map_on_threads)


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    """Pairs of users of whom some respond to everything; every other user is in the other bucket."""
    rng = np.random.default_rng(5)
    user = np.sort(rng.integers(0, NUM_USERS // 2, NUM_PAIRS // 2)).repeat(2) * 2 + np.tile([0, 1], NUM_PAIRS // 2)
    item, before = rng.integers(2, NUM_ITEMS, NUM_PAIRS), rng.poisson(2.0, NUM_PAIRS)
    chance = 1 / (1 + np.exp(2 - rng.normal(0, 1, NUM_USERS)[user] - 0.5 * before - 0.3 * item))
    label = (rng.random(NUM_PAIRS) < chance).astype(np.int32)
    return {
        "user_id": np.array([f"u{number}" for number in user]),
        "item_index": item.astype(np.int32),
        "outcome": label,
        "probability": chance.astype(np.float32),
        "before": before.astype(np.int32),
    }


def as_table(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    return columns | {"user_id": pa.array(columns["user_id"].tolist(), pa.large_string())}


def rates_of(groups: np.ndarray, label: np.ndarray, mean: float) -> np.ndarray:
    """[N] the rate of each pair's group, ten pairs of the mean rate added."""
    rates = {group: (label[groups == group].sum() + 10 * mean) / ((groups == group).sum() + 10) for group in groups}
    return np.array([rates[group] for group in groups])


def test_figures_are_those_of_all_pairs(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    figures = response_figures(publish(tmp_path, as_table(columns)), NUM_ITEMS)
    label = columns["outcome"]
    mean = (label.sum() + 0.5) / (NUM_PAIRS + 1)
    expected = {
        "task": columns["probability"].astype(np.float64),
        "mean rate": np.full(NUM_PAIRS, mean),
        "item's rate": rates_of(columns["item_index"], label, mean),
        "rate by events before": rates_of(np.minimum(columns["before"], 10), label, mean),
    }
    assert (figures["num_pairs"], figures["rate"]) == (NUM_PAIRS, label.mean())
    assert figures["num_users"] == len(set(columns["user_id"]))
    assert tuple(figures["rankers"]) == ("task", *BASES)
    for name, probability in expected.items():
        found = figures["rankers"][name]
        assert found["log_loss"] == pytest.approx(log_loss(label, probability), rel=1e-6)
        assert found["auc"] == pytest.approx(area_under_curve(label, probability.astype(np.float32)), abs=1e-6)
    gain = figures["gain_over"]["mean rate"]
    assert gain["value"] == pytest.approx(log_loss(label, expected["mean rate"]) - log_loss(label, expected["task"]))
    assert response_verdicts({"buy": figures})[0].startswith("buy beats the mean rate in log loss: ")


def test_an_interval_is_that_of_resampled_users() -> None:
    rng = np.random.default_rng(0)
    number = rng.integers(1, 20, 400).astype(float)
    value = number * rng.normal(0.3, 1.0, 400)
    rows = np.stack([value, number], axis=1)
    found = UserSums(num_users=400, total=rows.sum(axis=0), products=rows.T @ rows).mean([1.0])
    draws = rows[rng.integers(0, 400, (4_000, 400))].sum(axis=1)
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    assert found["value"] == pytest.approx(value.sum() / number.sum())
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)


def test_nobody_to_measure_is_no_error(tmp_path: Path, columns: dict[str, np.ndarray]) -> None:
    nobody = {name: values[:0] for name, values in columns.items()}
    figures = response_figures(publish(tmp_path, as_table(nobody)), NUM_ITEMS)
    assert figures["num_pairs"] == figures["num_users"] == 0
    assert np.isnan(figures["gain_over"]["mean rate"]["value"])
    assert response_verdicts({"buy": figures})[0].startswith("buy is not clearly apart from the mean rate")
