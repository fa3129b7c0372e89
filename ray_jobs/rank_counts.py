"""Ranks of held-out targets as counts by slice: a bucket of users in, numbers that add up out.

Invariant: what is held follows the rankers, the slices and the longest list measured, never the users.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.buckets import read_bucket
from data_io.snapshots import read_manifest
from model.popularity import GROUPS
from ray_jobs.bucket_map import map_buckets
from ray_jobs.config import BASELINES, EvaluationSettings

EVERYONE = ("", "")
_LENGTH = "history_length"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCounts:
    """How many users have which rank, by ranker, and by pair of a model and what it is held against."""

    num_users: int
    ranks: dict[str, np.ndarray]
    """[K + 2] users by rank, the last of any later one; K is the longest list measured."""
    pairs: dict[tuple[str, str], np.ndarray]
    """[k + 2, k + 2] users by the ranks of both, for the headline k."""

    def __add__(self, other: "RankCounts") -> "RankCounts":
        return RankCounts(
            num_users=self.num_users + other.num_users,
            ranks={name: own + other.ranks[name] for name, own in self.ranks.items()},
            pairs={pair: own + other.pairs[pair] for pair, own in self.pairs.items()},
        )


Slice = tuple[str, str]
"""What users are told apart by, and which they are."""


def count_ranks(url: str, options: EvaluationSettings) -> dict[Slice, RankCounts]:
    """Counts of `EVERYONE` and of each slice, from per-user ranks published at a URL, read twice by tasks of Ray."""
    manifest = read_manifest(url)
    buckets = sorted(int(bucket) for bucket in manifest["buckets"])
    quarters = _quarters(map_buckets(partial(_count_lengths, url, manifest), buckets))
    totals: dict[Slice, RankCounts] = {}
    for found in map_buckets(partial(_count_bucket, url, manifest, quarters, options), buckets):
        totals = {key: totals[key] + own if totals else own for key, own in found.items()}
    return totals


def models_of(rankers: Iterable[str]) -> dict[str, list[str]]:
    """Rankers that are no baselines, each with those after it."""
    names = [name for name in rankers if name not in BASELINES]
    return {name: names[place + 1 :] for place, name in enumerate(names)}


def _count_lengths(url: str, manifest: dict[str, Any], bucket: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = read_bucket(url, manifest, bucket, columns=[_LENGTH]).column(_LENGTH).to_numpy()
    return np.unique(lengths, return_counts=True)


def _quarters(counted: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[int, int]]:
    """First and last length of quarters of the users, by name; fewer where many users share one."""
    totals: dict[int, int] = {}
    for lengths, counts in counted:
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            totals[length] = totals.get(length, 0) + count
    if not totals:
        return {}
    lengths = np.array(sorted(totals))
    so_far = np.cumsum([totals[length] for length in lengths.tolist()])
    places = np.floor(np.array([0.25, 0.5, 0.75, 1]) * (so_far[-1] - 1))
    tops = np.unique(lengths[np.searchsorted(so_far, places, side="right")]).tolist()
    bottoms = [int(lengths[0]), *(int(lengths[lengths > top][0]) for top in tops[:-1])]
    names = [f"{low:,} to {top:,} events" if low < top else f"{top:,} event{'s' if top > 1 else ''}"
             for low, top in zip(bottoms, tops, strict=True)]  # fmt: skip
    return dict(zip(names, zip(bottoms, tops, strict=True), strict=True))


def _count_bucket(
    url: str, manifest: dict[str, Any], quarters: dict[str, tuple[int, int]], options: EvaluationSettings, bucket: int
) -> dict[Slice, RankCounts]:
    table = read_bucket(url, manifest, bucket)
    ranks = {
        name.removeprefix("rank_"): table.column(name).to_numpy()
        for name in table.column_names
        if name.startswith("rank_")
    }
    slices = {EVERYONE: np.ones(table.num_rows, bool)} | _slices_of(table, quarters, options.rare_events)
    return {key: _count(ranks, users, options) for key, users in slices.items()}


def _slices_of(table: pa.Table, quarters: dict[str, tuple[int, int]], rare_events: int) -> dict[Slice, np.ndarray]:
    """Users [B] that are in each slice; each user is in one of each kind.

    Args:
        table: per-user ranks, with history_length, target_group and target_training_events.
        quarters: first and last length of each.
        rare_events: training events up to which a target is rare.
    """
    length = table.column(_LENGTH).to_numpy()
    group = table.column("target_group")
    events = table.column("target_training_events").to_numpy()
    kinds = {
        "length of history": {name: (length >= low) & (length <= top) for name, (low, top) in quarters.items()},
        "popularity of the target": {
            f"{name} items": pc.call_function("equal", [group, pa.scalar(name)]).to_numpy() for name in GROUPS
        },
        "training events of the target": {
            "new (none)": events == 0,
            f"rare (1 to {rare_events})": (events > 0) & (events <= rare_events),
            f"known (more than {rare_events})": events > rare_events,
        },
    }
    return {(by, name): users for by, parts in kinds.items() for name, users in parts.items()}


def _count(ranks: dict[str, np.ndarray], users: np.ndarray, options: EvaluationSettings) -> RankCounts:
    most, size = max(options.ks), options.headline_k + 2
    models = models_of(ranks)
    held = {name: np.minimum(own[users], size - 1) for name, own in ranks.items()}
    return RankCounts(
        num_users=int(users.sum()),
        ranks={name: np.bincount(np.minimum(own[users], most + 1), minlength=most + 2) for name, own in ranks.items()},
        pairs={
            (name, other): np.bincount(held[name] * size + held[other], minlength=size**2).reshape(size, size)
            for name, later in models.items()
            for other in (*(base for base in BASELINES if base in ranks), *later)
        },
    )
