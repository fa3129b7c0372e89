"""The loader: batches of an epoch, in its order, for one rank.

A rank takes the same micro-batches of every step, so it reads the buckets of their lanes only; the next step is made on
a thread while the network works. Invariant: what a rank gets depends on the order, the rank and the step alone.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_io.batch import Batch, merge_batches
from data_io.examples import Examples
from data_io.order import EpochOrder
from data_io.sequences import Sequences
from data_io.store import SequenceStore

MakeExamples = Callable[[Sequences], Examples]
MakeBatch = Callable[[Sequences, Examples], Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Which part of every step is this rank's."""

    rank: int
    world_size: int
    num_micro_batches: int
    """Of a step, over all ranks."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in a step; where they do not go round, the last of some ranks are padding."""
        return -(-self.num_micro_batches // self.world_size)

    @property
    def lanes(self) -> list[int]:
        """The micro-batches of this rank, by their number in a step."""
        return list(range(self.rank, self.num_micro_batches, self.world_size))


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """What a rank has in one step."""

    batches: list[Batch]
    wait_s: float
    """Seconds that the network waited for them."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """The examples of one pool of a lane."""

    number: int
    bucket: np.ndarray
    """[N] bucket of each example."""
    index: np.ndarray
    """[N] which of that bucket's examples it is."""
    dealt: dict[int, np.ndarray]
    """By step, places of its examples."""


class BatchLoader:
    """Makes the micro-batches of a rank from the store."""

    def __init__(self, store: SequenceStore, make_examples: MakeExamples, make_batch: MakeBatch, empty: Batch) -> None:
        self._store = store
        self._make_examples = make_examples
        self._make_batch = make_batch
        self._empty = empty

    def steps(self, order: EpochOrder, place: RankPlace, first_step: int) -> Iterator[LoadedStep]:
        """The micro-batches of each step from `first_step` to the end of the epoch."""
        if first_step >= order.num_steps:
            return
        reading = _Reading(self._store, self._make_examples, order)
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self._step, reading, place, first_step)
            for step in range(first_step, order.num_steps):
                began = time.perf_counter()
                batches = upcoming.result()
                waited = time.perf_counter() - began
                if step + 1 < order.num_steps:
                    upcoming = pool.submit(self._step, reading, place, step + 1)
                yield LoadedStep(batches, waited)

    def _step(self, reading: "_Reading", place: RankPlace, step: int) -> list[Batch]:
        reading.go_to(step, place.lanes)
        batches = [self._micro_batch(reading, lane, step) for lane in place.lanes]
        return batches + [self._empty] * (place.accumulation - len(batches))

    def _micro_batch(self, reading: "_Reading", lane: int, step: int) -> Batch:
        pool = reading.pools[lane]
        places = pool.dealt[step]
        parts = []
        for bucket in np.unique(pool.bucket[places]):
            sequences, examples = reading.bucket(int(bucket))
            inside = places[pool.bucket[places] == bucket]
            parts.append(self._make_batch(sequences, examples.take(pool.index[inside])))
        return merge_batches(parts) if parts else self._empty


class _Reading:
    """The pools that an epoch has reached, and the buckets they are made of, each read once."""

    def __init__(self, store: SequenceStore, make_examples: MakeExamples, order: EpochOrder) -> None:
        self.pools: dict[int, _Pool] = {}
        """By lane."""
        self._store = store
        self._make_examples = make_examples
        self._order = order
        self._buckets: dict[int, tuple[Sequences, Examples]] = {}

    def bucket(self, bucket: int) -> tuple[Sequences, Examples]:
        """A bucket and its examples."""
        if bucket not in self._buckets:
            sequences = self._store.read_sequences(bucket)
            self._buckets[bucket] = sequences, self._make_examples(sequences)
        return self._buckets[bucket]

    def go_to(self, step: int, lanes: list[int]) -> None:
        """Have the pools of a step at hand, and let go of buckets that are done."""
        number = self._order.pool_of(step)
        if all(lane in self.pools and self.pools[lane].number == number for lane in lanes):
            return
        touched = {piece.bucket for lane in lanes for piece in self._order.pool(lane, number)}
        self._buckets = {bucket: kept for bucket, kept in self._buckets.items() if bucket in touched}
        self.pools = {lane: self._pool(lane, number) for lane in lanes}

    def _pool(self, lane: int, number: int) -> _Pool:
        pieces = self._order.pool(lane, number)
        bucket, index, lengths = [], [], []
        for piece in pieces:
            _, examples = self.bucket(piece.bucket)
            chosen = self._order.shuffled(piece.bucket)[piece.places]
            index.append(chosen)
            bucket.append(np.full(len(chosen), piece.bucket))
            lengths.append((examples.end - examples.start)[chosen])
        joined = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (bucket, index, lengths)]
        return _Pool(number, joined[0], joined[1], self._order.deal(lane, number, joined[2]))
