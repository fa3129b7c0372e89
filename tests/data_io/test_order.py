"""Order: the same micro-batches on any number of workers, and each example exactly once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.order import EpochOrder

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=5)

Example = tuple[int, int]
"""A bucket and an example of it."""


def make_order(
    counts: list[int], seed: int = 0, epoch: int = 0, global_batch_size: int = 8, num_lanes: int = 4
) -> EpochOrder:
    return EpochOrder(np.array(counts, np.int64), seed, epoch, global_batch_size, num_lanes)


def lengths_of(bucket: int, count: int) -> np.ndarray:
    """From 1 to 50 events, mostly few."""
    return np.clip(np.random.default_rng(bucket).pareto(1.2, count) * 4 + 1, 1, 50).astype(np.int64)


def micro_batches(order: EpochOrder) -> list[list[list[Example]]]:
    """By step and lane."""
    found: list[list[list[Example]]] = [[[] for _ in range(order.num_lanes)] for _ in range(order.num_steps)]
    for lane in range(order.num_lanes):
        for pool in sorted({order.pool_of(step) for step in range(order.num_steps)}):
            examples, lengths = [], []
            for piece in order.pool(lane, pool):
                chosen = order.shuffled(piece.bucket)[piece.places]
                examples += [(piece.bucket, int(index)) for index in chosen]
                lengths.append(lengths_of(piece.bucket, int(order.counts[piece.bucket]))[chosen])
            joined = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
            for step, places in order.deal(lane, pool, joined).items():
                found[step][lane] = [examples[place] for place in places]
    return found


def global_batches(order: EpochOrder) -> list[list[Example]]:
    return [[example for lane in step for example in lane] for step in micro_batches(order)]


@given(COUNTS, st.integers(0, 5), st.integers(0, 5), st.sampled_from([2, 4, 7, 32]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_each_example_is_trained_on_exactly_once_an_epoch(
    counts: list[int], seed: int, epoch: int, global_batch_size: int, num_lanes: int
) -> None:
    batches = global_batches(make_order(counts, seed, epoch, global_batch_size, num_lanes))
    expected = [(bucket, index) for bucket, count in enumerate(counts) for index in range(count)]
    assert sorted(example for batch in batches for example in batch) == expected
    assert all(batches), "no step has nothing to do"


@given(st.integers(1, 300), st.sampled_from([(8, 4), (8, 8), (12, 3), (32, 2)]))
@settings(max_examples=60, deadline=None)
def test_no_micro_batch_is_larger_than_asked_for(count: int, sizes: tuple[int, int]) -> None:
    global_batch_size, num_lanes = sizes
    steps = micro_batches(make_order([count], 0, 0, global_batch_size, num_lanes))
    found = [len(lane) for step in steps for lane in step]
    assert max(found) <= global_batch_size // num_lanes
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_other_epochs_and_seeds_have_another_order(change: dict[str, int]) -> None:
    assert global_batches(make_order([20] * 6)) != global_batches(make_order([20] * 6, **change))


def test_examples_of_a_bucket_have_another_order_in_another_epoch() -> None:
    assert global_batches(make_order([30])) != global_batches(make_order([30], epoch=1))


def test_an_order_made_again_is_the_same() -> None:
    assert global_batches(make_order([7, 0, 9], 3, 2)) == global_batches(make_order([7, 0, 9], 3, 2))


def test_steps_are_counted_so_that_none_is_larger_than_the_global_batch() -> None:
    assert [make_order([count]).num_steps for count in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_lanes_read_buckets_of_their_own() -> None:
    order = make_order([50] * 16)
    buckets = [
        {piece.bucket for step in range(order.num_steps) for piece in order.pool(lane, order.pool_of(step))}
        for lane in range(4)
    ]
    assert [len(found) for found in buckets] == [4] * 4
    assert set.union(*buckets) == set(range(16))


def work_of(lengths: np.ndarray) -> float:
    """Padded positions and pairs of them, as attention over 64 wide states has it."""
    longest = lengths.max(initial=0)
    return len(lengths) * longest * (1 + longest / (6 * 64))


def test_steps_have_little_padding_and_all_micro_batches_of_a_step_like_work() -> None:
    order = make_order([900, 700, 800, 850], global_batch_size=64)
    lengths = {bucket: lengths_of(bucket, int(count)) for bucket, count in enumerate(order.counts)}
    steps = [
        [np.array([lengths[bucket][index] for bucket, index in lane]) for lane in step] for step in micro_batches(order)
    ]
    lanes = [lane for step in steps for lane in step]
    assert sum(int(lane.sum()) for lane in lanes) > 0.88 * sum(len(lane) * int(lane.max()) for lane in lanes)
    work = np.array([[work_of(lane) for lane in step] for step in steps])
    by_work = work.max(axis=1).sum() / work.mean(axis=1).sum()
    drawn = np.random.default_rng(0).permutation(work.ravel()).reshape(work.shape)
    by_chance = drawn.max(axis=1).sum() / drawn.mean(axis=1).sum()
    assert by_work < 1.15, "the slowest worker of a step is seldom waited for"
    assert by_work < 0.75 * by_chance
    longest = np.array([max(lane.max() for lane in step) for step in steps])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3, "steps of long examples come at any time"


def test_examples_meet_others_in_another_epoch() -> None:
    first, other = ({frozenset(batch) for batch in global_batches(make_order([400], epoch=epoch))} for epoch in (0, 1))
    assert len(first & other) < 3
