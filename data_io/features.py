"""Features of a history: the counts and recencies a shop would use without a network.

They are the baselines a binary head must stand beside, and its second input. Invariant: computed from events strictly
before the moment of prediction only, over the whole history and not just the newest span.
"""

import numpy as np

from data_io.examples import Examples
from data_io.sequences import Sequences
from data_io.splits import DAY_US

WINDOW_DAYS = (1, 3, 7, 14, 30, 90)
FEATURE_NAMES = (
    "recency_days",
    "tenure_days",
    "num_events",
    "num_active_days",
    "mean_gap_days",
    *(f"events_{days}d" for days in WINDOW_DAYS),
    *(f"active_days_{days}d" for days in WINDOW_DAYS),
)
"""Columns of the feature matrix, in order; an active day is a UTC day with at least one event."""
MAX_RECENCY_DAYS = 3650.0
"""Recency of a history that is older, or that holds no event."""


def history_features(sequences: Sequences, examples: Examples) -> np.ndarray:
    """[N, F] float32 features of each example's whole history, unscaled, in the order of FEATURE_NAMES."""
    begin, end = sequences.starts[examples.row], examples.end
    if not len(sequences.event_time):
        return _features_without_events(len(examples))
    time = sequences.event_time
    day = time // DAY_US
    starts_day = np.ones(len(time), np.int64)
    starts_day[1:] = day[1:] != day[:-1]
    starts_day[sequences.starts[sequences.starts < len(time)]] = 1
    days_so_far = np.concatenate([[0], np.cumsum(starts_day)])

    has_events = end > begin
    last, first = time[np.maximum(end - 1, 0)], time[np.minimum(begin, len(time) - 1)]
    recency = np.where(has_events, (examples.now - last) / DAY_US, np.inf)
    tenure = np.where(has_events, (examples.now - first) / DAY_US, 0.0)
    num_events = end - begin
    active_days = days_so_far[end] - days_so_far[begin]
    mean_gap = tenure / np.maximum(active_days, 1)
    columns = [np.minimum(recency, MAX_RECENCY_DAYS), tenure, num_events, active_days, mean_gap]
    since = [_first_since(time, begin, end, examples.now - days * DAY_US) for days in WINDOW_DAYS]
    columns += [end - place for place in since]
    columns += [_days_between(starts_day, days_so_far, place, end) for place in since]
    return np.stack(columns, axis=1).astype(np.float32)


def _features_without_events(num_examples: int) -> np.ndarray:
    features = np.zeros((num_examples, len(FEATURE_NAMES)), np.float32)
    features[:, FEATURE_NAMES.index("recency_days")] = MAX_RECENCY_DAYS
    return features


def _first_since(time: np.ndarray, begin: np.ndarray, end: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """[N] the first event in [begin, end) at or after a moment, by bisection of all examples at once."""
    low, high = begin.copy(), end.copy()
    while np.any(low < high):
        middle = (low + high) // 2
        earlier = (low < high) & (time[np.minimum(middle, len(time) - 1)] < moment)
        high = np.where((low < high) & ~earlier, middle, high)
        low = np.where(earlier, middle + 1, low)
    return low


def _days_between(starts_day: np.ndarray, so_far: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[N] UTC days with an event in [begin, end); a span that begins inside a day counts that day."""
    inside = (end > begin) & (starts_day[np.minimum(begin, len(starts_day) - 1)] == 0)
    return so_far[end] - so_far[begin] + inside


def scale_features(features: np.ndarray) -> np.ndarray:
    """[N, F] features as a network takes them: log(1 + x)."""
    return np.log1p(np.maximum(features, 0)).astype(np.float32)
