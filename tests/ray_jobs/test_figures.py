"""Figures: numbers held against hand-computed ones, and words that say it where a model is worse."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter
from data_io.features import FEATURE_NAMES
from ray_jobs import outcome_figures as outcomes
from ray_jobs import rank_counts
from ray_jobs.bucket_map import map_on_threads
from ray_jobs.config import EvaluationSettings
from ray_jobs.figures import next_item_figures, own_intervals, verdicts
from ray_jobs.outcome_figures import outcome_figures

OPTIONS = EvaluationSettings(ks=(5, 10), num_resamples=50)

Publish = Callable[..., str]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rank_counts, outcomes):
        monkeypatch.setattr(module, "map_buckets", map_on_threads)


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Publishes per-user results, each table a bucket; returns the URL."""

    def run(*tables: pa.Table) -> str:
        writer = BucketWriter(url=str(tmp_path / "users"), fingerprint="this")
        writer.publish([writer.commit(bucket, len(tables), table, {}) for bucket, table in enumerate(tables)], {})
        return writer.url

    return run


def make_ranks(
    *,
    length: list[int] | None = None,
    group: list[str] | None = None,
    events: list[int] | None = None,
    **ranks: list[int],
) -> pa.Table:
    """Users with these ranks; unless given, with one event each and a target that is a head item with nine."""
    size = len(next(iter(ranks.values())))
    columns: dict[str, Any] = {f"rank_{name}": np.array(values, np.int64) for name, values in ranks.items()}
    columns |= {
        "user_id": pa.array([str(row) for row in range(size)], pa.string()),
        "history_length": np.array(length or [1] * size, np.int64),
        "target_group": pa.array(group or ["head"] * size, pa.string()),
        "target_training_events": np.array(events or [9] * size, np.int64),
    }
    return pa.table(columns)


def slice_named(figures: dict[str, Any], by: str, name: str) -> dict[str, Any]:
    (found,) = [part for part in figures["slices"] if (part["by"], part["name"]) == (by, name)]
    return found


def make_outcomes(stage: str, outcome: list[int], probability: list[float], **features: list[float]) -> pa.Table:
    """Users of a stage; a feature that is not given is the same for all."""
    columns: dict[str, Any] = {
        f"feature_{name}": np.array(features.get(name, [0.0] * len(outcome)), np.float32) for name in FEATURE_NAMES
    }
    columns |= {"outcome": np.array(outcome, np.int32), "probability": np.array(probability, np.float32)}
    return pa.table(columns | {"stage": [stage] * len(outcome)})


def make_metrics(value: float, **gains: tuple[float, float]) -> dict[str, Any]:
    gain_over = {base: {"value": (low + high) / 2, "low": low, "high": high} for base, (low, high) in gains.items()}
    return {"ndcg_at_10": {"value": value}} | ({"gain_over": gain_over} if gains else {})


def test_ranking_metrics_of_every_ranker_are_means_over_users(publish: Publish) -> None:
    first = make_ranks(encoder=[1, 2], popularity=[6, 6], own_history=[11, 11])
    second = make_ranks(encoder=[50], popularity=[6], own_history=[11])
    figures = next_item_figures(publish(first, second), OPTIONS, seed=0)
    assert figures["num_users"] == 3
    encoder = {
        name: figures["rankers"]["encoder"][name]["value"] for name in ("recall_at_5", "ndcg_at_10", "mrr_at_10")
    }
    expected = {"recall_at_5": 2 / 3, "ndcg_at_10": (1 + 1 / math.log2(3)) / 3, "mrr_at_10": (1 + 1 / 2) / 3}
    assert encoder == pytest.approx(expected)
    popularity = figures["rankers"]["popularity"]
    assert popularity["recall_at_5"]["value"] == 0
    assert popularity["recall_at_10"]["value"] == 1
    assert figures["rankers"]["own_history"]["ndcg_at_10"]["value"] == 0


def test_gains_are_over_each_baseline_and_baselines_have_none(publish: Publish) -> None:
    table = make_ranks(encoder=[1, 1], next_movie=[1, 99], popularity=[99, 99], own_history=[1, 1])
    rankers = next_item_figures(publish(table), OPTIONS, seed=0)["rankers"]
    assert rankers["encoder"]["gain_over"]["popularity"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert rankers["encoder"]["gain_over"]["own_history"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rankers["next_movie"]["gain_over"]["own_history"]["value"] == -0.5
    assert not {"gain_over"} & (set(rankers["popularity"]) | set(rankers["own_history"]))


def test_an_interval_holds_its_value_and_follows_the_seed(publish: Publish) -> None:
    ranks = np.random.default_rng(0).integers(1, 30, 60).tolist()
    url = publish(make_ranks(encoder=ranks, popularity=ranks[::-1], own_history=ranks))
    first, again, other = (next_item_figures(url, OPTIONS, seed=seed)["rankers"]["encoder"] for seed in (0, 0, 1))
    figure = first["ndcg_at_10"]
    assert figure["low"] < figure["value"] < figure["high"]
    assert first == again
    assert first != other


@pytest.mark.parametrize(("ks", "headline"), [((5, 10, 20), "ndcg_at_10"), ((1, 3), "ndcg_at_1")])
def test_the_headline_is_at_ten_or_at_the_first_k(publish: Publish, ks: tuple[int, ...], headline: str) -> None:
    table = make_ranks(encoder=[1], popularity=[1], own_history=[1])
    options = EvaluationSettings(ks=ks, num_resamples=10)
    assert next_item_figures(publish(table), options, seed=0)["headline"] == headline


def test_no_user_with_a_target_gives_no_number_and_no_winner(publish: Publish) -> None:
    figures = next_item_figures(publish(make_ranks(encoder=[], popularity=[], own_history=[])), OPTIONS, seed=0)
    assert figures["num_users"] == 0
    assert math.isnan(figures["rankers"]["encoder"]["ndcg_at_10"]["value"])
    assert all("is not clearly apart from" in line for line in verdicts(figures, {}))


def test_models_are_held_against_every_baseline_there_is_and_the_best_is_named(publish: Publish) -> None:
    table = make_ranks(encoder=[2, 2], popularity=[9, 9], own_history=[3, 3], item_knn=[1, 4])
    figures = next_item_figures(publish(table), OPTIONS, seed=0)
    assert figures["best_baseline"] == "item_knn"
    assert list(figures["rankers"]["encoder"]["gain_over"]) == ["popularity", "own_history", "item_knn"]
    assert "item_knn, the best baseline, in ndcg_at_10" in verdicts(figures, {})[0]


def test_a_model_is_held_against_every_model_after_it_once(publish: Publish) -> None:
    table = make_ranks(encoder=[1, 1], gru=[3, 3], last_month=[1, 1], popularity=[99, 99])
    figures = next_item_figures(publish(table), OPTIONS, seed=0)
    gains = {name: list(metrics.get("gain_over", {})) for name, metrics in figures["rankers"].items()}
    assert gains == {
        "encoder": ["popularity", "gru", "last_month"],
        "gru": ["popularity", "last_month"],
        "last_month": ["popularity"],
        "popularity": [],
    }
    lines = verdicts(figures, {})
    assert lines[1] == "encoder beats gru in ndcg_at_10: 1.0000 against 0.5000, gain +0.5000 [+0.5000, +0.5000]"
    assert lines[2].startswith("encoder is not clearly apart from last_month in ndcg_at_10: 1.0000 against 1.0000")
    assert lines[4].startswith("gru loses to last_month in ndcg_at_10: 0.5000 against 1.0000, gain -0.5000")


def test_a_gain_over_a_model_is_paired_by_user(publish: Publish) -> None:
    """Users differ far more than the two models do on the same user: paired, the gain is clear."""
    ranks = np.random.default_rng(0).integers(1, 10, 200)
    table = make_ranks(encoder=ranks.tolist(), gru=(ranks + 1).tolist(), popularity=[99] * 200)
    encoder, gru = (next_item_figures(publish(table), OPTIONS, seed=0)["rankers"][name] for name in ("encoder", "gru"))
    gain = encoder["gain_over"]["gru"]
    assert gain["value"] == pytest.approx(encoder["ndcg_at_10"]["value"] - gru["ndcg_at_10"]["value"])
    assert gain["high"] - gain["low"] < encoder["ndcg_at_10"]["high"] - encoder["ndcg_at_10"]["low"]


def test_every_ranker_has_a_line_with_its_own_interval(publish: Publish) -> None:
    figures = next_item_figures(publish(make_ranks(encoder=[1, 1], gru=[3, 3], popularity=[99, 99])), OPTIONS, seed=0)
    assert own_intervals(figures) == [
        "ndcg_at_10 of encoder: 1.0000 [1.0000, 1.0000]",
        "ndcg_at_10 of gru: 0.5000 [0.5000, 0.5000]",
        "ndcg_at_10 of popularity: 0.0000 [0.0000, 0.0000]",
    ]


def test_verdicts_name_the_slices_where_a_model_loses_to_a_later_one(publish: Publish) -> None:
    table = make_ranks(encoder=[1, 1, 1, 9], gru=[9, 9, 9, 1], popularity=[99] * 4, events=[9, 9, 9, 0])
    lines = verdicts(next_item_figures(publish(table), OPTIONS, seed=0), {})
    assert [line for line in lines if "loses to" in line] == [
        "encoder loses to gru in the slice training events of the target, new (none) (1 users), in ndcg_at_10: "
        "0.3010 against 1.0000"
    ]


def test_slices_hold_each_user_once_and_their_own_figures(publish: Publish) -> None:
    table = make_ranks(
        encoder=[1, 1, 99, 99],
        popularity=[99, 99, 99, 1],
        own_history=[99, 1, 1, 99],
        length=[1, 2, 3, 40],
        group=["head", "head", "middle", "tail"],
        events=[9, 6, 5, 0],
    )
    figures = next_item_figures(publish(table), OPTIONS, seed=0)
    users = {by: [] for by in ("length of history", "popularity of the target", "training events of the target")}
    for part in figures["slices"]:
        users[part["by"]].append((part["name"], part["num_users"]))
    assert users == {
        "length of history": [("1 event", 1), ("2 events", 1), ("3 events", 1), ("40 events", 1)],
        "popularity of the target": [("head items", 2), ("middle items", 1), ("tail items", 1)],
        "training events of the target": [("new (none)", 1), ("rare (1 to 5)", 1), ("known (more than 5)", 2)],
    }
    head, new = (
        slice_named(figures, "popularity of the target", "head items"),
        slice_named(figures, "training events of the target", "new (none)"),
    )
    assert head["rankers"]["encoder"]["recall_at_10"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert head["rankers"]["own_history"]["ndcg_at_10"]["value"] == 0.5
    assert (head["best_baseline"], new["best_baseline"]) == ("own_history", "popularity")
    assert new["rankers"]["encoder"]["gain_over"] == {"popularity": {"value": -1.0, "low": -1.0, "high": -1.0}}


def test_verdicts_name_the_slices_where_a_model_loses(publish: Publish) -> None:
    table = make_ranks(encoder=[1, 1, 1, 9], popularity=[9, 9, 9, 1], own_history=[9] * 4, events=[9, 9, 9, 0])
    lines = verdicts(next_item_figures(publish(table), OPTIONS, seed=0), {})
    losses = [line for line in lines if "loses to" in line]
    assert losses == [
        "encoder loses to popularity in the slice training events of the target, new (none) (1 users), in ndcg_at_10: "
        "0.3010 against 1.0000"
    ]


def test_quarters_of_equal_lengths_are_one(publish: Publish) -> None:
    table = make_ranks(encoder=[1] * 8, popularity=[1] * 8, length=[2, 2, 2, 2, 2, 2, 3, 9])
    figures = next_item_figures(publish(table), OPTIONS, seed=0)
    named = [(part["name"], part["num_users"]) for part in figures["slices"] if part["by"] == "length of history"]
    assert named == [("2 events", 6), ("3 to 9 events", 2)]


def test_a_slice_without_users_has_no_number(publish: Publish) -> None:
    figures = next_item_figures(publish(make_ranks(encoder=[1], popularity=[1])), OPTIONS, seed=0)
    part = slice_named(figures, "popularity of the target", "tail items")
    assert part["num_users"] == 0
    assert math.isnan(part["rankers"]["encoder"]["ndcg_at_10"]["value"])


def test_an_outcome_is_measured_on_test_users(publish: Publish) -> None:
    validation = make_outcomes("validation", [0, 0, 0, 1], [0.9, 0.9, 0.9, 0.1])
    test = make_outcomes("test", [0, 1, 0, 1], [0.2, 0.8, 0.2, 0.8])
    figures = outcome_figures(publish(validation, test))
    assert (figures["num_users"], figures["rate"], figures["auc"]["value"]) == (4, 0.5, 1.0)
    assert figures["log_loss"] == pytest.approx(-math.log(0.8))
    mean_rate = -(math.log(0.25) + math.log(0.75)) / 2
    assert figures["mean_rate_log_loss"] == pytest.approx(mean_rate), "the rate is the validation users'"


def test_trees_stand_beside_the_task_where_there_are_any(publish: Publish) -> None:
    tables = [make_outcomes(stage, [0, 1, 0, 1] * 3, [0.2, 0.8, 0.3, 0.7] * 3) for stage in ("validation", "test")]
    figures = outcome_figures(publish(*tables))
    assert not {"trees", "gain_over_trees"} & figures.keys()
    worse = [table.append_column("trees", pa.array([0.4, 0.6, 0.7, 0.3] * 3, pa.float32())) for table in tables]
    figures = outcome_figures(publish(*worse))
    assert figures["trees"]["auc"]["value"] == 0.25
    assert figures["trees"]["log_loss"] == pytest.approx(-(math.log(0.6) + math.log(0.3)) / 2)
    assert figures["gain_over_trees"]["low"] > 0
    lines = verdicts({"headline": "ndcg_at_10", "rankers": {}}, {"churn": figures})
    assert lines[1] == "churn beats gradient-boosted trees on the counts in AUC: 1.0000 against 0.2500"


def test_the_best_feature_and_its_direction_are_chosen_on_validation_users(publish: Publish) -> None:
    """On test users the feature points the other way, and another one would have been better."""
    features = {"recency_days": [9.0, 8.0, 2.0, 1.0], "num_events": [1.0, 5.0, 5.0, 5.0]}
    validation = make_outcomes("validation", [0, 0, 1, 1], [0.5] * 4, **features)
    swapped = {"recency_days": [1.0, 2.0, 8.0, 9.0], "num_events": [1.0, 1.0, 5.0, 5.0]}
    test = make_outcomes("test", [0, 0, 1, 1], [0.5] * 4, **swapped)
    feature = outcome_figures(publish(validation, test))["best_feature"]
    assert (feature["name"], feature["validation_auc"], feature["auc"]["value"]) == ("recency_days", 1.0, 0.0)


def test_calibration_goes_by_rising_prediction_in_tenths_of_the_users(publish: Publish) -> None:
    probability = np.linspace(0.95, 0.05, 20)
    test = make_outcomes("test", [1] * 10 + [0] * 10, probability.tolist())
    bins = outcome_figures(publish(test))["calibration"]
    assert [bin["observed"] for bin in bins] == [0.0] * 5 + [1.0] * 5
    assert bins[0]["predicted"] == pytest.approx(probability[-2:].mean(), rel=1e-6)


def test_calibration_of_fewer_than_ten_users_has_fewer_bins(publish: Publish) -> None:
    test = make_outcomes("test", [0, 1, 1], [0.1, 0.2, 0.3])
    bins = outcome_figures(publish(test))["calibration"]
    assert [bin["observed"] for bin in bins] == [0.0, 1.0, 1.0]


def test_a_curve_runs_from_corner_to_corner_and_never_back(publish: Publish) -> None:
    generator = np.random.default_rng(0)
    test = make_outcomes("test", generator.integers(0, 2, 200).tolist(), generator.random(200).tolist())
    curve = outcome_figures(publish(test))["curve"]
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert curve == sorted(curve)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_an_outcome_that_never_happens_has_no_area_and_no_winner(publish: Publish) -> None:
    tables = [make_outcomes(stage, [0, 0], [0.1, 0.2]) for stage in ("validation", "test")]
    figures = outcome_figures(publish(*tables))
    assert math.isnan(figures["auc"]["value"])
    lines = verdicts({"headline": "ndcg_at_10", "rankers": {}}, {"purchase": figures})
    assert lines[0].startswith("purchase is not clearly apart from the best single feature (")


def test_verdicts_say_better_worse_and_neither() -> None:
    rankers = {
        "encoder": make_metrics(0.2, popularity=(0.05, 0.15), own_history=(-0.2, -0.1)),
        "next_movie": make_metrics(0.1, popularity=(-0.01, 0.01)),
        "popularity": make_metrics(0.1),
        "own_history": make_metrics(0.35),
    }
    figures = {"headline": "ndcg_at_10", "best_baseline": "own_history", "rankers": rankers}
    assert verdicts(figures, {}) == [
        "encoder loses to own_history, the best baseline, in ndcg_at_10: 0.2000 against 0.3500, "
        "gain -0.1500 [-0.2000, -0.1000]",
        "encoder beats popularity in ndcg_at_10: 0.2000 against 0.1000, gain +0.1000 [+0.0500, +0.1500]",
        "next_movie is not clearly apart from popularity in ndcg_at_10: 0.1000 against 0.1000, "
        "gain +0.0000 [-0.0100, +0.0100]",
    ]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.71, 0.79, "beats"), (0.61, 0.69, "loses to"), (0.65, 0.75, "is not clearly apart from")],
)
def test_an_outcome_is_held_against_the_best_single_feature(low: float, high: float, words: str) -> None:
    figures = {
        "auc": {"value": (low + high) / 2, "low": low, "high": high},
        "best_feature": {"name": "recency_days", "auc": {"value": 0.7}},
        "gain_over_feature": {"low": low - 0.7, "high": high - 0.7},
    }
    line = verdicts({"headline": "ndcg_at_10", "rankers": {}}, {"purchase": figures})[0]
    assert (
        line == f"purchase {words} the best single feature (recency_days) in AUC: {(low + high) / 2:.4f} against 0.7000"
    )
