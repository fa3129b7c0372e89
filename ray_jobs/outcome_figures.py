"""Figures of outcomes: how well a task's probabilities tell users apart and how true they are, beside baselines.

Read from per-user results by tasks of Ray, of which only counts come back (`model.score_counts`). Invariant: baselines
are chosen on validation users and measured on test users.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.buckets import read_bucket
from data_io.features import FEATURE_NAMES
from data_io.snapshots import read_manifest
from model.metrics import log_loss
from model.score_counts import AreaMoments, ScoreCounts, total_counts
from ray_jobs.bucket_map import map_buckets
from ray_jobs.outcome_tables import NETWORK, OUTCOME, PREDICTED, STAGE, TREES

_CALIBRATION_BINS = 10
_CURVE_POINTS = 50


def outcome_figures(url: str) -> dict[str, Any]:
    """AUC, log loss and calibration of a task beside the mean rate, the best single feature and, if there, trees, and
    of the network alone where its probability is blended with theirs.

    The feature and its direction are chosen on validation users and measured on test users. Intervals are those of
    DeLong et al. 1988.
    """
    manifest = read_manifest(url)
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    by_feature = total_counts(map_buckets(partial(_count_features, url, manifest), buckets))
    feature, sign, validation_area = _best_feature(by_feature)
    names = [PREDICTED, f"feature_{feature}"]
    further = [name for name in (TREES, NETWORK) if name in read_bucket(url, manifest, buckets[0]).column_names]
    names += further
    read = partial(_test_users, url, manifest, names, sign)
    counts = total_counts(map_buckets(partial(_count_scores, read), buckets))
    measured = map_buckets(partial(_measure, read, counts), buckets)
    moments, losses = reduce(lambda total, part: (total[0] + part[0], total[1] + part[1]), measured)
    own, other = counts[:2]
    figures = {
        "num_users": own.num_users,
        "rate": own.rate,
        "auc": _area(counts, moments, 0),
        "log_loss": _mean(losses[0], own),
        "mean_rate_log_loss": own.log_loss_of(float(np.nan_to_num(by_feature[0].rate, nan=0.5))),
        "best_feature": {"name": feature, "validation_auc": validation_area, "auc": _area(counts, moments, 1)},
        "gain_over_feature": _gain(moments, 1),
        "calibration": own.calibration(_CALIBRATION_BINS),
        "calibration_error": own.calibration_error(_CALIBRATION_BINS),
        "curve": own.curve(_CURVE_POINTS),
        "feature_curve": other.curve(_CURVE_POINTS),
    }
    for place, name in enumerate(further, start=2):
        figures[name] = {"auc": _area(counts, moments, place), "log_loss": _mean(losses[place], own)}
        figures[f"gain_over_{name}"] = _gain(moments, place)
    return figures


def _mean(total: float, counts: ScoreCounts) -> float:
    return float(total / counts.num_users) if counts.num_users else float("nan")


def _area(counts: list[ScoreCounts], moments: AreaMoments, place: int) -> dict[str, float]:
    low, high = np.clip(moments.interval(np.eye(len(counts))[place].tolist()), 0, 1).tolist()
    return {"value": counts[place].area(), "low": low, "high": high}


def _gain(moments: AreaMoments, place: int) -> dict[str, float]:
    """The area of the task's probability minus that of another score."""
    identity = np.eye(len(moments.areas))
    low, high = moments.interval((identity[0] - identity[place]).tolist())
    return {"low": low, "high": high}


def _read(url: str, manifest: dict[str, Any], bucket: int, stage: str, columns: list[str]) -> pa.Table:
    """Columns of a bucket's users of a stage."""
    table = read_bucket(url, manifest, bucket, columns=[STAGE, OUTCOME, *columns])
    return table.filter(pc.call_function("equal", [table.column(STAGE), pa.scalar(stage)]))


def _count_features(url: str, manifest: dict[str, Any], bucket: int) -> list[ScoreCounts]:
    """Validation users by each feature."""
    names = [f"feature_{name}" for name in FEATURE_NAMES]
    table = _read(url, manifest, bucket, "validation", names)
    label = table.column(OUTCOME).to_numpy()
    return [ScoreCounts.of(label, table.column(name).to_numpy()) for name in names]


def _best_feature(counts: list[ScoreCounts]) -> tuple[str, int, float]:
    """The feature that tells validation users apart best, its direction and its area."""
    areas = {name: float(np.nan_to_num(own.area(), nan=0.5)) for name, own in zip(FEATURE_NAMES, counts, strict=True)}
    best = max(areas, key=lambda name: abs(areas[name] - 0.5))
    return best, 1 if areas[best] >= 0.5 else -1, max(areas[best], 1 - areas[best])


def _test_users(
    url: str, manifest: dict[str, Any], names: list[str], sign: int, bucket: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outcome [N] of test users, and their probability, signed feature and further probabilities [N]."""
    table = _read(url, manifest, bucket, "test", names)
    label, probability, values, *further = (table.column(name).to_numpy() for name in (OUTCOME, *names))
    return label, [probability, sign * values, *further]


def _count_scores(read: Callable[[int], tuple[np.ndarray, list[np.ndarray]]], bucket: int) -> list[ScoreCounts]:
    """Test users by each score."""
    label, scores = read(bucket)
    return [ScoreCounts.of(label, of) for of in scores]


def _measure(
    read: Callable[[int], tuple[np.ndarray, list[np.ndarray]]], counts: list[ScoreCounts], bucket: int
) -> tuple[AreaMoments, np.ndarray]:
    """Of a bucket's test users, how areas vary, and sums of negative log likelihoods, of scores as probabilities."""
    label, scores = read(bucket)
    losses = [log_loss(label, of.astype(np.float64)) * len(label) if len(label) else 0.0 for of in scores]
    return AreaMoments.of(label, scores, counts), np.array(losses)
