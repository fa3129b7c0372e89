"""Losses of states against items: over the whole catalogue, over sampled negatives, or one item at a time.

Pure functions of tensors; which items are drawn is in `model.negatives`, and who asks is in `model.objectives`.
Invariants: the scores of a whole catalogue are never in memory at once, and an item is never its own negative.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from data_io.schema import FIRST_INDEX, PADDING_INDEX

_CPU_TILE_BYTES = 4 * 2**20
"""Scores in memory at once, of so many states. 4 MiB stays in the cache: forward and backward over 4,096 states of
width 64 and 20,000 items took 0.87 s of one core, against 1.10 s in tiles of 64 MiB and 1.32 s with all scores in
memory."""
_CPU_TILE_STATES = 1024
"""So many states stay in the cache of a core too: over 6,400 states and 3,400 items 0.23 s, against 0.32 s in tiles of
all states and few items."""
_CUDA_TILE_BYTES = 64 * 2**20
"""As above, but a launch of a kernel costs more than a miss of the cache."""
_CPU_WHOLE_BYTES = 2 * 2**20
"""Scores of whole catalogues in memory at once, where gradients are made with the losses: for 3,400 items in three
quarters of the time. From 8,000 items on it is no quicker, as the scores of enough states leave the cache."""
_LEAST_STATES = 128
"""So many states at once or more, or it is not done."""
_NEVER = -1e30
"""Score of what does not count: finite, because minus infinity minus itself is not a number."""


def catalogue_loss(
    states: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0, *, weighed_alike: bool = False
) -> Tensor:
    """[P] cross-entropy of each target among all real items, as F.cross_entropy would give it over rows 2 and up.

    Args:
        states: [P, D]. targets: [P].
        weight: [V, D] the item table; padding and unknown get no gradient from here.
        label_smoothing: share of the target probability that is spread evenly over all real items.
        weighed_alike: whether the losses are going to be summed, see `log_partition`.

    Returns:
        Losses in float32 at least; infinite where the target is no real item.
    """
    scores = dot(states, F.embedding(targets, weight, padding_idx=PADDING_INDEX))
    losses = log_partition(states, weight, first=FIRST_INDEX, weighed_alike=weighed_alike) - scores
    if label_smoothing:
        losses = losses + label_smoothing * (scores - even_score(states, weight[FIRST_INDEX:]))
    return losses.masked_fill(targets < FIRST_INDEX, float("inf"))


def sampled_softmax_loss(
    states: Tensor,
    positives: Tensor,
    negatives: Tensor,
    correction: "Correction",
    num_even: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """[P] cross-entropy of each target among itself and the negatives, each corrected for how often it is drawn.

    The sum over negatives, each divided by its expected number in the pool, is an unbiased estimate of the sum over all
    items but the target; the target stands beside it uncorrected, because it is there with certainty. The gradient is
    that of the paper's weighted form: (1 - p) times the target's against the mean over negatives, p being the target's
    probability.

    Args:
        states: [P, D].
        positives: [P, D] vectors of the targets.
        negatives: [N, D] vectors of the pool, shared by all positions.
        correction: which items these are.
        num_even: how many negatives at the head of the pool were drawn evenly; for label_smoothing.
        label_smoothing: share of the target probability spread evenly over the catalogue, for which those stand.

    Source:
        Khrylchenko et al. 2025, "Correcting the LogQ Correction", arXiv 2507.09331.
    """
    scores = dot(states, positives)
    against = log_partition(states, negatives, correction=correction)
    losses = torch.logaddexp(scores, against) - scores
    if label_smoothing:
        losses = losses + label_smoothing * (scores - even_score(states, negatives[:num_even]))
    return losses


def generalised_bce_loss(
    states: Tensor, positives: Tensor, negatives: Tensor, is_target: Tensor, exponent: float
) -> Tensor:
    """[P] mean binary cross-entropy of a target, its probability raised to a power, and of K negatives.

    Args:
        states: [P, D].
        positives: [P, D] vectors of the targets.
        negatives: [K, D] vectors of the negatives, shared by all positions.
        is_target: [P, K] True where a negative is the position's own target; it costs nothing there.
        exponent: beta of the paper, see `gbce_exponent`; 1 gives plain binary cross-entropy.

    Source:
        Petrov and Macdonald 2023, "gSASRec", arXiv 2308.07192, the definition of gBCE. There each position has
        negatives of its own; here a micro-batch shares them, so that they are one matrix product.
    """
    likely = exponent * F.softplus(-dot(states, positives))
    scores = F.linear(states, negatives.to(states.dtype))
    against = F.softplus(scores.to(_accumulated(states)))
    return (likely + against.masked_fill(is_target, 0.0).sum(dim=1)) / (len(negatives) + 1)


def gbce_exponent(num_negatives: int, num_items: int, calibration: float) -> float:
    """Power beta that takes back what sampling does to probabilities: alpha (t (1 - 1/alpha) + 1/alpha).

    Alpha is the share of the other items that are drawn as negatives, at most 1; t is the calibration.

    Source:
        Petrov and Macdonald 2023, "gSASRec", arXiv 2308.07192, the equation of beta by alpha and t.
    """
    alpha = min(1.0, num_negatives / max(1, num_items - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


def dot(states: Tensor, vectors: Tensor) -> Tensor:
    """[P] scores, in float32 at least, of states [P, D] each with its own vector [P, D]."""
    accumulated = _accumulated(states)
    return (states.to(accumulated) * vectors.to(accumulated)).sum(dim=1)


def even_score(states: Tensor, vectors: Tensor) -> Tensor:
    """[P] mean score of states [P, D] with all vectors [N, D]."""
    return states.to(_accumulated(states)) @ vectors.to(_accumulated(states)).mean(dim=0)


class Correction(NamedTuple):
    """What a pool of negatives needs to stand for the catalogue."""

    items: Tensor
    """[N] items of the pool."""
    targets: Tensor
    """[P] items that do not count at their own position."""
    log_expected: Tensor
    """[N] log of the expected number of each in the pool."""


def log_partition(
    states: Tensor,
    vectors: Tensor,
    *,
    first: int = 0,
    correction: Correction | None = None,
    weighed_alike: bool = False,
) -> Tensor:
    """[P] log of the sum over vectors of exp(score), differentiable, with only a tile of scores in memory.

    Tiles run over vectors, and are computed again in the backward pass: the table is read once and its gradient is
    written once, however large it is. Sums are kept in float32 at least. Where the results will be weighed alike and a
    tile has room for all scores of enough states, gradients are made together with the results, by three products
    instead of four.

    Args:
        states: [P, D]. vectors: [N, D].
        first: vectors before this one do not count.
        correction: divides each vector's part by its expected number, and leaves out each position's own target.
        weighed_alike: whether the results are going to be summed; gradients are right if they are not, only later.

    Source:
        The running sum is that of Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", alg. 3.
    """
    items, targets, log_expected = correction or (None, None, None)
    return _LogPartition.apply(states, vectors, items, targets, log_expected, first, weighed_alike)


class _Operands(NamedTuple):
    """All that a tile of scores is made of."""

    states: Tensor
    vectors: Tensor
    items: Tensor | None
    targets: Tensor | None
    log_expected: Tensor | None

    def rows(self, rows: slice) -> Tensor:
        """[C, D] vectors of a tile, in the type of the states."""
        return self.vectors[rows].to(self.states.dtype)

    def scores(self, rows: slice, places: slice) -> Tensor:
        """[S, C] corrected scores of a tile."""
        scores = _product(self.states[places], self.rows(rows).T)
        if self.log_expected is not None:
            scores -= self.log_expected[rows]
        if self.items is not None and self.targets is not None:
            scores.masked_fill_(self.items[rows] == self.targets[places, None], _NEVER)
        return scores


class _LogPartition(torch.autograd.Function):
    """Saves the table itself and no copy of it: under ZeRO-3 its storage comes and goes between the passes."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        items: Tensor | None,
        targets: Tensor | None,
        log_expected: Tensor | None,
        first: int,
        weighed_alike: bool,
    ) -> Tensor:
        ctx.first, ctx.operand_type, ctx.of_sum = first, _operand_type(states), None
        operands = _Operands(states.to(ctx.operand_type), vectors, items, targets, log_expected)
        num_at_once = _states_at_once(states, len(vectors) - first)
        if weighed_alike and any(ctx.needs_input_grad) and num_at_once >= _LEAST_STATES:
            with _no_autocast(states):
                total, ctx.of_sum = _sum_with_gradients(operands, first, num_at_once)
            ctx.save_for_backward(states, vectors, items, targets, log_expected, total)
            return total
        total = states.new_full((len(states),), _NEVER, dtype=_accumulated(states))
        with _no_autocast(states):
            for rows, places in _tiles(states, first, len(vectors)):
                scores = operands.scores(rows, places)
                top = scores.amax(dim=1)
                part = scores.sub_(top[:, None]).exp_().sum(dim=1).log_()
                total[places] = torch.logaddexp(total[places], part + top)
        ctx.save_for_backward(states, vectors, items, targets, log_expected, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]: torch's own decorator has no type
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        states, vectors, items, targets, log_expected, total = ctx.saved_tensors
        if ctx.of_sum is not None and (gradients[0] == gradients[0][:1]).all():
            of_states, of_vectors = (part * gradients[0][:1] for part in ctx.of_sum)
            return _like(of_states, states), _like(of_vectors, vectors), None, None, None, None, None
        operands = _Operands(states.to(ctx.operand_type), vectors, items, targets, log_expected)
        of_states = torch.zeros_like(states, dtype=total.dtype) if ctx.needs_input_grad[0] else None
        of_vectors = torch.zeros_like(vectors, dtype=total.dtype) if ctx.needs_input_grad[1] else None
        with _no_autocast(states):
            for rows, places in _tiles(states, ctx.first, len(vectors)):
                weights = operands.scores(rows, places).sub_(total[places, None]).exp_()
                weights = weights.mul_(gradients[0][places, None]).to(ctx.operand_type)
                if of_states is not None:
                    of_states[places] += _product(weights, operands.rows(rows))
                if of_vectors is not None:
                    of_vectors[rows] += _product(weights.T, operands.states[places])
        return _like(of_states, states), _like(of_vectors, vectors), None, None, None, None, None


def _sum_with_gradients(operands: _Operands, first: int, num_at_once: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """[P] log-partitions, and the gradients of their sum with respect to states [P, D] and vectors [N, D]."""
    states, vectors, rows = operands.states, operands.vectors, slice(first, len(operands.vectors))
    kept = operands.rows(rows)
    total = torch.empty(len(states), dtype=_accumulated(states), device=states.device)
    of_states = torch.empty_like(states, dtype=total.dtype)
    of_vectors = torch.zeros_like(vectors, dtype=total.dtype)
    for start in range(0, len(states), num_at_once):
        places = slice(start, start + num_at_once)
        scores = operands.scores(rows, places)
        total[places] = scores.logsumexp(dim=1)
        weights = scores.sub_(total[places, None]).exp_().to(states.dtype)
        of_states[places] = _product(weights, kept)
        of_vectors[rows] += _product(weights.T, states[places])
    return total, (of_states, of_vectors)


def _states_at_once(states: Tensor, num_vectors: int) -> int:
    """States whose scores with all vectors fill a tile."""
    tile_bytes = _CUDA_TILE_BYTES if states.is_cuda else _CPU_WHOLE_BYTES
    return tile_bytes // (_accumulated(states).itemsize * max(1, num_vectors))


def _tiles(states: Tensor, first: int, end: int) -> Iterator[tuple[slice, slice]]:
    """Slices of vectors and of states whose scores fill a tile; all states of a vector follow each other."""
    height = len(states) if states.is_cuda else min(len(states), _CPU_TILE_STATES)
    tile_bytes = _CUDA_TILE_BYTES if states.is_cuda else _CPU_TILE_BYTES
    width = max(1, tile_bytes // (_accumulated(states).itemsize * max(1, height)))
    for start in range(first, end, width):
        for place in range(0, len(states), max(1, height)):
            yield slice(start, min(start + width, end)), slice(place, min(place + height, len(states)))


def _accumulated(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _operand_type(states: Tensor) -> torch.dtype:
    """Type of factors of matrix products: on a GPU what autocast says, on a CPU the states' own."""
    autocast = states.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if autocast else states.dtype


def _no_autocast(states: Tensor) -> torch.autocast:
    return torch.autocast(states.device.type, enabled=False)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product, summed and kept in float32 at least."""
    accumulated = _accumulated(left)
    if left.is_cuda and left.dtype != accumulated:
        return torch.mm(left, right, out_dtype=accumulated)
    return left.to(accumulated) @ right.to(accumulated)


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
