"""Figures of profiles: what the page shows and `profiles.json` says, and sentences that say how far to trust them.

Counts are of all users, from the marks of the buckets; medians, histograms and examples are of a bounded sample of
rows, spread over the buckets. Invariant: no id of a user is among them, so that nothing is left here of one who is
forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from data_io.alerts import ALERT_KINDS
from data_io.buckets import read_part
from data_io.preferences import WEEKDAYS
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
    SEGMENT,
    SELF_INFORMATION,
    TOP_BRANDS,
    TOP_CATEGORIES,
    churn_column,
    top_column,
)
from data_io.schema import USER_ID
from data_io.scores import task_column
from data_io.store import SequenceStore
from ray_jobs.profile_config import ProfileSettings
from ray_jobs.profile_survey import MOST_BUCKETS, ProfilePlan

LEAST_STABILITY = 0.6
"""Adjusted Rand index under which segments are not to be relied on, and the page says so."""
_NUM_BINS = 30
_MOST_TERMS = 8
_MOST_EXAMPLES = 3
_MEANS = (PRICE_SENSITIVITY, CHEAP_SHARE, MEDIAN_PRICE, NEW_ITEM_SHARE, "surprise", ANOMALY_SCORE)


def profile_figures(
    store: SequenceStore,
    plan: ProfilePlan,
    marks: Sequence[dict[str, Any]],
    url: str,
    settings: ProfileSettings,
) -> dict[str, Any]:
    """All figures, as JSON content."""
    rows = read_sample(url, marks, settings.sample_users)
    probabilities = [name for name in rows.columns if name.startswith((task_column(""), churn_column("")))]
    figures: dict[str, Any] = {
        "data": {
            "num_users": sum(mark["num_users"] for mark in marks),
            "num_sampled": plan.num_sampled,
            "num_rows_shown": rows.height,
        },
        "stability": asdict(plan.stability) | {"least_wanted": LEAST_STABILITY},
        "segments": segment_figures(rows, plan, marks, probabilities),
        "hours": np.sum([mark["by_hour"] for mark in marks], axis=0).tolist(),
        "weekdays": dict(zip(WEEKDAYS, np.sum([mark["by_weekday"] for mark in marks], axis=0).tolist(), strict=True)),
        "price_bands": _counts(rows[PRICE_BAND]),
        "price_edges": plan.price_edges,
        "top": {name: _top(rows[name]) for name in _listed(rows)},
        "scores": {name: histogram(rows[name]) for name in probabilities},
        "price_sensitivity": histogram(rows[PRICE_SENSITIVITY]) | {"agreement": agreement(rows)},
        "novelty": {name: histogram(rows[name]) for name in (NEW_ITEM_SHARE, NEW_CATEGORY_SHARE, SELF_INFORMATION)},
        "surprise": histogram(rows["surprise"]),
        "anomaly": histogram(rows[ANOMALY_SCORE]),
        "alerts": alert_figures(rows, marks),
        "limits": settings.model_dump(include={"alert_purchases", "alert_deviations", "alert_gap_variation"}),
        "absent": absent(rows, store),
    }
    return figures | {"verdicts": verdicts(figures)}


def read_sample(url: str, marks: Sequence[dict[str, Any]], most: int) -> pl.DataFrame:
    """Rows of buckets spread over all of them, without ids, at most about so many."""
    places = np.unique(np.linspace(0, len(marks) - 1, min(len(marks), MOST_BUCKETS)).round().astype(int))
    each = -(-most // len(places))
    parts = [pl.DataFrame(pl.from_arrow(read_part(url, marks[place]["file"]))).head(each) for place in places.tolist()]
    return pl.concat(parts, how="vertical_relaxed").drop(USER_ID)


def segment_figures(
    rows: pl.DataFrame, plan: ProfilePlan, marks: Sequence[dict[str, Any]], probabilities: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each segment its name, users, terms and means."""
    sizes = np.sum([mark["by_segment"] for mark in marks], axis=0)
    found = []
    for number, facts in enumerate(plan.segments):
        own = rows.filter(pl.col(SEGMENT) == number)
        means = {name: own[name].cast(pl.Float64).mean() for name in (*probabilities, *_MEANS)}
        known = asdict(facts) | {"terms": facts.terms[:_MOST_TERMS]}
        users = {
            "segment": number,
            "num_users": int(sizes[number]),
            "share": float(sizes[number] / max(sizes.sum(), 1)),
        }
        found.append(known | users | {"means": means})
    return found


def histogram(values: pl.Series) -> dict[str, Any]:
    """Counts in even bins between the first and the last percentile, what lies beyond in the outermost; and quantiles.

    Nothing is told where no user has the value.
    """
    known = values.cast(pl.Float64).drop_nulls().to_numpy()
    if not len(known):
        return {"num_known": 0, "edges": [], "counts": [], "quantiles": []}
    low, high = np.quantile(known, [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
    counts = np.histogram(np.clip(known, edges[0], edges[-1]), edges)[0]
    quantiles = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "num_known": len(known),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "quantiles": quantiles.tolist(),
    }


def agreement(rows: pl.DataFrame) -> dict[str, float | int] | None:
    """Rank correlation of price sensitivity with the share of purchases below the category's median price; None where
    either is not known."""
    known = rows.select(PRICE_SENSITIVITY, CHEAP_SHARE).drop_nulls()
    if known.height < 3:
        return None
    value = known.select(pl.corr(PRICE_SENSITIVITY, CHEAP_SHARE, method="spearman")).item()
    return {"spearman": float(value), "num_users": known.height}


def alert_figures(rows: pl.DataFrame, marks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Users by kind of alert, and some reasons in words."""
    alerted = rows.select(ALERTS, ALERT_REASONS, ANOMALY_SCORE).filter(pl.col(ALERTS).list.len() > 0)
    alerted = alerted.sort(ANOMALY_SCORE, descending=True)
    kinds = {
        kind: {
            "num_users": sum(mark["by_alert"][kind] for mark in marks),
            "examples": [
                "; ".join(reasons)
                for reasons in alerted.filter(pl.col(ALERTS).list.contains(kind))[ALERT_REASONS].head(_MOST_EXAMPLES)
            ],
        }
        for kind in ALERT_KINDS
    }
    return {"num_users": sum(mark["num_alerted"] for mark in marks), "kinds": kinds}


def absent(rows: pl.DataFrame, store: SequenceStore) -> list[str]:
    """Sentences on what is null for everyone, and why."""
    told = {
        TOP_CATEGORIES: "Categories are not known: the store has no item table with categories (items.path).",
        TOP_BRANDS: "Brands are not known: the store has no item table with brands.",
        MEDIAN_PRICE: "Prices are not known: neither events nor items have one.",
        PRICE_SENSITIVITY: "Price sensitivity needs prices and categories of items.",
        "surprise": "Surprise is not measured: it takes a causal encoder and profile.surprise_events above 0.",
        "seller_burst": "Sellers are not known (profile.seller).",
    }
    found = [sentence for name, sentence in told.items() if rows[name].null_count() == rows.height]
    if not any(name.startswith(task_column("")) for name in rows.columns):
        found.append("No task is trained, so there are no probabilities (clickformer finetune).")
    if not _features(store):
        found.append("No categorical column of events, such as a device, is declared (events.features).")
    return found


def verdicts(figures: Mapping[str, Any]) -> list[str]:
    """What the figures come to, in sentences."""
    stability, segments, alerts = figures["stability"], figures["segments"], figures["alerts"]
    interval = f"{stability['value']:.2f} [{stability['low']:.2f}, {stability['high']:.2f}]"
    is_stable = stability["value"] >= LEAST_STABILITY
    found = [
        f"{len(segments)} segments, adjusted Rand index between fits of other seeds and samples {interval}: "
        + ("stable" if is_stable else f"NOT stable, it is below {LEAST_STABILITY}; do not build on these segments")
    ]
    if alerts["num_users"]:
        kinds = ", ".join(f"{kind} {about['num_users']:,}" for kind, about in alerts["kinds"].items())
        found.append(f"{alerts['num_users']:,} users with an alert ({kinds})")
    else:
        found.append("no user with an alert")
    return found


def _listed(rows: pl.DataFrame) -> list[str]:
    further = [
        name for name in rows.columns if name.startswith(top_column("")) and rows[name].dtype == pl.List(pl.String)
    ]
    return [name for name in further if name != "top_weekdays" and rows[name].null_count() < rows.height]


def _top(values: pl.Series) -> dict[str, int]:
    """Users whose first value it is, the ten most frequent."""
    counts = values.list.first().drop_nulls().alias("value").value_counts(sort=True).head(10)
    return {str(value): int(count) for value, count in counts.iter_rows()}


def _counts(values: pl.Series) -> dict[str, int]:
    counts = values.drop_nulls().alias("value").value_counts().sort("value")
    return {str(value): int(count) for value, count in counts.iter_rows()}


def _features(store: SequenceStore) -> list[str]:
    declared = store.manifest.get("settings", {}).get("events", {}).get("features", {})
    return [name for name, kind in declared.items() if kind == "categorical"]
