"""Behaviour: users, sessions, repeats and robots against plain loops, and the spread of events over items by hand."""

import json
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.quality import behaviour
from data_io.quality.behaviour import SequenceProfile, item_curve, log2_label, profile_sequences, robot_like
from data_io.schema import TIME_TYPE
from data_io.sequences import to_sequences

MIDNIGHT = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())

User = list[tuple[float, int]]
"""Seconds since the first of January 2024, and item index, in order."""
USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 9_000), st.sampled_from([0, 1, 2, 3, 4])), max_size=8).map(sorted), max_size=6
)


def store_rows(users: list[User]) -> pa.Table:
    events = [event for user in users for event in user]
    offsets = pa.array(np.cumsum([0, *(len(user) for user in users)]))
    times = pa.array([round((MIDNIGHT + time) * 1e6) for time, _ in events], pa.int64()).cast(TIME_TYPE)
    columns = {
        "item_index": pa.array([item for _, item in events], pa.int32()),
        "action_index": pa.array([2] * len(events), pa.int16()),
        "event_time": times,
    }
    lists = {name: pa.LargeListArray.from_arrays(offsets, values) for name, values in columns.items()}
    return pa.table({"user_id": pa.array([f"u{row}" for row in range(len(users))], pa.large_string())} | lists)


def bins(values: list[int]) -> dict[int, int]:
    return dict(Counter(value.bit_length() for value in values))


def found(counts: tuple[int, ...]) -> dict[int, int]:
    return {place: count for place, count in enumerate(counts) if count}


@given(USERS)
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_plain_loops(users: list[User]) -> None:
    profile = profile_sequences(store_rows(users))
    gaps, sessions, repeats, items = [], [], 0, 0
    for user in users:
        seen: set[int] = set()
        for place, (time, item) in enumerate(user):
            gap = time - user[place - 1][0] if place else None
            if gap is None or gap > 1_800:
                sessions.append([])
            sessions[-1].append(time)
            gaps += [] if gap is None else [int(gap)]
            items += item >= 2
            repeats += item >= 2 and item in seen
            seen.add(item)
    assert (profile.num_users, profile.num_events) == (len(users), sum(map(len, users)))
    assert found(profile.users_by_events) == dict(Counter(map(len, users)))
    assert found(profile.users_by_log2_events) == bins([len(user) for user in users])
    assert found(profile.gaps_by_log2_seconds) == bins(gaps)
    assert profile.num_sessions == len(sessions)
    assert found(profile.sessions_by_log2_events) == bins([len(session) for session in sessions])
    assert found(profile.sessions_by_log2_minutes) == bins([int(s[-1] - s[0]) // 60 for s in sessions])
    assert (profile.num_item_events, profile.num_repeat_events) == (items, repeats)
    assert profile.num_robots == 0


@given(USERS, USERS)
@settings(max_examples=40, deadline=None)
def test_profiles_of_buckets_add_up_and_come_back_from_json(left: list[User], right: list[User]) -> None:
    both = profile_sequences(store_rows(left)) + profile_sequences(store_rows(right))
    whole = profile_sequences(store_rows(left + right))
    assert whole.num_users == both.num_users
    if left or right:
        assert both == whole
        assert SequenceProfile.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_users_split_over_blocks_count_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    users: list[User] = [[(60.0 * step, 2 + step % 3) for step in range(size)] for size in (5, 0, 1, 9, 0, 3)]
    whole = profile_sequences(store_rows(users))
    monkeypatch.setattr(behaviour, "_BLOCK_EVENTS", 2)
    assert profile_sequences(store_rows(users)) == whole


@pytest.mark.parametrize(("lengths", "median"), [([], 0.0), ([3, 1, 2], 2.0), ([16], 16.0), ([20, 30, 31], 24.0)])
def test_the_median_is_exact_for_short_users_and_a_bin_for_long_ones(lengths: list[int], median: float) -> None:
    users: list[User] = [[(float(step), 2) for step in range(length)] for length in lengths]
    assert profile_sequences(store_rows(users)).median_events == median


ROBOTS: dict[str, tuple[User, tuple[int, int, int]]] = {
    "as fast as a person may be in an hour": ([(7.0 * step, 2) for step in range(500)], (0, 0, 0)),
    "faster than that for an hour": ([(7.0 * step, 2) for step in range(515)], (1, 0, 0)),
    "as fast as a person may be in a minute": ([(1.6 * step, 2) for step in range(38)], (0, 0, 0)),
    "faster than that for a minute": ([(1.4 * step, 2) for step in range(41)], (0, 1, 0)),
    "a basket of two thousand": ([(0.0, 2)] * 2_000, (0, 0, 0)),
    "awake all day": ([(3_600.0 * step + 59, 2) for step in range(24)], (0, 0, 1)),
    "24 hours, but of two days": ([(3_600.0 * step + 59, 2) for step in range(1, 25)], (0, 0, 0)),
    "asleep for an hour": ([(3_600.0 * step, 2) for step in range(24) if step != 4] + [(86_400.0, 2)], (0, 0, 0)),
}


@pytest.mark.parametrize("name", ROBOTS)
def test_robots_are_told_by_rule(name: str) -> None:
    user, rules = ROBOTS[name]
    table = store_rows([[(0.0, 2)], [], user, [(90_000.0, 2)]])
    profile = profile_sequences(table)
    assert profile.robots_by_rule == rules
    assert robot_like(to_sequences(table)).tolist() == [False, False, any(rules), False]
    assert (profile.num_robots, profile.num_robot_events) == ((1, len(user)) if any(rules) else (0, 0))


def test_one_after_the_other_ordinary_users_make_no_robot() -> None:
    users: list[User] = [[(60.0 * step + place, 2) for step in range(20)] for place in range(50)]
    assert not robot_like(to_sequences(store_rows(users))).any()


def test_the_curve_of_items_by_hand() -> None:
    curve = item_curve(np.array([1, 6, 0, 2, 1]))
    assert (curve["num_items"], curve["num_events"], curve["num_single"]) == (4, 10, 2)
    assert (curve["ranks"], curve["shares"]) == ([1, 2, 3, 4], [0.6, 0.8, 0.9, 1.0])
    assert (curve["top_1_share"], curve["top_10_share"], curve["top_50_share"]) == (0.6, 0.6, 0.8)
    assert curve["gini"] == pytest.approx(np.abs(np.subtract.outer([6, 2, 1, 1], [6, 2, 1, 1])).sum() / (2 * 4 * 10))
    assert curve["events_by_rank"] == [6, 0, 0, 0, 0, 2, 2]


def test_the_curve_of_equal_items_and_of_none() -> None:
    assert item_curve(np.ones(1_000, np.int64))["gini"] == pytest.approx(0.0)
    assert item_curve(np.ones(1_000, np.int64))["top_1_share"] == pytest.approx(0.01)
    assert len(item_curve(np.ones(10**6, np.int64))["ranks"]) <= 50
    assert item_curve(np.zeros(0, np.int64))["ranks"] == []


def test_bins_are_named_by_their_numbers() -> None:
    assert [log2_label(digits) for digits in range(5)] == ["0", "1", "2-3", "4-7", "8-15"]
