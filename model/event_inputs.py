"""Inputs of an event besides item, action and gap: when in the week it was, and further columns of the store.

Every module here runs in every forward pass, whatever the batch holds, because under ZeRO-3 all ranks must run the same
modules in the same order. Invariant: a missing value adds nothing to an event's vector, and its row never learns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from data_io.columns import NUM_ROWS
from data_io.inputs import OwnInput, columns_among
from data_io.schema import PADDING_INDEX

_HOUR_US, _DAY_US, _WEEK_DAYS, _DAY_HOURS = 3_600_000_000, 86_400_000_000, 7, 24
_FIRST_WEEKDAY = 3
"""1970-01-01 was a Thursday, and a week begins on Monday."""


class CalendarEmbedding(nn.Module):
    """The hour of the day and the day of the week of each event, UTC."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hour = nn.Embedding(1 + _DAY_HOURS, hidden_size, padding_idx=PADDING_INDEX)
        self.weekday = nn.Embedding(1 + _WEEK_DAYS, hidden_size, padding_idx=PADDING_INDEX)

    def forward(self, moment: Tensor, real: Tensor) -> Tensor:
        """[B, T, D] from moments [B, T] in microseconds since 1970 UTC; 0 where not `real` [B, T]."""
        hour = moment // _HOUR_US % _DAY_HOURS
        weekday = (moment // _DAY_US + _FIRST_WEEKDAY) % _WEEK_DAYS
        return self.hour(torch.where(real, hour + 1, 0)) + self.weekday(torch.where(real, weekday + 1, 0))


class ColumnEmbedding(nn.Module):
    """A column of numbers or categories: a vector for each row of `data_io.columns`."""

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(NUM_ROWS[kind], hidden_size, padding_idx=PADDING_INDEX)

    def forward(self, index: Tensor) -> Tensor:
        """[B, T, D] from rows [B, T]."""
        return self.rows(index)


class TextEmbedding(nn.Module):
    """A column of texts: the mean of the vectors of their tokens (Joulin et al. 2017, "Bag of tricks", section 2)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(NUM_ROWS["text"], hidden_size, padding_idx=PADDING_INDEX)

    def forward(self, index: Tensor) -> Tensor:
        """[B, T, D] from tokens [B, T, K], padded with 0; only events with a text are looked up."""
        has_text = index[..., 0] != PADDING_INDEX
        tokens = index[has_text]
        means = self.rows(tokens).sum(dim=1) / (tokens != PADDING_INDEX).sum(dim=1, keepdim=True)
        vectors = means.new_zeros((*index.shape[:2], means.shape[-1]))
        return vectors.masked_scatter(has_text[..., None], means)


class FurtherInputs(nn.Module):
    """Everything seen of an event besides item, action and gap, in one vector; columns go by their names in order."""

    def __init__(self, hidden_size: int, inputs: Mapping[str, str]) -> None:
        super().__init__()
        self.calendar = CalendarEmbedding(hidden_size) if OwnInput.CALENDAR in inputs else None
        self.kinds = columns_among(inputs)
        self.columns = nn.ModuleList(
            TextEmbedding(hidden_size) if kind == "text" else ColumnEmbedding(kind, hidden_size)
            for kind in self.kinds.values()
        )

    def forward(self, moment: Tensor, real: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, T, D] from moments [B, T], where events are real [B, T], and columns [B, T] or [B, T, K] by name.

        Raises:
            KeyError: a column is missing; others than this network's are not looked at.
        """
        vectors = [] if self.calendar is None else [self.calendar(moment, real)]
        vectors += [module(columns[name]) for name, module in zip(self.kinds, self.columns, strict=True)]
        return torch.stack(vectors).sum(dim=0)


def has_further(inputs: Mapping[str, str]) -> bool:
    """Whether there is anything for `FurtherInputs` to see."""
    return OwnInput.CALENDAR in inputs or bool(columns_among(inputs))
