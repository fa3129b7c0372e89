"""Collectives that gradients pass through: rows that lie on other ranks, and sums over all of them.

All ranks call each function equally often, with nothing to ask for if need be, and run its backward pass in the same
order. Gradients come out summed over ranks. Invariant: without torch.distributed, or alone, nothing is sent.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

NoteGradients = Callable[[Tensor, Tensor], None]
"""Takes local rows [N] and their gradients [N, D] on the rank that owns them."""


def group_size() -> int:
    """Number of ranks W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def group_rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def fetch_rows(rows: Tensor, places: Tensor, rows_per_rank: int, note: NoteGradients) -> Tensor:
    """[N, D] rows of a table that is spread over ranks, each holding `rows_per_rank` of them one after the other.

    Args:
        rows: [R, D] this rank's.
        places: [N] which rows of the whole table are wanted, sorted and each once.
        rows_per_rank: R, the last rank may have fewer.
        note: is told the gradients of this rank's rows in the backward pass; `rows` itself gets none.
    """
    return _FetchRows.apply(rows, places, rows_per_rank, note)


def gather_ragged(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [ΣN, ...] of all ranks, one after the other, and how many [W] each has; gradients flow back."""
    sizes = _gather_sizes(len(values), values.device)
    return _GatherRagged.apply(values, sizes), sizes


def logsumexp_over_ranks(parts: Tensor, sizes: Tensor) -> Tensor:
    """[N] log of the sum over ranks of exp(part), for this rank's own of all positions.

    Args:
        parts: [ΣN] what this rank's rows contribute at the positions of all ranks.
        sizes: [W] positions of each rank.
    """
    return _LogSumExpOverRanks.apply(parts, sizes)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, whose gradient is the sum of what all ranks' results get."""
    return _SumOverRanks.apply(values)


class _FetchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, rows_per_rank: int, note: NoteGradients) -> Tensor:
        first = group_rank() * rows_per_rank
        ctx.note = note
        if group_size() == 1:
            ctx.local = places
            return rows.detach()[places]
        counts = torch.bincount(places // rows_per_rank, minlength=group_size())
        asked = torch.empty_like(counts)
        dist.all_to_all_single(asked, counts)
        ctx.sent, ctx.received = counts.tolist(), asked.tolist()
        ctx.local = _exchange(places, ctx.sent, ctx.received) - first
        return _exchange(rows.detach()[ctx.local], ctx.received, ctx.sent)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        given = gradients[0]
        if group_size() > 1:
            given = _exchange(given.contiguous(), ctx.sent, ctx.received)
        ctx.note(ctx.local, given)
        return None, None, None, None


class _GatherRagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: Tensor) -> Tensor:
        ctx.sizes = sizes
        return _gathered(values, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        if group_size() > 1:
            dist.all_reduce(total)
        return _own(total, ctx.sizes), None


class _LogSumExpOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, sizes: Tensor) -> Tensor:
        total = parts
        if group_size() > 1:
            top = parts.clone()
            dist.all_reduce(top, op=dist.ReduceOp.MAX)
            scaled = (parts - top).exp()
            dist.all_reduce(scaled)
            total = scaled.log() + top
        ctx.save_for_backward(parts, total, sizes)
        return _own(total, sizes).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts, total, sizes = ctx.saved_tensors
        return _gathered(gradients[0].contiguous(), sizes) * (parts - total).exp(), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        if group_size() > 1:
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        if group_size() > 1:
            dist.all_reduce(total)
        return total


def _exchange(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """What all ranks send to this one, in the order of ranks."""
    found = values.new_empty((sum(received), *values.shape[1:]))
    dist.all_to_all_single(found, values, received, sent)
    return found


def _gather_sizes(size: int, device: torch.device) -> Tensor:
    sizes = torch.zeros(group_size(), dtype=torch.int64, device=device)
    sizes[group_rank()] = size
    if group_size() > 1:
        dist.all_reduce(sizes)
    return sizes


def _gathered(values: Tensor, sizes: Tensor) -> Tensor:
    if group_size() == 1:
        return values.clone()
    longest = int(sizes.max())
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values
    whole = values.new_empty((group_size() * longest, *values.shape[1:]))
    dist.all_gather_into_tensor(whole, padded)
    return torch.cat([part[:size] for part, size in zip(whole.split(max(1, longest)), sizes.tolist(), strict=False)])


def _own(values: Tensor, sizes: Tensor) -> Tensor:
    first = int(sizes[: group_rank()].sum())
    return values[first : first + int(sizes[group_rank()])]
