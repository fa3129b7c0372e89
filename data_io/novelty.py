"""Novelty: whether a user's newest events are of what the user did not have before, and how rare that is.

Invariant: an event counts as new by the user's own earlier events alone.
"""

from dataclasses import dataclass

import numpy as np

from data_io.item_facts import ItemFacts
from data_io.preferences import Events
from data_io.schema import FIRST_INDEX

LEAST_EVENTS = 4
"""Events with a known item that a user needs to have an earlier and a recent part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """What is new in the recent part of each of U users; not-a-number where there are too few events."""

    new_items: np.ndarray
    """[U] share of recent events that are of an item new to the user."""
    new_categories: np.ndarray
    """[U] share of recent events with a category that are of a category new to the user."""
    self_information: np.ndarray
    """[U] mean self-information of recent events in bits: minus log2 of the item's share of the log's events."""


def measure_novelty(events: Events, facts: ItemFacts, recent_share: float) -> Novelty:
    """The novelty of the users of a bucket.

    Args:
        events: of the bucket.
        facts: of its items.
        recent_share: newest share of a user's events with a known item that is the recent part, rounded up.

    Source:
        Self-information as novelty: Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender
        systems", PNAS 107, "surprisal".
    """
    items = events.sequences.item_index
    known = items >= FIRST_INDEX
    recent = recent_events(events, recent_share)
    with np.errstate(divide="ignore"):
        bits = -np.log2(facts.num_events / max(facts.num_events.sum(), 1))
    return Novelty(
        new_items=_mean(events, events.sequences.first_times, recent & known),
        new_categories=_mean(
            events, first_times(events.user, facts.category.code[items]), recent & _of_category(events, facts)
        ),
        self_information=_mean(events, bits[items], recent & known & (facts.num_events[items] > 0)),
    )


def recent_events(events: Events, recent_share: float) -> np.ndarray:
    """[E] True at the newest share of each user's events with a known item; nowhere at users with too few of them."""
    known = events.sequences.item_index >= FIRST_INDEX
    so_far = np.cumsum(known)
    ends, starts = events.sequences.ends, events.sequences.starts
    before = np.concatenate([[0], so_far])
    total = before[ends] - before[starts]
    num_recent = np.ceil(recent_share * total).astype(np.int64)
    from_last = before[ends][events.user] - so_far  # known events after this one
    enough = (total >= LEAST_EVENTS)[events.user]
    return known & enough & (from_last < num_recent[events.user])


def first_times(user: np.ndarray, code: np.ndarray) -> np.ndarray:
    """[E] True where a user has a code (0 or more) for the first time."""
    first = np.zeros(len(code), bool)
    places = np.flatnonzero(code >= 0)
    pairs = user[places].astype(np.int64) * (int(code.max(initial=0)) + 1) + code[places]
    first[places[np.unique(pairs, return_index=True)[1]]] = True
    return first


def _of_category(events: Events, facts: ItemFacts) -> np.ndarray:
    return facts.category.code[events.sequences.item_index] >= 0


def _mean(events: Events, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """[U] mean of values over the counted events of each user; not-a-number where none counts."""
    num_users = events.sequences.num_users
    total = np.bincount(events.user[counted], minlength=num_users)
    sums = np.bincount(events.user[counted], values[counted].astype(np.float64), num_users)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)
