"""Order: the same global batches on any number of workers, and each example exactly once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.order import EpochOrder

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=5)
MICRO_BATCH_SIZE = 2

Example = tuple[int, int]
"""A bucket and an example of it."""


def make_order(counts: list[int], seed: int = 0, epoch: int = 0, global_batch_size: int = 8) -> EpochOrder:
    return EpochOrder(np.array(counts, np.int64), seed, epoch, global_batch_size)


def lengths_of(bucket: int, count: int) -> np.ndarray:
    """From 1 to 50 events."""
    return np.random.default_rng(bucket).integers(1, 51, count)


def micro_batch(order: EpochOrder, step: int, place: int, size: int) -> list[Example]:
    found = []
    for piece in order.micro_batch(step, place, size):
        arranged = order.arrange(piece.bucket, lengths_of(piece.bucket, int(order.counts[piece.bucket])))
        found += [(piece.bucket, index) for index in arranged[piece.places].tolist()]
    return found


def global_batches(order: EpochOrder, world_size: int = 1, size: int = MICRO_BATCH_SIZE) -> list[list[Example]]:
    """The examples of each step, rank after rank, as the loader places micro-batches."""
    accumulation = order.global_batch_size // (world_size * size)
    places = [rank * accumulation + index for rank in range(world_size) for index in range(accumulation)]
    return [
        [example for place in places for example in micro_batch(order, step, place, size)]
        for step in range(order.num_steps)
    ]


@given(COUNTS, st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_for_1_2_and_4_workers(counts: list[int], seed: int, epoch: int) -> None:
    batches = [global_batches(make_order(counts, seed, epoch), world_size) for world_size in (1, 2, 4)]
    assert batches[0] == batches[1] == batches[2]


@given(COUNTS)
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_for_any_micro_batch_size(counts: list[int]) -> None:
    batches = [global_batches(make_order(counts), size=size) for size in (1, 2, 4, 8)]
    assert all(found == batches[0] for found in batches)


@given(COUNTS, st.integers(0, 5), st.integers(0, 5), st.sampled_from([2, 4, 8, 32]))
@settings(max_examples=40, deadline=None)
def test_each_example_is_trained_on_exactly_once_an_epoch(
    counts: list[int], seed: int, epoch: int, global_batch_size: int
) -> None:
    batches = global_batches(make_order(counts, seed, epoch, global_batch_size))
    expected = [(bucket, index) for bucket, count in enumerate(counts) for index in range(count)]
    assert sorted(example for batch in batches for example in batch) == expected
    assert all(len(batch) == global_batch_size for batch in batches[:-1])


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_other_epochs_and_seeds_have_another_order(change: dict[str, int]) -> None:
    first, other = make_order([20] * 6), make_order([20] * 6, **change)
    assert global_batches(first) != global_batches(other)
    bucket_orders = [[batch[0][0] for batch in global_batches(order)] for order in (first, other)]
    assert bucket_orders[0] != bucket_orders[1]


def test_examples_of_a_bucket_have_another_order_in_another_epoch() -> None:
    assert global_batches(make_order([30])) != global_batches(make_order([30], epoch=1))


def test_an_order_made_again_is_the_same() -> None:
    assert global_batches(make_order([7, 0, 9], 3, 2)) == global_batches(make_order([7, 0, 9], 3, 2))


def test_steps_are_counted_with_the_last_short_one() -> None:
    assert [make_order([count]).num_steps for count in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_micro_batches_beyond_the_end_of_an_epoch_are_empty() -> None:
    order = make_order([9])
    assert [len(micro_batch(order, 1, place, MICRO_BATCH_SIZE)) for place in range(4)] == [1, 0, 0, 0]
    assert order.micro_batch(5, 0, MICRO_BATCH_SIZE) == []


def test_a_micro_batch_names_each_bucket_it_touches_once() -> None:
    buckets = [piece.bucket for piece in make_order([1, 0, 2, 1]).micro_batch(0, 0, 8)]
    assert sorted(buckets) == [0, 2, 3]


def test_a_step_takes_examples_of_like_length_and_steps_come_in_any_order() -> None:
    order = make_order([900, 700])
    lengths = {bucket: lengths_of(bucket, int(count)) for bucket, count in enumerate(order.counts)}
    batches = [np.array([lengths[bucket][index] for bucket, index in batch]) for batch in global_batches(order)]
    padded = sum(len(batch) * int(batch.max()) for batch in batches)
    assert sum(int(batch.sum()) for batch in batches) > 0.93 * padded
    longest = np.array([batch.max() for batch in batches])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.25


def test_examples_meet_others_in_another_epoch() -> None:
    first, other = ({frozenset(batch) for batch in global_batches(make_order([400], epoch=epoch))} for epoch in (0, 1))
    assert len(first & other) < 3
