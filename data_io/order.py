"""Training order: which examples make up each step of an epoch.

Invariant: the order is a function of seed, epoch and the example counts only, never of the number of workers or of
timing; every rank takes the same number of steps, and each example of the epoch is trained on exactly once.
"""

from dataclasses import dataclass

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

    def bucket_order(self) -> np.ndarray:
        """The buckets in the order they are read."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    def step_slices(self, step: int, rank: int, world_size: int) -> list[BucketSlice]:
        """The examples one rank trains on in one step, at most two parts a bucket boundary.

        The global batch is cut into world_size contiguous parts of equal size, so the batch is the same for any number
        of workers; in the last step of an epoch parts may be short or empty.
        """
        part = self.global_batch_size // world_size
        first = step * self.global_batch_size + rank * part
        return self._slices(first, min(first + part, int(self.counts.sum())))

    def _slices(self, first: int, last: int) -> list[BucketSlice]:
        order = self.bucket_order()
        ends = np.cumsum(self.counts[order])
        found: list[BucketSlice] = []
        while first < last:
            place = int(np.searchsorted(ends, first, side="right"))
            begin = int(ends[place] - self.counts[order[place]])
            stop = min(last, int(ends[place]))
            permutation = self._permutation(int(order[place]))
            found.append(BucketSlice(int(order[place]), permutation[first - begin : stop - begin]))
            first = stop
        return found

    def _permutation(self, bucket: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch, bucket]).permutation(int(self.counts[bucket]))
