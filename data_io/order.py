"""Training order: which examples make up each step of an epoch.

Invariant: the order is a function of seed, epoch and the example counts only, never of the number of workers or of
timing; every rank takes the same number of steps, and each example of the epoch is trained on exactly once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class BucketSlice:
    """Examples of one bucket."""

    bucket: int
    indices: np.ndarray


@dataclass(frozen=True)
class EpochOrder:
    """One epoch: a seeded permutation of buckets, and of the examples in each."""

    counts: np.ndarray
    """[num_buckets] examples in each bucket."""
    seed: int
    epoch: int
    global_batch_size: int
    """Examples of one optimizer step, all workers together."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the epoch; the last may hold fewer examples."""
        return -(-int(self.counts.sum()) // self.global_batch_size)

    def micro_batch(self, step: int, place: int, size: int) -> list[BucketSlice]:
        """The examples of one micro-batch, a part for each bucket it touches.

        The global batch of a step is the `size` examples from step * global_batch_size + place * size on, for
        place = 0, 1, ..., so it is the same for any number of workers; at the end of an epoch the last micro-batches
        may be short or empty.
        """
        first = step * self.global_batch_size + place * size
        return self._slices(first, min(first + size, int(self.counts.sum())))

    def _slices(self, first: int, last: int) -> list[BucketSlice]:
        found: list[BucketSlice] = []
        while first < last:
            place = int(np.searchsorted(self._ends, first, side="right"))
            bucket = int(self._order[place])
            begin = int(self._ends[place] - self.counts[bucket])
            stop = min(last, int(self._ends[place]))
            found.append(BucketSlice(bucket, self._permutation(bucket)[first - begin : stop - begin]))
            first = stop
        return found

    @cached_property
    def _order(self) -> np.ndarray:
        """The buckets in the order they are read."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts[self._order])

    @cached_property
    def _permutation(self) -> Callable[[int], np.ndarray]:
        @lru_cache(maxsize=2)  # a micro-batch lies in one bucket, now and then in two
        def permutation(bucket: int) -> np.ndarray:
            return np.random.default_rng([self.seed, self.epoch, bucket]).permutation(int(self.counts[bucket]))

        return permutation
