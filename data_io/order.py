"""Training order: which examples make up each micro-batch of an epoch.

The shuffled examples of an epoch are cut into as many lanes as a step has micro-batches, each lane into pools of steps.
A step takes from every lane's pool the examples of the same rank by length, so that little of a micro-batch is padding
and all micro-batches of a step are like work. Invariant: the order is a function of seed, epoch and the examples only,
never of the number of workers or of timing; each example of the epoch is trained on exactly once.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_POOLED_STEPS = 32
"""Examples of so many steps are put in the order of length and dealt out to those steps."""


@dataclass(frozen=True, slots=True)
class BucketSlice:
    """Neighbouring places in the shuffled examples of one bucket, see `EpochOrder.shuffled`."""

    bucket: int
    places: slice


@dataclass(frozen=True)
class EpochOrder:
    """One epoch: a seeded permutation of buckets and of the examples in each, and how steps take them."""

    counts: np.ndarray
    """[num_buckets] examples in each bucket."""
    seed: int
    epoch: int
    global_batch_size: int
    """Most examples of one optimizer step, all workers together; all steps have as many, or one fewer a lane."""
    num_lanes: int
    """Micro-batches of a step. A worker that has the same ones in every step reads the buckets of their lanes only."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the epoch."""
        return -(-self._num_examples // self.global_batch_size)

    def pool_of(self, step: int) -> int:
        """Number of the pool that a step takes from, in every lane."""
        return step // _POOLED_STEPS

    def pool(self, lane: int, pool: int) -> list[BucketSlice]:
        """The examples of a pool of a lane, a part for each bucket it touches."""
        steps = self._steps(pool)
        return self._slices(self._place(lane, steps.start), self._place(lane, steps.stop))

    def deal(self, lane: int, pool: int, lengths: np.ndarray) -> dict[int, np.ndarray]:
        """The micro-batch of a lane in each step of a pool, as places in that pool.

        Args:
            lane, pool: which one.
            lengths: [N] events of each example of the pool, in the order of `pool`.
        """
        steps = np.array(self._steps(pool))
        drawn = np.random.default_rng([self.seed, self.epoch, pool]).permutation(steps)
        by_length, first = np.argsort(lengths, kind="stable"), 0
        dealt: dict[int, np.ndarray] = {}
        for step in drawn.tolist():
            size = self._place(lane, step + 1) - self._place(lane, step)
            dealt[step] = by_length[first : first + size]
            first += size
        return dealt

    def shuffled(self, bucket: int) -> np.ndarray:
        """[N] the examples of a bucket in the order of this epoch."""
        generator = np.random.default_rng([self.seed, self.epoch, bucket, 0])
        return generator.permutation(int(self.counts[bucket]))

    def _steps(self, pool: int) -> range:
        return range(pool * _POOLED_STEPS, min((pool + 1) * _POOLED_STEPS, self.num_steps))

    def _place(self, lane: int, step: int) -> int:
        """Where in the whole order a lane is before a step: as if examples were dealt to steps, and then to lanes."""
        rest = self._num_examples % self.num_lanes
        first = lane * (self._num_examples // self.num_lanes) + min(lane, rest)
        dealt = self._num_examples * step // self.num_steps
        return first + (dealt - lane + self.num_lanes - 1) // self.num_lanes

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

    @cached_property
    def _num_examples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def _order(self) -> np.ndarray:
        """The buckets in the order they are read."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.counts))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts[self._order])
