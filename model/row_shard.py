"""Rows of an item table that is spread over ranks, with an optimizer of their own.

DeepSpeed knows nothing of them: under ZeRO-3 it would bring the whole table together in every step. A rank holds the
rows of neighbouring places; popular items, which have low indices, are spread over all places. Invariant: which place
an item has depends on the number of items alone, so that any number of ranks can read what others wrote.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from model.losses import log_partition
from model.row_exchange import fetch_rows, gather_ragged, group_rank, group_size, logsumexp_over_ranks, sum_over_ranks

_GOLDEN = 0.6180339887
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_ROWS_AT_ONCE = 65_536
"""Rows that are updated, or brought together, at a time: so temporary memory does not grow with the table."""


def multiplier_of(num_rows: int) -> int:
    """What an item is multiplied by, modulo the number of rows, to give its place: coprime with it."""
    multiplier = max(1, round(num_rows * _GOLDEN))
    while math.gcd(multiplier, num_rows) != 1:
        multiplier += 1
    return multiplier


class RowShard:
    """This rank's rows, and Adam's moments of them.

    A step moves only rows that have a gradient; where all have one, it is a step of AdamW without weight decay.

    Args:
        table: [N, D] the whole table; only this rank's rows are kept.
        learns: whether rows get gradients.
        device: where they live.

    Source:
        Kingma and Ba 2015, "Adam", algorithm 1, on rows with gradients only, as torch.optim.SparseAdam has it.
    """

    def __init__(self, table: Tensor, device: torch.device, *, learns: bool = True) -> None:
        self.num_rows, self.width = table.shape
        self.rows_per_rank = -(-self.num_rows // group_size())
        self.first = min(group_rank() * self.rows_per_rank, self.num_rows)
        last = min(self.first + self.rows_per_rank, self.num_rows)
        self._multiplier = multiplier_of(self.num_rows)
        self.rows = table.detach()[self._items(self.first, last)].float().to(device).requires_grad_(learns)
        self.exp_avg = torch.zeros_like(self.rows, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(self.rows, requires_grad=False)
        self._noted: list[tuple[Tensor, Tensor]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> "RowShard":
        raise TypeError("a shard of rows is not copied; copy the module before its table is sharded")

    def fetch(self, items: Tensor) -> Tensor:
        """[..., D] rows of items [...], from wherever they lie; all ranks call it."""
        places, inverse = torch.unique(items * self._multiplier % self.num_rows, return_inverse=True)
        return fetch_rows(self.rows, places, self.rows_per_rank, self._note)[inverse]

    def log_partition(self, states: Tensor, *, cosine: bool) -> Tensor:
        """[P] log of the sum over all rows of exp(score) of states [P, D]; all ranks call it."""
        everyone, sizes = gather_ragged(states)
        rows = torch.nn.functional.normalize(self.rows, dim=-1) if cosine else self.rows
        return logsumexp_over_ranks(log_partition(everyone, rows), sizes)

    def mean_row(self, *, cosine: bool) -> Tensor:
        """[D] mean of all rows; all ranks call it."""
        rows = torch.nn.functional.normalize(self.rows, dim=-1) if cosine else self.rows
        return sum_over_ranks(rows.sum(dim=0)) / self.num_rows

    def gradient_square_sum(self) -> Tensor:
        """Sum of squares of the gradients of this rank's rows, each the mean over ranks as DeepSpeed has it."""
        self._gather_noted()
        total = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        if self.rows.grad is not None:
            total += self.rows.grad.double().square().sum()
        for _, gradients in self._noted:
            total += gradients.double().square().sum()
        return total / group_size() ** 2

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float, num_steps: int) -> None:
        """A step with the mean over ranks of gradients, times `scale`; it is the num_steps-th, from 1."""
        self._gather_noted()
        scale = scale / group_size()
        if self.rows.grad is not None:
            for start in range(0, len(self.rows), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                self._move(rows, self.rows.grad[rows] * scale, learning_rate, num_steps)
        for local, gradients in self._noted:
            for start in range(0, len(local), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                self._move(local[part], gradients[part] * scale, learning_rate, num_steps)
        self.discard()

    def discard(self) -> None:
        """Forget the gradients."""
        self._noted = []
        self.rows.grad = None

    @torch.no_grad()
    def copy_to(self, table: Tensor) -> None:
        """Write all rows, by items, into a table [N, D] on any device; all ranks call it."""
        for rank, start, part in self._pieces(self.rows.detach()):
            first = rank * self.rows_per_rank + start
            table[self._items(first, first + len(part)).to(table.device)] = part.to(table.device)

    def _items(self, first: int, last: int) -> Tensor:
        """The items whose places are from first to before last."""
        inverse = pow(self._multiplier, -1, self.num_rows) if self.num_rows > 1 else 0
        return torch.arange(first, last) * inverse % self.num_rows

    def _pieces(self, rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Rows of all ranks, some at a time: rank, first row on it, and the rows."""
        for rank in range(group_size()):
            size = max(0, min(self.rows_per_rank, self.num_rows - rank * self.rows_per_rank))
            for start in range(0, size, _ROWS_AT_ONCE):
                length = min(_ROWS_AT_ONCE, size - start)
                own = rank == group_rank()
                part = rows[start : start + length].contiguous() if own else rows.new_empty(length, self.width)
                if group_size() > 1:
                    dist.broadcast(part, src=rank)
                yield rank, start, part

    def _note(self, local: Tensor, gradients: Tensor) -> None:
        self._noted.append((local, gradients))

    def _gather_noted(self) -> None:
        """Bring gradients of the same row together."""
        if len(self._noted) + (self.rows.grad is not None) < 1:
            return
        if self.rows.grad is not None:
            for local, gradients in self._noted:
                self.rows.grad.index_add_(0, local, gradients)
            self._noted = []
        elif self._noted:
            local = torch.cat([rows for rows, _ in self._noted])
            gradients = torch.cat([given for _, given in self._noted])
            rows, inverse = torch.unique(local, return_inverse=True)
            summed = gradients.new_zeros(len(rows), self.width).index_add_(0, inverse, gradients)
            self._noted = [(rows, summed)]

    def _move(self, rows: Tensor | slice, gradients: Tensor, learning_rate: float, num_steps: int) -> None:
        first, second = _BETAS
        average = self.exp_avg[rows].lerp_(gradients, 1 - first) if isinstance(rows, slice) else None
        if average is None:
            average = self.exp_avg[rows].lerp(gradients, 1 - first)
            self.exp_avg[rows] = average
        square = self.exp_avg_sq[rows] * second + gradients.square() * (1 - second)
        self.exp_avg_sq[rows] = square
        divisor = (square / (1 - second**num_steps)).sqrt_().add_(_EPSILON)
        self.rows.data[rows] -= average / divisor * (learning_rate / (1 - first**num_steps))
