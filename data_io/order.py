"""Training order: which examples make up each step of an epoch.

A step takes examples of like length, so that little of a batch is padding and all ranks have like work. Invariant: the
order is a function of seed, epoch and the examples only, never of the number of workers or of timing; every rank takes
the same number of steps, and each example of the epoch is trained on exactly once.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_POOLED_STEPS = 32
"""Examples of so many steps, drawn at random, are put in the order of length and dealt out to those steps."""
_BUCKETS_AT_HAND = 2
"""A micro-batch lies in one bucket, now and then in two."""


@dataclass(frozen=True, slots=True)
class BucketSlice:
    """Neighbouring places in the order of one bucket's examples, see `EpochOrder.arrange`."""

    bucket: int
    places: slice


@dataclass(frozen=True)
class EpochOrder:
    """One epoch: a seeded permutation of buckets, and of the steps in each."""

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
            found.append(BucketSlice(bucket, slice(first - begin, stop - begin)))
            first = stop
        return found

    def arrange(self, bucket: int, lengths: np.ndarray) -> np.ndarray:
        """[N] the examples of a bucket in the order they are trained on.

        They are shuffled, those of each pool sorted by length and cut into global batches, and these shuffled again.

        Args:
            bucket: which one.
            lengths: [N] events of each example.
        """
        if bucket not in self._arranged:
            while len(self._arranged) >= _BUCKETS_AT_HAND:
                del self._arranged[next(iter(self._arranged))]
            self._arranged[bucket] = self._arrange(bucket, lengths)
        return self._arranged[bucket]

    def _arrange(self, bucket: int, lengths: np.ndarray) -> np.ndarray:
        generator, size = np.random.default_rng([self.seed, self.epoch, bucket]), self.global_batch_size
        shuffled = generator.permutation(len(lengths))
        place = int(np.flatnonzero(self._order == bucket)[0])
        head = min(-int(self._ends[place] - self.counts[bucket]) % size, len(lengths))  # completes a step begun before
        rest = shuffled[head:]
        rest = rest[np.lexsort((lengths[rest], np.arange(len(rest)) // (_POOLED_STEPS * size)))]
        num_whole = len(rest) // size
        whole = rest[: num_whole * size].reshape(num_whole, size)[generator.permutation(num_whole)]
        return np.concatenate([shuffled[:head], whole.ravel(), rest[num_whole * size :]])

    @cached_property
    def _order(self) -> np.ndarray:
        """The buckets in the order they are read."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts[self._order])

    @cached_property
    def _arranged(self) -> dict[int, np.ndarray]:
        return {}
