"""Neighbours of items against a dense matrix, however users and items are cut into parts."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.sequences import Sequences
from model import neighbours
from model.neighbours import add_counts, combine, count_together, distinct_items, nearest, num_unordered_pairs

SIZE = 9
logs = st.lists(st.lists(st.integers(0, SIZE - 1), max_size=8), min_size=1, max_size=6)


def make_sequences(users: list[list[int]]) -> Sequences:
    items = np.array([item for user in users for item in user], np.int32)
    return Sequences(
        user_id=pa.array([f"u{row}" for row in range(len(users))]),
        offsets=np.cumsum([0, *map(len, users)]).astype(np.int64),
        item_index=items,
        action_index=np.full(len(items), 2, np.int16),
        event_time=np.arange(len(items)),
    )


def had(users: list[list[int]]) -> np.ndarray:
    """[U, V] 1 where a user had a known item."""
    matrix = np.zeros((len(users), SIZE), np.int64)
    for row, user in enumerate(users):
        matrix[row, [item for item in user if item >= 2]] = 1
    return matrix


def dense_nearest(users: list[list[int]], most: int) -> list[list[tuple[int, float]]]:
    """Neighbours of each item and their cosine, by comparing all with all."""
    matrix = had(users)
    together, each = matrix.T @ matrix, matrix.sum(axis=0)
    cosine = np.array(together / np.sqrt(np.maximum(np.outer(each, each), 1)), np.float32)
    np.fill_diagonal(cosine, 0)
    rows = [
        sorted(((near, float(row[near])) for near in np.flatnonzero(row)), key=lambda n: (-n[1], n[0]))
        for row in cosine
    ]
    return [row[:most] for row in rows]


@settings(deadline=None)  # the first call of NumPy's sort takes long
@given(users=logs, most=st.integers(1, 4), num_parts=st.integers(1, 3), cut=st.integers(0, 6))
def test_neighbours_equal_those_of_a_dense_matrix(users: list[list[int]], most: int, num_parts: int, cut: int) -> None:
    buckets = [make_sequences(users[:cut]), make_sequences(users[cut:])]
    pairs = [distinct_items(bucket, bucket.ends, SIZE) for bucket in buckets]
    each = had(users).sum(axis=0)
    slices = [
        nearest(add_counts(count_together(*found, SIZE, part, num_parts) for found in pairs), each, most)
        for part in range(num_parts)
    ]
    found = combine(slices)
    rows = [
        list(zip(found.item_index[begin:end].tolist(), found.similarity[begin:end].tolist(), strict=True))
        for begin, end in pairwise(found.offsets)
    ]
    assert rows == dense_nearest(users, most)


@settings(deadline=None)
@given(users=logs)
def test_pairs_are_counted_before_they_are_made(users: list[list[int]]) -> None:
    sequences = make_sequences(users)
    row, item = distinct_items(sequences, sequences.ends, SIZE)
    together = count_together(row, item, SIZE)
    assert int(together.counts.sum()) == 2 * num_unordered_pairs(row)


@pytest.mark.parametrize("dense", [0, 4])
def test_few_pairs_at_a_time_give_the_same_counts(monkeypatch: pytest.MonkeyPatch, dense: int) -> None:
    generator = np.random.default_rng(0)
    sequences = make_sequences([generator.integers(2, SIZE, 6).tolist() for _ in range(30)])
    found = distinct_items(sequences, sequences.ends, SIZE)
    whole = count_together(*found, SIZE)
    monkeypatch.setattr(neighbours, "_PAIRS_AT_A_TIME", 3)
    monkeypatch.setattr(neighbours, "_DENSE", dense)
    parts = count_together(*found, SIZE)
    assert parts.keys.tolist() == whole.keys.tolist()
    assert parts.counts.tolist() == whole.counts.tolist()


def test_only_events_before_a_user_s_end_count() -> None:
    sequences = make_sequences([[2, 3, 4], [3, 4, 5]])
    row, item = distinct_items(sequences, np.array([2, 3]), SIZE)
    assert (row.tolist(), item.tolist()) == ([0, 0], [2, 3])


def test_neighbours_of_items_come_one_after_the_other() -> None:
    sequences = make_sequences([[2, 3], [3, 4], [3, 4]])
    pairs = distinct_items(sequences, sequences.ends, SIZE)
    found = nearest(count_together(*pairs, SIZE), had([[2, 3], [3, 4], [3, 4]]).sum(axis=0), most=1)
    source, near, similarity = found.of(np.array([4, 5, 2]))
    assert (source.tolist(), near.tolist()) == ([0, 2], [3, 3])
    assert similarity == pytest.approx([2 / 6**0.5, 1 / 3**0.5])
