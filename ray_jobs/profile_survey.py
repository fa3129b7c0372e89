"""The survey before profiles: a bounded sample of users, spread over the buckets, and what is worked out from it.

What comes of it is small, holds no id of a user, and is kept as files until the profiles are published, so that a job
that was killed goes on with the very same segments. Invariant: memory of the driver follows the sample, not the users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from data_io.anomaly import Reference
from data_io.buckets import hash64
from data_io.item_facts import ItemFacts, log_price_sums
from data_io.preferences import BAND_SHARES, shares_of_terms
from data_io.segment_names import SegmentFacts, describe_segments
from data_io.splits import DAY_US
from model.segments import Segmentation, Stability, fit_segments
from ray_jobs.bucket_reading import BucketReader, Measured

MOST_BUCKETS = 64
"""Buckets that are looked at; a user's bucket is drawn by hash, so any of them are a fair sample."""
_MOST_PRICES = 20_000
"""Prices taken of a bucket."""
_MAP_POINTS = 1_500
"""Users that the map of the page shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyPart:
    """What was seen in one bucket: n sampled users, and prices of all its events."""

    bucket: int
    embeddings: np.ndarray
    """[n, D]."""
    lengths: np.ndarray
    """[n] events."""
    recency_days: np.ndarray
    """[n] days from the last event to the end of the log."""
    signs: dict[str, np.ndarray]
    """[n] by name."""
    shares: pl.DataFrame
    """As `shares_of_terms` gives them, users numbered from 0 to n - 1."""
    price_sums: pl.DataFrame
    """As `log_price_sums` gives them."""
    prices: np.ndarray
    """Some prices of events."""


class Surveyor:
    """Looks at one bucket after the other."""

    def __init__(self, run: Any) -> None:
        self.reader = BucketReader(run)

    def __call__(self, task: tuple[int, int]) -> SurveyPart:
        """What was seen in a bucket of which at most so many users are sampled, those with the smallest hashes."""
        bucket, most = task
        ids = self.reader.store.read_sequences(bucket).user_id
        rows = np.sort(np.argsort(hash64(ids), kind="stable")[:most])
        measured = self.reader.measure(bucket, rows)
        store = self.reader.store
        return survey_bucket(bucket, measured, self.reader.facts, store.actions, rows, store.end_time)


def survey_bucket(
    bucket: int, measured: Measured, facts: ItemFacts, actions: Sequence[str], rows: np.ndarray, end_time: int
) -> SurveyPart:
    """What was seen in a bucket.

    Args:
        bucket: which one.
        measured: what was read of it.
        facts: of its items.
        actions: of the log.
        rows: [n] sampled users.
        end_time: end of the log, microseconds since 1970 UTC.
    """
    sequences, own_price = measured.events.sequences, measured.own_price
    chosen = np.zeros(sequences.num_users, bool)
    chosen[rows] = True
    shares = shares_of_terms(measured.events, facts, actions, chosen)
    numbers = np.cumsum(chosen) - 1
    known = measured.events.price[measured.events.price > 0]
    return SurveyPart(
        bucket=bucket,
        embeddings=measured.embeddings[rows],
        lengths=np.diff(sequences.offsets)[rows],
        recency_days=recency_days(sequences.event_time, sequences.ends, end_time)[rows],
        signs={name: values[rows] for name, values in measured.signs.items()},
        shares=shares.with_columns(pl.Series("user", numbers[shares["user"].to_numpy()])),
        price_sums=log_price_sums(
            sequences.item_index, np.zeros(len(sequences.item_index)) if own_price is None else own_price
        ),
        prices=known[:: max(len(known) // _MOST_PRICES, 1)].astype(np.float32),
    )


def recency_days(event_time: np.ndarray, ends: np.ndarray, end_time: int) -> np.ndarray:
    """[U] days from each user's last event to the end of the log; every user has an event."""
    return (end_time - event_time[np.maximum(ends - 1, 0)]) / DAY_US if len(event_time) else np.zeros(len(ends))


def survey_tasks(num_buckets: int, sample_users: int) -> list[tuple[int, int]]:
    """Buckets that are looked at, spread evenly, and how many users are sampled of each."""
    buckets = np.unique(np.linspace(0, num_buckets - 1, min(num_buckets, MOST_BUCKETS)).round().astype(int)).tolist()
    return [(bucket, -(-sample_users // len(buckets))) for bucket in buckets]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """What rows of profiles are made with; the same for all buckets."""

    segmentation: Segmentation
    stability: Stability
    segments: list[SegmentFacts]
    reference: Reference
    price_edges: list[float]
    """Prices between bands; empty where no price is known."""
    mean_embedding: np.ndarray
    """[D] of the sample."""
    num_sampled: int
    map_points: list[list[float]]
    """First two components and segment of some sampled users."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON content."""
        return {
            "segmentation": self.segmentation.to_json(),
            "stability": asdict(self.stability),
            "segments": [asdict(segment) for segment in self.segments],
            "reference": asdict(self.reference),
            "price_edges": self.price_edges,
            "mean_embedding": self.mean_embedding.tolist(),
            "num_sampled": self.num_sampled,
            "map_points": self.map_points,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ProfilePlan":
        """The plan that `to_json` gave this content."""
        stability = content["stability"]
        tried = {int(k): value for k, value in stability["by_num_segments"].items()}
        return cls(
            segmentation=Segmentation.from_json(content["segmentation"]),
            stability=Stability(**stability | {"by_num_segments": tried}),
            segments=[SegmentFacts(**segment) for segment in content["segments"]],
            reference=Reference(**content["reference"]),
            price_edges=content["price_edges"],
            mean_embedding=np.array(content["mean_embedding"]),
            num_sampled=content["num_sampled"],
            map_points=content["map_points"],
        )


def make_plan(parts: Sequence[SurveyPart], num_segments: int | None, seed: int) -> ProfilePlan:
    """Segments with names, what signs are usual, and price bands, from all parts of a survey."""
    parts = sorted(parts, key=lambda part: part.bucket)  # they come in any order
    embeddings = np.concatenate([part.embeddings for part in parts])
    lengths, recency = (np.concatenate([getattr(p, name) for p in parts]) for name in ("lengths", "recency_days"))
    signs = {name: np.concatenate([part.signs[name] for part in parts]) for name in parts[0].signs}
    firsts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    shares = pl.concat(
        [p.shares.with_columns(pl.col("user") + first) for p, first in zip(parts, firsts[:-1].tolist(), strict=True)]
    )
    prices = np.concatenate([part.prices for part in parts])
    segmentation, stability = fit_segments(embeddings, num_segments, seed)
    segment, _ = segmentation.assign(embeddings)
    points = segmentation.project(embeddings)[:_MAP_POINTS, :2]
    return ProfilePlan(
        segmentation=segmentation,
        stability=stability,
        segments=describe_segments(shares, segment, lengths, recency, segmentation.num_segments),
        reference=Reference.of(lengths, signs),
        price_edges=np.quantile(prices, BAND_SHARES).tolist() if len(prices) else [],
        mean_embedding=embeddings.mean(axis=0).astype(np.float64),
        num_sampled=len(embeddings),
        map_points=np.column_stack([points, segment[:_MAP_POINTS]]).round(4).tolist(),
    )
