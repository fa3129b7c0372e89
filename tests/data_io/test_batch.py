"""Batches: what stands at a real position depends on the user alone, never on the padding around it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.batch import (
    COLUMN,
    FEATURES,
    NUM_TIME_BUCKETS,
    OUTCOME,
    PADDING_MASK,
    TARGET_ITEM_INDEX,
    Batch,
    collate,
    merge_batches,
    padding_batch,
    shifted_actions,
    shifted_targets,
    time_bucket,
)
from data_io.columns import TOKENS_PER_TEXT, EncodedColumn, encode_column, missing_column
from data_io.examples import Examples, history_examples, window_examples
from data_io.sequences import Sequences
from data_io.splits import Cutoffs

SECOND = 1_000_000
User = list[tuple[int, int, int]]
"""Time, item index and action index of each event."""
EVENTS = st.tuples(st.integers(0, 5000), st.integers(0, 5), st.integers(1, 3))
USERS = st.lists(st.lists(EVENTS, max_size=5).map(sorted), min_size=1, max_size=4)


def one(index: int) -> np.ndarray:
    return np.array([index])


def real_positions(batch: Batch, row: int) -> dict[str, list[float]]:
    return {name: array[row][batch[PADDING_MASK][row]].tolist() for name, array in batch.items()}


def collate_slowly(sequences: Sequences, examples: Examples, row: int) -> dict[str, list[int]]:
    """The real positions of one example, one event at a time."""
    time, start, end = sequences.event_time.tolist(), int(examples.start[row]), int(examples.end[row])
    begin = sequences.starts[examples.row[row]]
    following = [*time[start + 1 : end], int(examples.now[row])]
    gaps = [0 if place == begin else bucket_slowly(time[place] - time[place - 1]) for place in range(start, end)]
    return {
        "item_index": sequences.item_index[start:end].tolist(),
        "action_index": sequences.action_index[start:end].tolist(),
        "gap": gaps,
        "elapsed": [
            bucket_slowly(after - time[start + offset]) for offset, after in enumerate(following[: end - start])
        ],
        "moment": time[start:end],
        "padding_mask": [True] * (end - start),
    }


def bucket_slowly(micros: int) -> int:
    """The largest bucket whose lower bound, 2 ** ((bucket - 1) / 2) - 1 seconds, is not above the duration."""
    return max(bucket for bucket in range(1, 64) if 2 ** (bucket - 1) <= (micros / 1e6 + 1) ** 2)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-1, 1), (0, 1), (0.4, 1), (1, 3), (3, 5), (7, 7), (2**31, 63), (1e18, NUM_TIME_BUCKETS - 1)],
)
def test_time_buckets_are_half_octaves(seconds: float, bucket: int) -> None:
    assert time_bucket(np.array([seconds])).tolist() == [bucket]


def test_a_batch_of_two_users_by_hand(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5, 2), (3, 6, 3), (4, 0, 2)], [(2, 7, 2)], unit_us=SECOND)
    batch = collate(sequences, history_examples(sequences, 10 * SECOND, 2))
    assert batch["item_index"].tolist() == [[6, 0], [7, 0]]
    assert batch["action_index"].tolist() == [[3, 2], [2, 0]]
    assert batch["padding_mask"].tolist() == [[True, True], [True, False]]
    assert batch["gap"].tolist() == [[time_bucket(np.array(3)), time_bucket(np.array(1))], [0, 0]]
    assert batch["elapsed"].tolist() == [[time_bucket(np.array(1)), time_bucket(np.array(6))], [7, 0]]
    assert batch["moment"].tolist() == [[3 * SECOND, 4 * SECOND], [2 * SECOND, 0]]


@given(USERS, st.integers(1, 4), st.integers(0, 5001))
@settings(max_examples=40, deadline=None)
def test_collate_equals_a_naive_loop(make_sequences: Callable, users: list[User], length: int, now: int) -> None:
    sequences = make_sequences(*users, unit_us=SECOND // 4)
    for examples in (
        history_examples(sequences, now * SECOND // 4, length),
        window_examples(sequences, Cutoffs(validation=now * SECOND // 4, test=10**12, end=10**13), length),
    ):
        batch = collate(sequences, examples)
        for row in range(len(examples)):
            assert real_positions(batch, row) == collate_slowly(sequences, examples, row)
        for array in batch.values():
            assert not array[~batch[PADDING_MASK]].any()


@given(USERS, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_padding_changes_no_real_position_of_a_user(make_sequences: Callable, users: list[User], length: int) -> None:
    sequences = make_sequences(*users, unit_us=SECOND)
    examples = history_examples(sequences, 6000 * SECOND, length)
    together = collate(sequences, examples)
    alone = [collate(sequences, examples.take(one(row))) for row in range(len(users))]
    merged = merge_batches(alone)
    for row, batch in enumerate(alone):
        assert real_positions(together, row) == real_positions(merged, row) == real_positions(batch, 0)
    assert {name: array.tolist() for name, array in merged.items()} == {
        name: array.tolist() for name, array in together.items()
    }


def test_merging_pads_positions_and_leaves_what_belongs_to_examples(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5), (1, 6)], [(2, 7)])
    examples = history_examples(sequences, None, 2)
    parts = [
        collate(sequences, examples.take(one(row)))
        | {OUTCOME: np.float32([row]), FEATURES: np.full((1, 3), row, np.float32)}
        for row in (1, 0)
    ]
    merged = merge_batches(parts)
    assert merged["item_index"].tolist() == [[7, 0], [5, 6]]
    assert merged[OUTCOME].tolist() == [1, 0]
    assert merged[FEATURES].tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("users", [[], [[]], [[], []]], ids=["no user", "one empty", "two empty"])
def test_a_batch_without_events_is_padding_one_event_wide(make_sequences: Callable, users: list[User]) -> None:
    sequences = make_sequences(*users)
    batch = collate(sequences, history_examples(sequences, 5, 3))
    expected = padding_batch(len(users))
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(expected, (len(users), 1))
    assert {name: array.dtype for name, array in batch.items()} == {
        name: array.dtype for name, array in expected.items()
    }
    assert not any(array.any() for array in batch.values())


def test_no_examples_of_a_bucket_with_events_are_an_empty_batch(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5)])
    batch = collate(sequences, history_examples(sequences, None, 2).take(np.zeros(0, np.int64)))
    assert {array.shape for array in batch.values()} == {(0, 1)}


def with_columns(sequences: Sequences) -> Sequences:
    """The same with a column of each kind, in which every third event has no value."""
    places = [place if place % 3 else None for place in range(len(sequences.item_index))]
    names = pa.array([None if place is None else f"name {place}" for place in places], pa.large_string())
    price = pa.array([None if place is None else float(place) for place in places], pa.float32())
    columns = {
        "query": encode_column("text", names),
        "device": encode_column("categorical", names),
        "price": encode_column("numeric", price),
    }
    return replace(sequences, columns=columns)


def row_of(column: EncodedColumn, place: int) -> list[int] | int:
    return column.tokens[column.code[place]].tolist() if column.kind == "text" else int(column.code[place])


@given(USERS, st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_columns_stand_at_their_events_whatever_is_beside_them(
    make_sequences: Callable, users: list[User], length: int
) -> None:
    sequences = with_columns(make_sequences(*users, unit_us=SECOND))
    examples = history_examples(sequences, 6000 * SECOND, length)
    together = collate(sequences, examples)
    merged = merge_batches([collate(sequences, examples.take(one(row))) for row in range(len(users))])
    for name, column in sequences.columns.items():
        found = together[f"{COLUMN}{name}"]
        assert found.dtype == np.int64
        assert np.array_equal(found, merged[f"{COLUMN}{name}"])
        for row in range(len(users)):
            expected = [row_of(column, place) for place in range(examples.start[row], examples.end[row])]
            assert found[row][together[PADDING_MASK][row]].tolist() == expected
        assert not found[~together[PADDING_MASK]].any()


def test_columns_without_events_are_padding(make_sequences: Callable) -> None:
    kinds = {"query": "text", "price": "numeric"}
    columns = {name: missing_column(kind, 0) for name, kind in kinds.items()}
    sequences = replace(make_sequences([], []), columns=columns)
    batch = collate(sequences, history_examples(sequences, 5, 3))
    assert batch[f"{COLUMN}query"].shape == (2, 1, TOKENS_PER_TEXT)
    assert batch.keys() == padding_batch(2, kinds).keys()
    wider = merge_batches([batch, collate(with_columns(make_sequences([(0, 5), (1, 6)])), one_history())])
    assert wider[f"{COLUMN}query"].shape == (3, 2, TOKENS_PER_TEXT)


def one_history() -> Examples:
    return Examples(row=one(0), start=one(0), end=one(2), now=one(9), target=one(0))


def test_following_actions_are_those_of_the_targets(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5), (1, 0, 3), (2, 1, 1)], [(0, 8), (1, 9, 3)])
    examples = window_examples(sequences, Cutoffs(validation=50, test=60, end=70), 8)
    assert shifted_actions(sequences, examples).tolist() == [[3, 1], [3, 0]]
    assert shifted_actions(sequences, examples.take(np.zeros(0, np.int64))).shape == (0, 1)


def test_targets_are_the_items_after_each_input(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5), (1, 0), (2, 1), (3, 6, 3), (4, 7)], [(0, 8), (1, 9, 3)])
    examples = window_examples(sequences, Cutoffs(validation=50, test=60, end=70), 8)
    assert shifted_targets(sequences, examples, None).tolist() == [[0, 0, 6, 7], [9, 0, 0, 0]]
    assert shifted_targets(sequences, examples, np.array([3])).tolist() == [[0, 0, 6, 0], [9, 0, 0, 0]]
    assert shifted_actions(sequences, examples).tolist() == [[2, 2, 3, 2], [3, 0, 0, 0]]


def test_targets_are_as_wide_as_their_batch(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 5), (1, 6), (2, 7)], [(0, 8)])
    examples = window_examples(sequences, Cutoffs(validation=50, test=60, end=70), 8)
    for part in (examples, examples.take(np.zeros(0, np.int64))):
        targets = shifted_targets(sequences, part, None)
        assert targets.shape == collate(sequences, part)[PADDING_MASK].shape
    merged = merge_batches([{**padding_batch(1), TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}] * 2)
    assert merged[TARGET_ITEM_INDEX].shape == (2, 1)
