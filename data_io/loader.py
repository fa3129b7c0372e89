"""The loader: batches of an epoch, in its order, for one rank.

Every rank walks the same order and takes its own micro-batches of each step; the next ones are made on a thread while
the network works. Invariant: what a rank gets depends on the order, the rank and the step alone.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from data_io.batch import Batch, merge_batches
from data_io.examples import Examples
from data_io.order import EpochOrder
from data_io.sequences import Sequences
from data_io.store import SequenceStore

_CACHED_BUCKETS = 4

MakeExamples = Callable[[Sequences], Examples]
MakeBatch = Callable[[Sequences, Examples], Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Which part of every step is this rank's."""

    rank: int
    world_size: int
    micro_batch_size: int
    accumulation: int
    """Micro-batches of this rank in a step."""


class BatchLoader:
    """Makes the micro-batches of a rank from the store."""

    def __init__(self, store: SequenceStore, make_examples: MakeExamples, make_batch: MakeBatch, empty: Batch) -> None:
        self._make_batch = make_batch
        self._empty = empty

        @lru_cache(maxsize=_CACHED_BUCKETS)
        def bucket(index: int) -> tuple[Sequences, Examples]:
            sequences = store.read_sequences(index)
            return sequences, make_examples(sequences)

        self.bucket = bucket

    def steps(self, order: EpochOrder, place: RankPlace, first_step: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step from `first_step` to the end of the epoch."""
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self._step, order, place, first_step)
            for step in range(first_step, order.num_steps):
                current = upcoming.result()
                if step + 1 < order.num_steps:
                    upcoming = pool.submit(self._step, order, place, step + 1)
                yield current

    def _step(self, order: EpochOrder, place: RankPlace, step: int) -> list[Batch]:
        first = place.rank * place.accumulation
        return [self._micro_batch(order, step, first + i, place) for i in range(place.accumulation)]

    def _micro_batch(self, order: EpochOrder, step: int, index: int, place: RankPlace) -> Batch:
        parts = []
        for piece in order.micro_batch(step, index, place.micro_batch_size):
            sequences, examples = self.bucket(piece.bucket)
            arranged = order.arrange(piece.bucket, examples.end - examples.start)
            parts.append(self._make_batch(sequences, examples.take(arranged[piece.places])))
        return merge_batches(parts) if parts else self._empty
