"""The loader: what a rank gets depends on order, rank and step alone, so a resumed run goes on as it was."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.batch import Batch, collate, padding_batch
from data_io.examples import Examples, history_examples
from data_io.loader import BatchLoader, RankPlace
from data_io.order import EpochOrder
from data_io.schema import DataContractError
from data_io.sequences import Sequences

LENGTHS = [[1, 3, 2, 1, 2], [], [2, 1], [3, 1, 1, 2]]
"""Events of each user of each bucket; a user is an example."""
COUNTS = np.array([len(bucket) for bucket in LENGTHS])
GLOBAL_BATCH_SIZE = 4


class FakeStore:
    """Buckets in memory, in which the item index of an event names its user; remembers what was read."""

    def __init__(self, make_sequences: Callable, broken: int | None = None) -> None:
        self.read: list[int] = []
        self._broken = broken
        self._buckets = [
            make_sequences(
                *([(time, 100 * bucket + user + 2) for time in range(size)] for user, size in enumerate(sizes))
            )
            for bucket, sizes in enumerate(LENGTHS)
        ]

    def read_sequences(self, bucket: int) -> Sequences:
        self.read.append(bucket)
        if bucket == self._broken:
            raise DataContractError(f"bucket {bucket} differs from what was committed")
        return self._buckets[bucket]


def make_examples(sequences: Sequences) -> Examples:
    return history_examples(sequences, 10, 8)


def make_loader(store: Any) -> BatchLoader:
    return BatchLoader(store, make_examples, collate, padding_batch(1))


def make_order(epoch: int = 0, num_lanes: int = GLOBAL_BATCH_SIZE) -> EpochOrder:
    return EpochOrder(COUNTS, 7, epoch, GLOBAL_BATCH_SIZE, num_lanes)


def make_place(rank: int = 0, world_size: int = 1, num_micro_batches: int = GLOBAL_BATCH_SIZE) -> RankPlace:
    return RankPlace(rank=rank, world_size=world_size, num_micro_batches=num_micro_batches)


def batches_of(loader: BatchLoader, order: EpochOrder, place: RankPlace, first_step: int = 0) -> list[list[Batch]]:
    return [loaded.batches for loaded in loader.steps(order, place, first_step)]


def content(steps: list[list[Batch]]) -> list[list[dict[str, list]]]:
    return [[{name: array.tolist() for name, array in batch.items()} for batch in step] for step in steps]


def users_of(batches: list[Batch]) -> list[int]:
    first = np.concatenate([batch["item_index"][:, 0] for batch in batches])
    return first[first > 0].tolist()


@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from([(0, 1), (0, 2), (1, 2), (3, 4), (2, 3)]))
@settings(max_examples=20, deadline=None)
def test_a_loader_resumed_from_a_step_gives_the_batches_of_the_uninterrupted_one(
    make_sequences: Callable, first_step: int, epoch: int, place: tuple[int, int]
) -> None:
    order, rank_place = make_order(epoch), make_place(*place)
    whole = content(batches_of(make_loader(FakeStore(make_sequences)), order, rank_place))
    resumed = content(batches_of(make_loader(FakeStore(make_sequences)), order, rank_place, first_step))
    assert len(whole) == order.num_steps == 3
    assert resumed == whole[first_step:]


def test_the_micro_batches_of_each_step_are_the_same_on_any_number_of_workers(make_sequences: Callable) -> None:
    found = []
    for world_size in (1, 2, 3, 4):
        places = [make_place(rank, world_size) for rank in range(world_size)]
        ranks = [batches_of(make_loader(FakeStore(make_sequences)), make_order(), place) for place in places]
        steps = []
        for step in range(make_order().num_steps):
            by_lane = {}
            for place, batches in zip(places, ranks, strict=True):
                by_lane |= dict(zip(place.lanes, batches[step], strict=False))
            steps.append([by_lane[lane] for lane in sorted(by_lane)])
        found.append(content(steps))
    assert all(other == found[0] for other in found)


def test_each_user_is_trained_on_once_an_epoch_with_its_own_events(make_sequences: Callable) -> None:
    steps = batches_of(make_loader(FakeStore(make_sequences)), make_order(num_lanes=1), make_place(num_micro_batches=1))
    expected = [100 * bucket + user + 2 for bucket, sizes in enumerate(LENGTHS) for user in range(len(sizes))]
    batches = list(chain(*steps))
    assert sorted(users_of(batches)) == expected
    for batch in batches:
        for row, real in zip(batch["item_index"], batch["padding_mask"], strict=True):
            bucket, user = divmod(int(row[0]) - 2, 100)
            assert row[real].tolist() == [row[0]] * LENGTHS[bucket][user]


def test_every_rank_takes_the_same_number_of_micro_batches_even_if_some_are_padding(make_sequences: Callable) -> None:
    ranks = [batches_of(make_loader(FakeStore(make_sequences)), make_order(), make_place(rank, 3)) for rank in range(3)]
    assert [[len(step) for step in steps] for steps in ranks] == [[2, 2, 2]] * 3
    assert [[len(users_of(step)) for step in steps] for steps in ranks[1:]] == [[1, 1, 1]] * 2


def test_a_bucket_is_read_once_while_it_stays_in_use(make_sequences: Callable) -> None:
    store = FakeStore(make_sequences)
    batches_of(make_loader(store), make_order(), make_place())
    assert sorted(store.read) == [0, 2, 3]


def test_a_rank_reads_only_the_buckets_of_its_lanes(make_sequences: Callable) -> None:
    reads = []
    for rank in range(2):
        store = FakeStore(make_sequences)
        batches_of(make_loader(store), make_order(num_lanes=2), make_place(rank, 2, 2))
        reads.append(set(store.read))
    assert sum(len(found) for found in reads) <= 4, "three buckets have users, and one of them is in both lanes"


def test_nothing_is_left_of_an_epoch_resumed_at_its_end(make_sequences: Callable) -> None:
    store = FakeStore(make_sequences)
    assert batches_of(make_loader(store), make_order(), make_place(), 3) == []
    assert store.read == []


def test_a_broken_bucket_stops_the_epoch_with_its_own_message(make_sequences: Callable) -> None:
    loader = make_loader(FakeStore(make_sequences, broken=2))
    with pytest.raises(DataContractError, match="bucket 2 differs from what was committed"):
        batches_of(loader, make_order(), make_place())
