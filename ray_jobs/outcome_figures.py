"""Figures of outcomes: how well a task's probabilities tell users apart and how true they are, beside baselines.

Read from per-user results by tasks of Ray, of which only counts come back (`model.score_counts`). Invariant: baselines
are chosen on validation users and measured on test users.
"""

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

_CALIBRATION_BINS = 10
_CURVE_POINTS = 50


def outcome_figures(url: str) -> dict[str, Any]:
    """AUC, log loss and calibration of a task beside the mean rate and the best single feature.

    The feature and its direction are chosen on validation users and measured on test users. Intervals are those of
    DeLong et al. 1988.
    """
    manifest = read_manifest(url)
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    by_feature = total_counts(map_buckets(partial(_count_features, url, manifest), buckets))
    feature, sign, validation_area = _best_feature(by_feature)
    own, other = total_counts(map_buckets(partial(_count_scores, url, manifest, feature, sign), buckets))
    measured = map_buckets(partial(_measure, url, manifest, feature, sign, [own, other]), buckets)
    moments, loss = reduce(lambda total, part: (total[0] + part[0], total[1] + part[1]), measured)
    gain_low, gain_high = moments.interval([1.0, -1.0])
    return {
        "num_users": own.num_users,
        "rate": own.rate,
        "auc": _area(own, moments, [1.0, 0.0]),
        "log_loss": loss / own.num_users if own.num_users else float("nan"),
        "mean_rate_log_loss": own.log_loss_of(float(np.nan_to_num(by_feature[0].rate, nan=0.5))),
        "best_feature": {
            "name": feature,
            "validation_auc": validation_area,
            "auc": _area(other, moments, [0.0, 1.0]),
        },
        "gain_over_feature": {"low": gain_low, "high": gain_high},
        "calibration": own.calibration(_CALIBRATION_BINS),
        "curve": own.curve(_CURVE_POINTS),
        "feature_curve": other.curve(_CURVE_POINTS),
    }


def _area(counts: ScoreCounts, moments: AreaMoments, weights: list[float]) -> dict[str, float]:
    low, high = np.clip(moments.interval(weights), 0, 1).tolist()
    return {"value": counts.area(), "low": low, "high": high}


def _read(url: str, manifest: dict[str, Any], bucket: int, stage: str, columns: list[str]) -> pa.Table:
    """Columns of a bucket's users of a stage."""
    table = read_bucket(url, manifest, bucket, columns=["stage", "outcome", *columns])
    return table.filter(pc.call_function("equal", [table.column("stage"), pa.scalar(stage)]))


def _count_features(url: str, manifest: dict[str, Any], bucket: int) -> list[ScoreCounts]:
    """Validation users by each feature."""
    names = [f"feature_{name}" for name in FEATURE_NAMES]
    table = _read(url, manifest, bucket, "validation", names)
    label = table.column("outcome").to_numpy()
    return [ScoreCounts.of(label, table.column(name).to_numpy()) for name in names]


def _best_feature(counts: list[ScoreCounts]) -> tuple[str, int, float]:
    """The feature that tells validation users apart best, its direction and its area."""
    areas = {name: float(np.nan_to_num(own.area(), nan=0.5)) for name, own in zip(FEATURE_NAMES, counts, strict=True)}
    best = max(areas, key=lambda name: abs(areas[name] - 0.5))
    return best, 1 if areas[best] >= 0.5 else -1, max(areas[best], 1 - areas[best])


def _test_users(
    url: str, manifest: dict[str, Any], feature: str, sign: int, bucket: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcome, probability and signed feature [N] of test users."""
    table = _read(url, manifest, bucket, "test", ["probability", f"feature_{feature}"])
    label, probability, values = (
        table.column(name).to_numpy() for name in ("outcome", "probability", f"feature_{feature}")
    )
    return label, probability, sign * values


def _count_scores(
    url: str, manifest: dict[str, Any], feature: str, sign: int, bucket: int
) -> tuple[ScoreCounts, ScoreCounts]:
    """Test users by probability and by feature."""
    label, *scores = _test_users(url, manifest, feature, sign, bucket)
    by_probability, by_feature = (ScoreCounts.of(label, of) for of in scores)
    return by_probability, by_feature


def _measure(
    url: str, manifest: dict[str, Any], feature: str, sign: int, counts: list[ScoreCounts], bucket: int
) -> tuple[AreaMoments, float]:
    """Of a bucket's test users, how areas vary and the sum of negative log likelihoods."""
    label, probability, values = _test_users(url, manifest, feature, sign, bucket)
    loss = log_loss(label, probability.astype(np.float64)) * len(label) if len(label) else 0.0
    return AreaMoments.of(label, [probability, values], counts), loss
