"""The profiler each Ray actor runs: buckets in, a row for each of their users committed.

A module of its own because Ray pickles what stands in an entry module by value. Invariant: a bucket is committed whole
or not at all, with as many rows as the bucket has users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.alerts import AlertLimits, count_alerts, find_alerts
from data_io.anomaly import anomaly_scores
from data_io.buckets import BucketWriter
from data_io.item_facts import ItemFacts
from data_io.novelty import measure_novelty
from data_io.preferences import (
    DAY_HOURS,
    WEEKDAYS,
    Events,
    median_prices,
    price_bands,
    share_of,
    top_of_texts,
    top_values,
)
from data_io.profiles import (
    ALERT_REASONS,
    ALERTS,
    ANOMALY_SCORE,
    CHEAP_SHARE,
    MEDIAN_PRICE,
    NEW_CATEGORY_SHARE,
    NEW_ITEM_SHARE,
    PRICE_BAND,
    PRICE_SENSITIVITY,
    RECENCY_DAYS,
    SEGMENT,
    SEGMENT_CLARITY,
    SEGMENT_NAME,
    SELF_INFORMATION,
    TOP_BRANDS,
    TOP_CATEGORIES,
    TOP_HOURS,
    TOP_WEEKDAYS,
    WEEKEND_SHARE,
    profile_table,
    top_column,
)
from data_io.quality.behaviour import robots_by_rule
from data_io.schema import NUM_EVENTS, USER_ID
from model.price_response import cheap_shares, price_sensitivities
from ray_jobs.bucket_reading import BucketReader, Measured, ProfileRun
from ray_jobs.profile_survey import ProfilePlan, recency_days


@dataclass(frozen=True, kw_only=True)
class ProfilingRun:
    """What a profiler needs to know."""

    base: ProfileRun
    writer: BucketWriter
    plan: ProfilePlan
    price_direction: np.ndarray | None
    """[D] see `model.price_response`."""
    churn_tasks: list[str]


class Profiler:
    """Profiles the users of one bucket after the other."""

    def __init__(self, run: ProfilingRun) -> None:
        self.run = run
        self.reader = BucketReader(run.base)
        self.relative_price = self.reader.facts.relative_prices()

    def __call__(self, buckets: Sequence[int]) -> list[dict[str, Any]]:
        """Profile and commit some buckets; returns their marks. What an attempt before has committed is left alone."""
        return [self.run.writer.find_mark(bucket) or self._commit(bucket) for bucket in buckets]

    def _commit(self, bucket: int) -> dict[str, Any]:
        measured = self.reader.measure(bucket)
        table = self.rows(measured)
        facts = bucket_facts(table, measured.events, self.run.plan.segmentation.num_segments)
        return self.run.writer.commit(bucket, self.run.base.store.num_buckets, table, facts)

    def rows(self, measured: Measured) -> pa.Table:
        """The rows of the users of a bucket."""
        sequences, plan = measured.events.sequences, self.run.plan
        lengths = np.diff(sequences.offsets)
        segment, clarity = plan.segmentation.assign(measured.embeddings)
        names = pa.array([facts.name for facts in plan.segments], pa.string())
        columns: dict[str, Any] = {
            USER_ID: sequences.user_id,
            NUM_EVENTS: pa.array(lengths.astype(np.int32)),
            RECENCY_DAYS: recency_days(sequences.event_time, sequences.ends, self.run.base.store.end_time),
            SEGMENT: pa.array(segment),
            SEGMENT_NAME: names.take(pa.array(segment)),
            SEGMENT_CLARITY: clarity,
        }
        columns |= preference_columns(
            measured.events, self.reader.facts, plan.price_edges, self.run.base.settings.most_values
        )
        columns |= self._price_columns(measured) | self._novelty_columns(measured.events)
        columns |= self._anomaly_columns(measured, lengths)
        return profile_table(columns, measured.scores, self.run.churn_tasks)

    def _price_columns(self, measured: Measured) -> dict[str, Any]:
        events, embeddings = measured.events, measured.embeddings
        bought = _purchases(events, self.run.base.purchases)
        relative = self.relative_price[events.sequences.item_index[bought]]
        return {
            PRICE_SENSITIVITY: price_sensitivities(embeddings, self.run.plan.mean_embedding, self.run.price_direction),
            CHEAP_SHARE: cheap_shares(events.user[bought], relative, events.sequences.num_users),
        }

    def _novelty_columns(self, events: Events) -> dict[str, Any]:
        novelty = measure_novelty(events, self.reader.facts, self.run.base.settings.recent_share)
        return {
            NEW_ITEM_SHARE: novelty.new_items,
            NEW_CATEGORY_SHARE: novelty.new_categories,
            SELF_INFORMATION: novelty.self_information,
        }

    def _anomaly_columns(self, measured: Measured, lengths: np.ndarray) -> dict[str, Any]:
        settings, reference = self.run.base.settings, self.run.plan.reference
        limits = AlertLimits(
            deviations=settings.alert_deviations,
            gap_variation=settings.alert_gap_variation,
            purchases=settings.alert_purchases,
        )
        robots = robots_by_rule(measured.events.sequences)
        alerts = find_alerts(measured.signs, robots, reference, lengths, limits)
        return {
            **measured.signs,
            ANOMALY_SCORE: anomaly_scores(reference, measured.signs, lengths),
            ALERTS: alerts[ALERTS].to_arrow(),
            ALERT_REASONS: alerts[ALERT_REASONS].to_arrow(),
        }


def preference_columns(events: Events, facts: ItemFacts, price_edges: Sequence[float], most: int) -> dict[str, Any]:
    """What users of a bucket have most often, when, and at which prices.

    Args:
        events: of the bucket.
        facts: of its items.
        price_edges: between price bands.
        most: values listed of each kind.
    """
    items, user, num_users = events.sequences.item_index, events.user, events.sequences.num_users
    everything = np.ones(len(items), bool)
    prices = median_prices(events, everything)
    columns: dict[str, Any] = {
        TOP_CATEGORIES: top_values(user, facts.category.code[items], facts.category.names, num_users, most),
        TOP_BRANDS: top_values(user, facts.brand.code[items], facts.brand.names, num_users, most),
        TOP_HOURS: top_values(user, events.hour, range(DAY_HOURS), num_users, most),
        TOP_WEEKDAYS: top_values(user, events.weekday, WEEKDAYS, num_users, most),
        WEEKEND_SHARE: share_of(user, events.weekday >= 5, everything, num_users),
        MEDIAN_PRICE: prices,
        PRICE_BAND: price_bands(prices, price_edges),
    }
    features = events.features.items()
    return columns | {top_column(name): top_of_texts(user, values, num_users, most) for name, values in features}


def bucket_facts(table: pa.Table, events: Events, num_segments: int) -> dict[str, Any]:
    """Counts of a bucket that add up: users, by segment, with alerts, and events by hour and weekday."""
    alerts = pl.Series(table.column(ALERTS))
    return {
        "num_users": table.num_rows,
        "by_segment": np.bincount(table.column(SEGMENT).to_numpy(), minlength=num_segments).tolist(),
        "by_alert": count_alerts(alerts),
        "num_alerted": int((alerts.list.len() > 0).sum()),
        "by_hour": np.bincount(events.hour, minlength=DAY_HOURS).tolist(),
        "by_weekday": np.bincount(events.weekday, minlength=len(WEEKDAYS)).tolist(),
    }


def _purchases(events: Events, actions: np.ndarray | None) -> np.ndarray:
    """[E] True at purchases."""
    if actions is None:
        return np.ones(len(events.user), bool)
    return np.isin(events.sequences.action_index, actions)
