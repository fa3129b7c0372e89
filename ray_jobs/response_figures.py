"""Figures of responses: how well pairs of user and shown item are told apart, beside rates of items and of pairs.

Read from per-pair results by tasks of Ray, of which only sums come back. Invariants: rates are counted on validation
pairs and measured on test pairs; intervals take all pairs of a user as one, since they are alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.buckets import read_bucket
from data_io.schema import ITEM_INDEX, USER_ID
from data_io.snapshots import read_manifest
from model.score_counts import ScoreCounts, total_counts
from ray_jobs.bucket_map import map_buckets
from ray_jobs.outcome_tables import BEFORE, OUTCOME, PREDICTED, STAGE

BASES = ("mean rate", "item's rate", "rate by events before")
"""What a task is held against: the rate of all validation pairs, of those of the item, and of those of which the user
had as many events with the item before."""
_PRIOR_PAIRS, _MOST_BEFORE, _BINS, _CLIP, _NORMAL_95 = 10.0, 10, 10, 1e-7, 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRates:
    """Pairs and responses among validation pairs; they add up."""

    by_item: np.ndarray
    """[V, 2]."""
    by_before: np.ndarray
    """[11, 2] by events of the user with the item before, 10 standing for more too."""

    def __add__(self, other: "PairRates") -> "PairRates":
        return PairRates(by_item=self.by_item + other.by_item, by_before=self.by_before + other.by_before)

    def probabilities(self, item: np.ndarray, before: np.ndarray) -> list[np.ndarray]:
        """[N] of each base, for pairs of items [N] and events before [N]; rates of few pairs are drawn to the mean."""
        number, total = self.by_before.sum(axis=0)
        mean = (total + 0.5) / (number + 1)
        of_item, of_before = (
            (counts[:, 1] + _PRIOR_PAIRS * mean) / (counts[:, 0] + _PRIOR_PAIRS)
            for counts in (self.by_item, self.by_before)
        )
        return [np.full(len(item), mean), of_item[item], of_before[np.minimum(before, _MOST_BEFORE)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSums:
    """Sums over users of their own sums [S] over pairs, and of products of these, from which intervals follow; they
    add up."""

    num_users: int
    total: np.ndarray
    """[S], the last being the number of pairs."""
    products: np.ndarray
    """[S, S]."""

    def __add__(self, other: "UserSums") -> "UserSums":
        return UserSums(
            num_users=self.num_users + other.num_users,
            total=self.total + other.total,
            products=self.products + other.products,
        )

    def mean(self, weights: list[float]) -> dict[str, float]:
        """Mean over pairs of a weighted sum of values, with its 95 % interval, clustered by user: that of a ratio."""
        if self.num_users < 2:
            return dict.fromkeys(("value", "low", "high"), float("nan"))
        by, number = np.array([*weights, 0.0]), self.total[-1]
        value = float(by @ self.total / number)
        by[-1] = -value
        scale = self.num_users / (self.num_users - 1)
        error = _NORMAL_95 * float(np.sqrt(max(by @ self.products @ by * scale, 0.0)) / number)
        return {"value": value, "low": value - error, "high": value + error}


def response_figures(url: str, num_items: int) -> dict[str, Any]:
    """AUC and log loss of a task's test pairs beside its bases, and by how much it lowers their log loss.

    Args:
        url: of per-pair results.
        num_items: V.
    """
    manifest = read_manifest(url)
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    rates = reduce(add, map_buckets(partial(_count_rates, url, manifest, num_items), buckets))
    parts = list(map_buckets(partial(_measure, url, manifest, rates), buckets))
    counts, sums = total_counts(counts for counts, _ in parts), reduce(add, (part for _, part in parts))
    names = ("task", *BASES)
    chosen = np.eye(len(names))
    rankers = {
        name: {"auc": counts[place].area(), "log_loss": sums.mean(chosen[place].tolist())["value"]}
        for place, name in enumerate(names)
    }
    return {
        "num_pairs": counts[0].num_users,
        "num_users": sums.num_users,
        "rate": counts[0].rate,
        "rankers": rankers,
        "gain_over": {
            name: sums.mean((chosen[place] - chosen[0]).tolist()) for place, name in enumerate(BASES, start=1)
        },
        "calibration_error": counts[0].calibration_error(_BINS),
    }


def response_verdicts(responses: Mapping[str, Any]) -> list[str]:
    """A sentence for each task and base."""
    lines = []
    for name, figures in responses.items():
        for base, gain in figures["gain_over"].items():
            said = "beats" if gain["low"] > 0 else "loses to" if gain["high"] < 0 else "is not clearly apart from"
            own, other = (figures["rankers"][of]["log_loss"] for of in ("task", base))
            lines.append(f"{name} {said} the {base} in log loss: {own:.4f} against {other:.4f}")
    return lines


def _read(url: str, manifest: dict[str, Any], bucket: int, stage: str) -> pa.Table:
    table = read_bucket(url, manifest, bucket)
    return table.filter(pc.call_function("equal", [table.column(STAGE), pa.scalar(stage)]))


def _count_rates(url: str, manifest: dict[str, Any], num_items: int, bucket: int) -> PairRates:
    """Validation pairs of a bucket."""
    table = _read(url, manifest, bucket, "validation")
    label, item, before = (table.column(name).to_numpy() for name in (OUTCOME, ITEM_INDEX, BEFORE))
    sizes = ((item, num_items), (np.minimum(before, _MOST_BEFORE), _MOST_BEFORE + 1))
    by_item, by_before = (
        np.stack([np.bincount(of, minlength=size), np.bincount(of, label, size)], axis=1) for of, size in sizes
    )
    return PairRates(by_item=by_item, by_before=by_before)


def _measure(url: str, manifest: dict[str, Any], rates: PairRates, bucket: int) -> tuple[list[ScoreCounts], UserSums]:
    """Test pairs of a bucket, by the probabilities of the task and its bases, and sums of their losses by user."""
    table = _read(url, manifest, bucket, "test")
    label, item, before, own = (table.column(name).to_numpy() for name in (OUTCOME, ITEM_INDEX, BEFORE, PREDICTED))
    probabilities = [own.astype(np.float64), *rates.probabilities(item, before)]
    user = table.column(USER_ID).combine_chunks().dictionary_encode().indices.to_numpy()
    num_users = int(user.max(initial=-1)) + 1
    losses = [-np.log(np.clip(np.where(label > 0, of, 1 - of), _CLIP, 1)) for of in probabilities]
    per_user = np.stack([np.bincount(user, loss, num_users) for loss in (*losses, np.ones(len(label)))], axis=1)
    sums = UserSums(num_users=num_users, total=per_user.sum(axis=0), products=per_user.T @ per_user)
    return [ScoreCounts.of(label, of) for of in probabilities], sums
