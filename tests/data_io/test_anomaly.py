"""Anomalies: tails among users of like history length, scores and alerts."""

import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest

from data_io.alerts import AlertLimits, count_alerts, find_alerts
from data_io.anomaly import SIDES, Reference, anomaly_scores

NAN = float("nan")
LIMITS = AlertLimits(deviations=5.0, gap_variation=0.2, purchases=10)


def usual_signs(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(5, 1, size) for name in SIDES}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.of(np.repeat([10, 500], 300), usual_signs(600))


def test_a_tail_is_the_share_of_like_users_at_least_as_odd() -> None:
    reference = Reference.of(
        np.full(4, 7), {"moments_per_day": np.array([1.0, 2, 3, 4]), "gap_variation": np.arange(4.0)}
    )
    lengths = np.full(3, 7)
    high = reference.tail("moments_per_day", np.array([3.0, 9.0, NAN]), lengths)
    beyond = (9 - 2.5) / ((3.25 - 1.75) / 1.349)
    np.testing.assert_allclose(high, [(2 + 1) / 5, 1 / (1 + beyond**2), NAN])
    low = reference.tail("gap_variation", np.array([0.0, 3.0]), lengths[:2])
    np.testing.assert_allclose(low, [1 / (1 + (1.5 / (1.5 / 1.349)) ** 2), 1.0])


def test_where_others_do_not_spread_only_their_share_counts() -> None:
    reference = Reference.of(np.full(9, 7), {"item_burst": np.ones(9)})
    tails = reference.tail("item_burst", np.array([1.0, 2.0]), np.full(2, 7))
    np.testing.assert_allclose(tails, [1.0, 1 / 10])


def test_the_reference_travels_as_json(reference: Reference) -> None:
    copy = Reference(**json.loads(json.dumps(asdict(reference))))
    assert copy == reference
    assert reference.edges == [500]


def test_users_are_held_against_those_of_like_history() -> None:
    lengths = np.repeat([5, 1000], 200)
    values = np.where(lengths == 5, 1.0, 100.0) + np.random.default_rng(0).normal(0, 0.1, 400)
    reference = Reference.of(lengths, {"surprise": values})
    odd = reference.deviation("surprise", np.array([1.0, 100.0, 100.0]), np.array([5, 1000, 5]))
    assert abs(odd[0]) < 1
    assert abs(odd[1]) < 1
    assert odd[2] > 100


def test_a_usual_user_scores_about_one_and_an_odd_one_more(reference: Reference) -> None:
    usual = usual_signs(2_000, seed=1)
    lengths = np.full(2_000, 10)
    scores = anomaly_scores(reference, usual, lengths)
    assert scores.mean() == pytest.approx(1, abs=0.25)
    odd = {name: np.array([20.0 if side != "low" else -20.0]) for name, side in SIDES.items()}
    assert anomaly_scores(reference, odd, np.array([10]))[0] > scores.max()
    unknown = {name: np.array([NAN]) for name in SIDES}
    assert anomaly_scores(reference, unknown, np.array([10])).tolist() == [1.0]


def test_alerts_say_why_in_words(reference: Reference) -> None:
    signs = {name: np.full(4, 5.0) for name in SIDES}
    signs["item_burst"][1] = 12
    signs["gap_variation"][2] = 0.01
    signs["surprise_shift"][3] = 30.0
    signs["surprise"][3] = NAN
    robots = np.zeros((3, 4), bool)
    robots[2, 2] = True
    found = find_alerts(signs, robots, reference, np.full(4, 10), LIMITS)
    assert found["alerts"].to_list() == [[], ["brushing"], ["bot"], ["takeover"]]
    assert found["alert_reasons"].to_list() == [
        [],
        ["12 purchases of one item in 24 h"],
        ["events in all 24 hours of a day", "gaps as regular as a clock's (variation 0.01)"],
        ["newest events 30.0 nats less expected than those before"],
    ]
    assert count_alerts(found["alerts"]) == {"bot": 1, "brushing": 1, "takeover": 1, "unusual": 0}


def test_no_user_with_an_alert_is_no_alert() -> None:
    nobody = pl.Series("alerts", [[], []], pl.List(pl.String))
    assert set(count_alerts(nobody).values()) == {0}
