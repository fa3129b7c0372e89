"""Figures of questions about classes, labels and numbers: how good answers are, beside simple baselines.

Questions about whether are in `ray_jobs.outcome_figures`. Read from per-user results by tasks of Ray, of which only
sums come back. Invariant: what a baseline takes from other users it takes from those of the validation cutoff.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.buckets import read_bucket
from data_io.snapshots import read_manifest
from model.score_counts import ScoreCounts, total_counts
from ray_jobs.bucket_map import map_buckets
from ray_jobs.models import score_name
from ray_jobs.outcome_tables import BEFORE, OUTCOME, PREDICTED, STAGE, TREES

_CLIP, _NORMAL_95 = 1e-7, 1.959963984540054


def questions_of(task: str, manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Questions of a task as its manifest describes them, by score name."""
    return {score_name(task, described["name"]): described for described in manifest["questions"]}


def is_binary(described: Mapping[str, Any]) -> bool:
    """Whether a question asks whether something is so."""
    return described["answer"] == "binary"


def answer_figures(url: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one question from per-user results published at a URL: number of users, a metric with its interval for
    the task and each baseline, and the gain over each baseline."""
    manifest, answer = read_manifest(url), described["answer"]
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    figures = {"kind": described["settings"]["kind"], "answer": answer, "classes": list(described["classes"])}
    if answer == "labels":
        return figures | _label_figures(url, manifest, buckets, described["classes"])
    prior = sum(map_buckets(partial(_prior, url, manifest, answer, len(described["classes"])), buckets))
    assert isinstance(prior, np.ndarray)
    measure = _measure_classes if answer == "classes" else _measure_numbers
    parts = list(map_buckets(partial(measure, url, manifest, prior), buckets))
    names = [name for name in parts[0] if all(name in part for part in parts)]
    sums = {name: sum((part[name] for part in parts), _Sums()) for name in names}
    return figures | (_class_figures(sums) if answer == "classes" else _number_figures(sums))


class _Sums:
    """Sums over users of values [N, C] and of their products, from which means and intervals follow; they add up."""

    def __init__(self, values: np.ndarray | None = None) -> None:
        self.number = 0 if values is None else len(values)
        self.total: np.ndarray | float = 0.0 if values is None else values.sum(axis=0)
        self.products: np.ndarray | float = 0.0 if values is None else values.T @ values

    def __add__(self, other: "_Sums") -> "_Sums":
        both = _Sums()
        both.number = self.number + other.number
        both.total, both.products = self.total + other.total, self.products + other.products
        return both

    def mean(self, weights: list[float]) -> dict[str, float]:
        """Mean of a weighted sum of the columns, with its 95 % interval by the normal approximation."""
        if self.number < 2:
            return dict.fromkeys(("value", "low", "high"), float("nan"))
        by, total = np.array(weights), np.asarray(self.total)
        value = float(by @ total / self.number)
        variance = float(by @ np.asarray(self.products) @ by / self.number - value**2)
        error = _NORMAL_95 * np.sqrt(max(variance, 0.0) / (self.number - 1))
        return {"value": value, "low": value - error, "high": value + error}


def _read(url: str, manifest: dict[str, Any], bucket: int, stage: str) -> pa.Table:
    table = read_bucket(url, manifest, bucket)
    return table.filter(pc.call_function("equal", [table.column(STAGE), pa.scalar(stage)]))


def _prior(url: str, manifest: dict[str, Any], answer: str, num_classes: int, bucket: int) -> np.ndarray:
    """Of validation users: how many are of each class, or their number and the sum of their labels."""
    labels = _read(url, manifest, bucket, "validation").column(OUTCOME).to_numpy()
    if answer == "classes":
        return np.bincount(labels, minlength=num_classes).astype(np.float64)
    return np.array([len(labels), labels.astype(np.float64).sum()])


def _measure_classes(url: str, manifest: dict[str, Any], prior: np.ndarray, bucket: int) -> dict[str, _Sums]:
    """Of test users, by ranker: first place is right, in the first three, log loss; the task's own beside them."""
    table = _read(url, manifest, bucket, "test")
    label = table.column(OUTCOME).to_numpy()
    rates = (prior + 0.5) / (prior + 0.5).sum()
    order = np.argsort(np.argsort(-prior, kind="stable"))
    rankers = {
        "task": (table.column("rank").to_numpy(), table.column(PREDICTED).to_numpy()),
        "most frequent": (1 + order[label], rates[label]),
    }
    if f"{TREES}_rank" in table.column_names:
        rankers[TREES] = (table.column(f"{TREES}_rank").to_numpy(), table.column(f"{TREES}_{PREDICTED}").to_numpy())
    values = {name: _of_ranks(rank, probability) for name, (rank, probability) in rankers.items()}
    own = table.column(BEFORE).to_numpy()
    if (own >= 0).any() or not len(own):
        values["own history"] = np.stack([own == label, np.full((len(label)), np.nan), np.full(len(label), np.nan)], 1)
    return {name: _Sums(np.concatenate([of, values["task"]], axis=1)) for name, of in values.items()}


def _of_ranks(rank: np.ndarray, probability: np.ndarray) -> np.ndarray:
    loss = -np.log(np.clip(probability.astype(np.float64), _CLIP, 1))
    return np.stack([rank <= 1, rank <= 3, loss], axis=1).astype(np.float64)


def _class_figures(sums: dict[str, _Sums]) -> dict[str, Any]:
    metrics = {"accuracy": 0, "in_first_3": 1, "log_loss": 2}
    found = {name: {metric: _column_mean(of, place) for metric, place in metrics.items()} for name, of in sums.items()}
    gains = {name: _column_mean(of, 0, 3) for name, of in sums.items() if name != "task"}
    return {"num_users": sums["task"].number, "headline": "accuracy", "rankers": found, "gain_over": gains}


def _column_mean(sums: _Sums, place: int, other: int | None = None) -> dict[str, float]:
    """Mean of a column, or of another column less that."""
    width = len(np.atleast_1d(sums.total))
    weights = np.zeros(width)
    if other is None:
        weights[place] = 1
    else:
        weights[place], weights[other] = -1, 1
    used = weights != 0
    part = _Sums()
    part.number = sums.number
    part.total, part.products = np.asarray(sums.total)[used], np.asarray(sums.products)[np.ix_(used, used)]
    return part.mean(weights[used].tolist())


def _measure_numbers(url: str, manifest: dict[str, Any], prior: np.ndarray, bucket: int) -> dict[str, _Sums]:
    """Of test users, by ranker: absolute and squared error, predicted and true number; the task's own beside them."""
    table = _read(url, manifest, bucket, "test")
    label = table.column(OUTCOME).to_numpy().astype(np.float64)
    rankers = {"task": table.column(PREDICTED), "one horizon before": table.column(BEFORE)}
    values = {name: _errors(column.to_numpy().astype(np.float64), label) for name, column in rankers.items()}
    values["mean"] = _errors(np.full(len(label), prior[1] / max(prior[0], 1)), label)
    if TREES in table.column_names:
        values[TREES] = _errors(table.column(TREES).to_numpy().astype(np.float64), label)
    return {name: _Sums(np.concatenate([of, values["task"]], axis=1)) for name, of in values.items()}


def _errors(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.stack([np.abs(predicted - label), (predicted - label) ** 2, predicted, label], axis=1)


def _number_figures(sums: dict[str, _Sums]) -> dict[str, Any]:
    own = sums["task"]
    number = max(own.number, 1)
    total, products = np.atleast_1d(own.total), np.atleast_2d(own.products)
    spread = products[3, 3] / number - (total[3] / number) ** 2 if own.number else float("nan")
    found = {
        name: {
            "mean_absolute_error": _column_mean(of, 0),
            "explained_variance": _explained(_column_mean(of, 1), spread),
            "predicted_over_true": float(np.asarray(of.total)[2] / total[3])
            if own.number and total[3]
            else float("nan"),
        }
        for name, of in sums.items()
    }
    gains = {}
    for name, of in sums.items():
        if name != "task":
            loss = _column_mean(of, 5, 1)  # squared error of the baseline less that of the task
            gains[name] = {end: value / spread if spread else float("nan") for end, value in loss.items()}
    headline = "explained_variance"
    return {"num_users": own.number, "headline": headline, "rankers": found, "gain_over": gains}


def _explained(error: dict[str, float], spread: float) -> dict[str, float]:
    ends = {"value": "value", "low": "high", "high": "low"}
    return {name: 1 - error[of] / spread if spread else float("nan") for name, of in ends.items()}


def _label_figures(url: str, manifest: dict[str, Any], buckets: list[int], classes: list[str]) -> dict[str, Any]:
    """AUC of each label, of test users."""
    counts = total_counts(map_buckets(partial(_count_labels, url, manifest), buckets))
    areas = {name: own.area() for name, own in zip(classes, counts, strict=True)}
    rates = {name: own.rate for name, own in zip(classes, counts, strict=True)}
    there = [area for area in areas.values() if area == area]
    mean = float(np.mean(there)) if there else float("nan")
    return {"num_users": counts[0].num_users, "headline": "mean_auc", "areas": areas, "rates": rates, "mean_auc": mean}


def _count_labels(url: str, manifest: dict[str, Any], bucket: int) -> list[ScoreCounts]:
    table = _read(url, manifest, bucket, "test")
    labels, predicted = (
        np.stack(table.column(name).to_numpy(zero_copy_only=False))
        if table.num_rows
        else np.zeros((0, table.schema.field(name).type.list_size))
        for name in (OUTCOME, PREDICTED)
    )
    return [ScoreCounts.of(labels[:, place], predicted[:, place]) for place in range(labels.shape[1])]


def answer_verdicts(answers: Mapping[str, Any]) -> list[str]:
    """A sentence for each question and baseline."""
    lines = []
    for name, figures in answers.items():
        for base, gain in figures.get("gain_over", {}).items():
            own, other = (figures["rankers"][of][figures["headline"]]["value"] for of in ("task", base))
            said = "beats" if gain["low"] > 0 else "loses to" if gain["high"] < 0 else "is not clearly apart from"
            headline = figures["headline"].replace("_", " ")
            lines.append(f"{name} {said} {_BASES[base]} in {headline}: {own:.4f} against {other:.4f}")
    return lines


_BASES = {
    "most frequent": "the most frequent class",
    "own history": "the class most frequent in the own history",
    "one horizon before": "what was so one horizon before",
    "mean": "the mean",
    TREES: "gradient-boosted trees on the counts",
}
