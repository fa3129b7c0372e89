"""Profiles: one row per user, what the profile job writes and everyone else reads.

Invariant: every user of the store has exactly one row, in the bucket of the user; what cannot be told is null.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.schema import USER_ID, DataContractError
from data_io.scores import task_column

RECENCY_DAYS: Final = "recency_days"
SEGMENT: Final = "segment"
SEGMENT_NAME: Final = "segment_name"
SEGMENT_CLARITY: Final = "segment_clarity"
TOP_CATEGORIES: Final = "top_categories"
TOP_BRANDS: Final = "top_brands"
TOP_HOURS: Final = "top_hours"
TOP_WEEKDAYS: Final = "top_weekdays"
WEEKEND_SHARE: Final = "weekend_share"
MEDIAN_PRICE: Final = "median_price"
PRICE_BAND: Final = "price_band"
PRICE_SENSITIVITY: Final = "price_sensitivity"
CHEAP_SHARE: Final = "cheap_share"
NEW_ITEM_SHARE: Final = "new_item_share"
NEW_CATEGORY_SHARE: Final = "new_category_share"
SELF_INFORMATION: Final = "self_information_bits"
ANOMALY_SCORE: Final = "anomaly_score"
ALERTS: Final = "alerts"
ALERT_REASONS: Final = "alert_reasons"


def top_column(feature: str) -> str:
    """The column of a user's most frequent values of a declared feature of events."""
    return f"top_{feature}"


def churn_column(task: str) -> str:
    """The column of the chance that nothing of a task happens."""
    return f"churn_{task}"


def any_event_tasks(questions: Mapping[str, Mapping[str, Any]], actions: Sequence[str]) -> list[str]:
    """Names of answers to whether any event at all follows, so that what is missing to 1 is churn.

    Args:
        questions: by score name, as a task's manifest describes them.
        actions: of the log.
    """
    return [name for name, asked in questions.items() if _asks_for_any(asked["settings"], actions)]


def _asks_for_any(settings: Mapping[str, Any], actions: Sequence[str]) -> bool:
    if settings["kind"] != "event" or settings.get("items") is not None:
        return False
    return settings.get("actions") is None or set(actions) <= set(settings["actions"])


def profile_table(columns: Mapping[str, Any], scores: pa.Table, churn_tasks: Sequence[str]) -> pa.Table:
    """The rows of U users.

    Args:
        columns: by name; arrays of numbers, not-a-number where something cannot be told.
        scores: columns of the tasks of the same users, in the same order.
        churn_tasks: see `any_event_tasks`.
    """
    told = {name: _nullable(values) for name, values in columns.items()}
    carried = [name for name in scores.column_names if name.startswith(task_column(""))]
    told |= {name: scores.column(name) for name in carried}
    for task in churn_tasks:
        if task_column(task) in carried:
            told[churn_column(task)] = pa.array(1 - scores.column(task_column(task)).to_numpy())
    return pa.table(told)


def _nullable(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values.astype(np.float32), from_pandas=True)
    return values


def align_scores(user_ids: pa.Array, scores: pa.Table, url: str) -> pa.Table:
    """The rows of scores of some users, in their order.

    Raises:
        DataContractError: a user has none, or there are others.
    """
    known = scores.column(USER_ID).combine_chunks().cast(user_ids.type)
    places = pc.call_function("index_in", [user_ids], pc.SetLookupOptions(known))
    if places.null_count or len(known) != len(user_ids):
        raise DataContractError(
            f"{url}: scores of {len(known):,} users for {len(user_ids):,} users of a bucket of the store, "
            f"{places.null_count:,} of whom have none; run clickformer score_users on this store first"
        )
    return scores.take(places)
