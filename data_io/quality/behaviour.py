"""Behaviour: what the users of a store do, as small summaries that add up, and which users look like robots.

A bucket that is merged again is profiled again and its profile replaced, for its users are the same; the sum over all
buckets is the profile of the store. Invariant: histograms have fixed bins, so that summaries of any two buckets, and of
any two snapshots, can be added and compared.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.quality.profile import HOUR_US
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences, to_sequences

NUM_EXACT, NUM_BINS = 17, 41
_MINUTE_US = HOUR_US // 60
SESSION_GAP_US = 30 * _MINUTE_US
"""A pause longer than this ends a session: the convention of web analytics."""
ROBOT_MOMENTS_PER_HOUR = 500
"""More moments with events in an hour, one every seven seconds without rest, are not a person's."""
ROBOT_MOMENTS_PER_MINUTE = 40
"""More in a minute, two every three seconds, are not either; fewer than the 60 that whole seconds can show."""
ROBOT_RULES = ("hour", "minute", "day")
"""Why a user looks like a robot: too fast for an hour, too fast for a minute, events in all 24 hours of a day (UTC)."""
RANK_BINS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper edges, as shares of the items by rank, of the bins in which popularity is compared."""
_CURVE_POINTS = 50
_BLOCK_EVENTS = 1 << 18
_ONE = 1023
"""The exponent of 1.0 as a float holds it; that of 2.0 is one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceProfile:
    """What users do; without arguments, that of no user. Bin b of log2 counts values of b binary digits: 0, 1, 2-3."""

    num_users: int = 0
    num_events: int = 0
    users_by_events: tuple[int, ...] = ()
    """Users with exactly 0 to 16 events."""
    users_by_log2_events: tuple[int, ...] = ()
    num_sessions: int = 0
    sessions_by_log2_events: tuple[int, ...] = ()
    sessions_by_log2_minutes: tuple[int, ...] = ()
    """By minutes from the first event of a session to its last."""
    gaps_by_log2_seconds: tuple[int, ...] = ()
    """By seconds between an event and the user's one before."""
    num_item_events: int = 0
    """Events with an item of the vocabulary."""
    num_repeat_events: int = 0
    """Those whose user had the item before."""
    num_robots: int = 0
    num_robot_events: int = 0
    robots_by_rule: tuple[int, ...] = ()
    """Users by `ROBOT_RULES`; a user may break several."""

    @property
    def median_events(self) -> float:
        """Median events of a user: exact up to 16, the middle of its bin beyond; 0 where there is no user."""
        exact = np.cumsum(self.users_by_events or [0])
        half = (self.num_users + 1) // 2
        if half <= exact[-1]:
            return float(np.searchsorted(exact, half)) if self.num_users else 0.0
        digits = int(np.searchsorted(np.cumsum(self.users_by_log2_events), half))
        return 0.75 * 2**digits

    def __add__(self, other: "SequenceProfile") -> "SequenceProfile":
        sums = {f.name: _sum(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return SequenceProfile(**sums)

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON content."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SequenceProfile":
        """The profile that `to_json` gave this content."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**values)


def _sum(left: Any, right: Any) -> Any:
    if isinstance(left, tuple):
        return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))
    return left + right


def profile_sequences(table: pa.Table) -> SequenceProfile:
    """The profile of the users of a bucket, given its rows of the store."""
    return sum((_profile_block(block) for block in _blocks(to_sequences(table))), SequenceProfile())


def _blocks(sequences: Sequences) -> Iterator[Sequences]:
    """The same users some at a time: what fits the processor's cache is profiled twice as fast."""
    offsets = sequences.offsets
    cuts = np.searchsorted(offsets[:-1], np.arange(0, offsets[-1], _BLOCK_EVENTS))
    for first, end in pairwise(np.unique([0, *cuts, sequences.num_users]).tolist()):
        events = slice(offsets[first], offsets[end])
        yield Sequences(
            user_id=sequences.user_id[first:end],
            offsets=offsets[first : end + 1] - offsets[first],
            item_index=sequences.item_index[events],
            action_index=sequences.action_index[events],
            event_time=sequences.event_time[events],
        )


def _profile_block(sequences: Sequences) -> SequenceProfile:
    lengths = np.diff(sequences.offsets)
    robots = robots_by_rule(sequences)
    any_rule = np.logical_or.reduce(robots)
    num_item_events, num_repeats = _count_repeats(sequences, lengths)
    return SequenceProfile(
        num_users=len(lengths),
        num_events=int(lengths.sum()),
        users_by_events=tuple(np.bincount(lengths[lengths < NUM_EXACT], minlength=NUM_EXACT).tolist()),
        users_by_log2_events=_log2_counts(lengths),
        num_item_events=num_item_events,
        num_repeat_events=num_repeats,
        num_robots=int(any_rule.sum()),
        num_robot_events=int(lengths[any_rule].sum()),
        robots_by_rule=tuple(robots.sum(axis=1).tolist()),
        **_profile_times(sequences.event_time, sequences.starts[lengths > 0]),
    )


def _profile_times(time: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
    """Gaps and sessions of events of which `starts` begin a user."""
    gaps = np.diff(time, prepend=time[:1])
    gaps[starts] = 0
    begins = gaps > SESSION_GAP_US
    begins[starts] = True
    at_once, *longer = _log2_counts(gaps / 1_000_000)
    first = np.flatnonzero(begins)
    end = np.append(first[1:], len(time))[: len(first)]
    return {
        "num_sessions": len(first),
        "sessions_by_log2_events": _log2_counts(end - first),
        "sessions_by_log2_minutes": _log2_counts((time[end - 1] - time[first]) / _MINUTE_US),
        "gaps_by_log2_seconds": (at_once - len(starts), *longer),  # a user's first event follows none
    }


def _count_repeats(sequences: Sequences, lengths: np.ndarray) -> tuple[int, int]:
    """Events with a known item, and how many of them are of an item that the user had before."""
    item = sequences.item_index
    num_items = int(item.max(initial=0)) + 1
    kind = np.uint32 if len(lengths) * num_items < 1 << 32 else np.uint64  # small numbers are counted faster
    pair = np.repeat(np.arange(len(lengths), dtype=kind) * kind(num_items), lengths) + item.astype(kind)
    if item.min(initial=FIRST_INDEX) < FIRST_INDEX:
        pair = pair[item >= FIRST_INDEX]
    return len(pair), len(pair) - pl.Series(pair).n_unique()


def _log2_counts(values: np.ndarray) -> tuple[int, ...]:
    """Counts of values from 0 by the binary digits of their whole part, read from the exponent of a float."""
    by_exponent = np.bincount(values.astype(np.float64, copy=False).view(np.int64) >> 52, minlength=_ONE + NUM_BINS)
    below_one, digits, above = np.split(by_exponent, [_ONE, _ONE + NUM_BINS - 1])
    return (int(below_one.sum()), *digits[:-1].tolist(), int(digits[-1] + above.sum()))


def log2_label(digits: int) -> str:
    """The whole numbers of so many binary digits: 0, 1, 2-3, 4-7 and so on."""
    return str(digits) if digits < 2 else f"{1 << (digits - 1)}-{(1 << digits) - 1}"


def robot_like(sequences: Sequences) -> np.ndarray:
    """[U] which users act faster or longer than people do (see `ROBOT_RULES`).

    Moments with events are counted, not events: a basket of a hundred lines is one moment. A log whose times are not
    moments, but an order written as seconds, makes robots of all its long users.
    """
    return np.logical_or.reduce(robots_by_rule(sequences))


def robots_by_rule(sequences: Sequences) -> np.ndarray:
    """[rules, U] which users break which rule."""
    rules = np.zeros((len(ROBOT_RULES), sequences.num_users), bool)
    moments, offsets = _distinct(sequences.event_time, sequences.offsets)
    # Cheap look first: whoever breaks a rule has at least 24 moments within a day.
    busy = np.flatnonzero(_hasty(moments, offsets, 23, 24 * HOUR_US))
    if len(busy):
        lengths = np.diff(offsets)[busy]
        ends = np.cumsum(lengths)
        moments = moments[np.arange(ends[-1]) + np.repeat(offsets[busy + 1] - ends, lengths)]
        offsets = np.append(0, ends)
        rules[0, busy] = _hasty(moments, offsets, ROBOT_MOMENTS_PER_HOUR, HOUR_US)
        rules[1, busy] = _hasty(moments, offsets, ROBOT_MOMENTS_PER_MINUTE, _MINUTE_US)
        hours, offsets = _distinct(moments // HOUR_US, offsets)
        rules[2, busy] = _hasty(hours, offsets, 23, 24, begins=hours % 24 == 0)
    return rules


def _distinct(times: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times of users without the repeats of one after the other, and the offsets of users in them."""
    fresh = np.ones(len(times), bool)
    fresh[1:] = times[1:] != times[:-1]
    fresh[offsets[:-1][np.diff(offsets) > 0]] = True
    if fresh.all():
        return times, offsets
    return times[fresh], np.append(0, np.cumsum(fresh))[offsets]


def _hasty(
    times: np.ndarray, offsets: np.ndarray, steps: int, span: int, begins: np.ndarray | None = None
) -> np.ndarray:
    """[U] which users have a time that `steps` more of theirs follow in less than `span`.

    Args:
        times: of users one after the other, ascending in each.
        offsets: [U + 1] where users begin.
        steps: times that follow.
        span: in the unit of times.
        begins: which times may be the first; None: all.
    """
    later = times[steps:] - times[: max(len(times) - steps, 0)]
    close = later.view(np.uint64) < span  # what is negative, for it ends in the next user, is large
    if begins is not None:
        close &= begins[: len(close)]
    place = np.flatnonzero(close)
    user = np.searchsorted(offsets, place, side="right") - 1
    flags = np.zeros(len(offsets) - 1, bool)
    flags[user[place + steps < offsets[user + 1]]] = True
    return flags


def item_curve(counts: np.ndarray) -> dict[str, Any]:
    """How events spread over items, as JSON content, from the events of each item.

    Returns:
        Numbers of items, of items with one event and of events; the share of events of the top 1, 10 and 50 % of items;
        the Gini coefficient (0: all items equal, 1: one has all); the cumulative share of events at about 50 ranks; and
        events by `RANK_BINS`.
    """
    ranked = np.sort(counts[counts > 0])[::-1].astype(np.int64)
    num_items, num_events = len(ranked), int(ranked.sum())
    running = np.append(0, np.cumsum(ranked))
    ends = np.ceil(np.array(RANK_BINS) * num_items - 1e-9).astype(np.int64)
    ranks = np.unique(np.geomspace(1, max(num_items, 1), _CURVE_POINTS).round().astype(np.int64))
    ranks = ranks[ranks <= num_items]
    share = running / max(num_events, 1)
    top = {f"top_{percent}_share": float(share[-(-num_items * percent // 100)]) for percent in (1, 10, 50)}
    weights = np.arange(num_items, 0, -1)
    gini = (2 * float((weights * ranked).sum()) / num_events - num_items - 1) / num_items if num_items else 0.0
    return {
        "num_items": num_items,
        "num_events": num_events,
        "num_single": int((ranked == 1).sum()),
        **top,
        "gini": gini,
        "ranks": ranks.tolist(),
        "shares": share[ranks].tolist(),
        "events_by_rank": np.diff(running[ends], prepend=0).tolist(),
    }
