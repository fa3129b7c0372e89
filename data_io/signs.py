"""Signs of what is no usual shopper: figures of behaviour that robots, hijacked accounts and brushers stand out in.

A sign is a number for each user, and says which way it is odd; how odd it is among users of the same history length is
in `data_io.anomaly`. Invariant: a sign that cannot be told of a user is not-a-number.
"""

from dataclasses import dataclass

import numpy as np

from data_io.item_facts import ItemLabels
from data_io.preferences import Events
from data_io.schema import FIRST_INDEX
from data_io.splits import DAY_US

LEAST_GAPS = 10
"""Gaps that are needed to say how regular they are."""
BURST_US = DAY_US
"""Time within which events of one item, or of one seller, are a burst."""
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """Signs of U users."""

    moments_per_day: np.ndarray
    """[U] moments with events on a day that has any, UTC: a basket of many lines is one moment."""
    gap_variation: np.ndarray
    """[U] standard deviation of the natural log of seconds between moments: a clockwork has 0."""
    action_share: np.ndarray
    """[U] share of the most frequent action; not-a-number where the log has one action only."""
    item_burst: np.ndarray
    """[U] most purchases of one item within 24 hours."""
    seller_burst: np.ndarray
    """[U] most purchases from one seller within 24 hours; not-a-number where sellers are not known."""


def measure_signs(events: Events, seller: ItemLabels, purchases: np.ndarray | None, num_actions: int) -> Signs:
    """The signs of the users of a bucket.

    Args:
        events: of the bucket.
        seller: of its items.
        purchases: action indices that are purchases; None: all.
        num_actions: of the log.
    """
    sequences = events.sequences
    bought = sequences.item_index >= FIRST_INDEX
    if purchases is not None:
        bought &= np.isin(sequences.action_index, purchases)
    nothing = np.full(sequences.num_users, np.nan)
    sellers = seller.code[sequences.item_index]
    return Signs(
        **_of_moments(events),
        action_share=nothing if num_actions < 2 else _top_share(events),
        item_burst=largest_burst(events, sequences.item_index, bought),
        seller_burst=largest_burst(events, sellers, bought & (sellers >= 0)) if seller.is_known else nothing,
    )


def _of_moments(events: Events) -> dict[str, np.ndarray]:
    time, user, num_users = events.sequences.event_time, events.user, events.sequences.num_users
    fresh = np.ones(len(time), bool)
    fresh[1:] = (time[1:] != time[:-1]) | (user[1:] != user[:-1])
    time, user = time[fresh], user[fresh]
    day = time // DAY_US
    new_day = np.ones(len(day), bool)
    new_day[1:] = (day[1:] != day[:-1]) | (user[1:] != user[:-1])
    days = np.bincount(user[new_day], minlength=num_users)
    moments = np.bincount(user, minlength=num_users)
    same = user[1:] == user[:-1]
    gaps = np.log(np.maximum((time[1:] - time[:-1])[same] / _SECOND_US, 1.0))
    return {
        "moments_per_day": np.where(days > 0, moments / np.maximum(days, 1), np.nan),
        "gap_variation": _deviation(user[1:][same], gaps, num_users),
    }


def _deviation(user: np.ndarray, values: np.ndarray, num_users: int) -> np.ndarray:
    """[U] standard deviation of the values of each user; not-a-number where there are too few."""
    counts = np.bincount(user, minlength=num_users)
    mean = np.bincount(user, values, num_users) / np.maximum(counts, 1)
    squares = np.bincount(user, (values - mean[user]) ** 2, num_users)
    return np.where(counts >= LEAST_GAPS, np.sqrt(squares / np.maximum(counts, 1)), np.nan)


def _top_share(events: Events) -> np.ndarray:
    num_users, action = events.sequences.num_users, events.sequences.action_index.astype(np.int64)
    width = int(action.max(initial=0)) + 1
    counts = np.bincount(events.user * width + action, minlength=num_users * width).reshape(num_users, width)
    total = counts.sum(axis=1)
    return np.where(total > 0, counts.max(axis=1) / np.maximum(total, 1), np.nan)


def largest_burst(events: Events, code: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """[U] most counted events of one code within `BURST_US`; 0 where none counts."""
    bursts = np.zeros(events.sequences.num_users)
    places = np.flatnonzero(counted)
    if not len(places):
        return bursts
    user, time = events.user[places], events.sequences.event_time[places]
    pair = np.unique(user.astype(np.int64) * (int(code.max()) + 1) + code[places], return_inverse=True)[1]
    seconds = (time - time.min()) // _SECOND_US
    window = BURST_US // _SECOND_US
    order = np.lexsort((seconds, pair))
    key = pair[order] * (int(seconds.max()) + window + 1) + seconds[order]  # pairs lie further apart than a window
    first = np.searchsorted(key, key - window, side="right")
    np.maximum.at(bursts, user[order], np.arange(len(key)) - first + 1)
    return bursts
