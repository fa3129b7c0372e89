"""Figures of classes, labels and numbers against what NumPy says of all users at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter
from model.metrics import area_under_curve
from ray_jobs import answer_figures as module
from ray_jobs.answer_figures import answer_figures, answer_verdicts, questions_of
from ray_jobs.bucket_map import map_on_threads

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "map_buckets", map_on_threads)


def publish(folder: Path, columns: dict[str, Any]) -> str:
    """Rows of both stages in two buckets; validation users have the same rows."""
    number = len(columns["outcome"])
    writer = BucketWriter(url=str(folder), fingerprint="f")
    marks = []
    for bucket in (0, 1):
        rows = pa.array(np.arange(bucket, number, 2))
        table = pa.table(columns).take(rows)
        tables = [
            table.append_column("stage", pa.array([stage] * len(rows), pa.string())) for stage in ("validation", "test")
        ]
        marks.append(writer.commit(bucket, 2, pa.concat_tables(tables), {}))
    writer.publish(marks, {"num_buckets": 2})
    return str(folder)


def described(kind: str, answer: str, *classes: str) -> dict[str, Any]:
    return {"name": "q", "answer": answer, "settings": {"kind": kind}, "classes": list(classes)}


def test_numbers_have_errors_beside_the_mean_and_the_horizon_before(tmp_path: Path) -> None:
    label = RNG.gamma(2.0, 10.0, 400)
    good, before, trees = label + RNG.normal(0, 3, 400), RNG.permutation(label), label + RNG.normal(0, 9, 400)
    columns = {"outcome": label, "probability": good, "before": before, "trees": trees}
    columns = {name: values.astype(np.float32) for name, values in columns.items()}
    figures = answer_figures(publish(tmp_path, columns), described("spend", "amount"))
    own = figures["rankers"]["task"]
    assert figures["num_users"] == 400
    assert own["explained_variance"]["value"] == pytest.approx(1 - ((label - good) ** 2).mean() / label.var(), abs=1e-4)
    assert own["mean_absolute_error"]["value"] == pytest.approx(np.abs(label - good).mean(), rel=1e-4)
    assert own["predicted_over_true"] == pytest.approx(good.sum() / label.sum(), rel=1e-4)
    assert figures["rankers"]["mean"]["explained_variance"]["value"] == pytest.approx(0, abs=1e-4)
    differences = ((label - trees) ** 2 - (label - good) ** 2) / label.var()
    gain = figures["gain_over"]["trees"]
    assert gain["value"] == pytest.approx(differences.mean(), rel=1e-3)
    half = 1.96 * differences.std(ddof=1) / 20
    assert (gain["high"] - gain["low"]) / 2 == pytest.approx(half, rel=1e-2)
    lines = answer_verdicts({"customer_spend": figures})
    assert any(line.startswith("customer_spend beats gradient-boosted trees") for line in lines)


def test_classes_are_ranked_beside_the_most_frequent_and_the_own(tmp_path: Path) -> None:
    label = RNG.choice(3, 300, p=[0.6, 0.3, 0.1])
    scores = RNG.random((300, 3)) + 2 * np.eye(3)[label] * (RNG.random(300) < 0.7)[:, None]
    scores /= scores.sum(axis=1, keepdims=True)
    own = scores[np.arange(300), label]
    rank = 1 + (scores > own[:, None]).sum(axis=1)
    columns = {
        "outcome": label.astype(np.int32),
        "probability": own.astype(np.float32),
        "rank": rank.astype(np.int32),
        "before": np.where(RNG.random(300) < 0.5, label, -1).astype(np.int32),
    }
    figures = answer_figures(publish(tmp_path, columns), described("next_category", "classes", "a", "b", "c"))
    rankers = figures["rankers"]
    assert rankers["task"]["accuracy"]["value"] == pytest.approx((rank == 1).mean())
    assert rankers["task"]["log_loss"]["value"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert rankers["most frequent"]["accuracy"]["value"] == pytest.approx((label == 0).mean())
    assert rankers["own history"]["accuracy"]["value"] == pytest.approx((columns["before"] == label).mean())
    assert np.isnan(rankers["own history"]["log_loss"]["value"])
    gain = (rank == 1).mean() - (columns["before"] == label).mean()
    assert figures["gain_over"]["own history"]["value"] == pytest.approx(gain)


def test_labels_have_an_area_each(tmp_path: Path) -> None:
    labels = (RNG.random((200, 2)) < 0.3).astype(np.float32)
    predicted = (0.5 * labels + RNG.random((200, 2))).astype(np.float32)
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
        for name, values in (("outcome", labels), ("probability", predicted))
    }
    figures = answer_figures(publish(tmp_path, columns), described("categories", "labels", "x", "y"))
    expected = [area_under_curve(labels[:, place], predicted[:, place]) for place in (0, 1)]
    assert list(figures["areas"].values()) == pytest.approx(expected)
    assert figures["mean_auc"] == pytest.approx(np.mean(expected))


def test_the_only_question_is_called_as_its_task() -> None:
    alone = questions_of("purchase_7d", {"questions": [{"name": ""}]})
    several = questions_of("customer", {"questions": [{"name": "churn"}, {"name": "spend"}]})
    assert (list(alone), list(several)) == (["purchase_7d"], ["customer_churn", "customer_spend"])
