"""Auxiliary losses: what is learned beside items, with heads that only pretraining knows.

Each loss is a sum over events or windows, times how many item targets one of them stands for in the whole log. So
after division by the item targets of the global batch it is a mean like the loss of items, however few events are item
targets, and for any number of workers and any padding. Only the contrastive loss depends on the micro-batch, from which
it has its negatives. A weight of 0 makes no head and does no work. Invariant: no head sees what it is asked.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.batch import ELAPSED, NUM_TIME_BUCKETS, PADDING_MASK, TARGET_ACTION_INDEX
from data_io.schema import FIRST_INDEX, PADDING_INDEX
from model.config import AuxiliarySettings
from model.contrastive import alignment_losses, contrastive_losses, make_views
from model.encoder import ClickformerEncoder, TensorBatch

Losses = dict[str, Tensor]
"""Summed losses, each times its weight, by their setting."""


class TargetRates(NamedTuple):
    """Item targets of the whole training log, by what a loss may be a sum over."""

    per_event: float
    per_window: float


class NextEventHead(nn.Module):
    """Class logits of the next event from the states before the readout, which know nothing of that event."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, events: Tensor) -> Tensor:
        """Logits [..., C] from event states [..., D]."""
        return self.linear(self.norm(events))


class AuxiliaryLosses(nn.Module):
    """All auxiliary losses of a batch; those of events share the pass of the item loss, users have one of their own."""

    def __init__(self, settings: AuxiliarySettings, hidden_size: int, num_actions: int, rates: TargetRates) -> None:
        super().__init__()
        self.settings = settings
        self.rates = rates
        self.action_head = NextEventHead(hidden_size, num_actions) if settings.next_action else None
        self.time_head = NextEventHead(hidden_size, NUM_TIME_BUCKETS) if settings.time_to_next else None

    def of_events(self, batch: TensorBatch, asked: Tensor, num_events: Tensor) -> Callable[[Tensor], Losses]:
        """From states [B, T, D] before the readout to the summed losses of the next action and of the time until it.

        Args:
            batch: the windows they are states of.
            asked: [B, T] True at events after which the next one is asked for.
            num_events: how many events these stand for.
        """
        settings, scale = self.settings, self.rates.per_event * num_events / asked.sum().clamp(min=1)
        tasks: list[tuple[str, NextEventHead, Tensor, float]] = []
        if self.action_head is not None:
            tasks.append(("next_action", self.action_head, batch[TARGET_ACTION_INDEX], settings.next_action))
        if self.time_head is not None:
            tasks.append(("time_to_next", self.time_head, batch[ELAPSED], settings.time_to_next))

        def losses_of(events: Tensor) -> Losses:
            return {
                name: scale * weight * _class_losses(head(events), target, asked)
                for name, head, target, weight in tasks
            }

        return losses_of

    def of_items(self, encoder: ClickformerEncoder, targets: Tensor) -> Losses:
        """Summed loss of telling the items of targets [B, T] by their features, each as often as it is a target."""
        settings = self.settings
        if not settings.item_alignment:
            return {}
        items, counts = targets[targets >= FIRST_INDEX].unique(return_counts=True)
        ids, features = encoder.item_table(items, apart=True)
        losses = alignment_losses(ids, features, settings.contrastive_temperature)
        return {"item_alignment": (losses * counts).sum() * settings.item_alignment}

    def of_users(self, encoder: ClickformerEncoder, batch: TensorBatch, generator: torch.Generator) -> Losses:
        """Summed contrastive loss of the windows of a batch."""
        settings, real = self.settings, batch[PADDING_MASK].any(dim=1)
        if not settings.contrastive:
            return {}
        vectors = encoder.user_states(make_views(batch, settings.contrastive_views, generator))
        losses = contrastive_losses(vectors, real, settings.contrastive_temperature)
        return {"contrastive": losses.sum() * settings.contrastive * self.rates.per_window}


def _class_losses(logits: Tensor, targets: Tensor, asked: Tensor) -> Tensor:
    """Summed cross-entropy of logits [B, T, C] with targets [B, T] where asked [B, T]."""
    targets = torch.where(asked, targets, PADDING_INDEX).flatten()
    return F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=PADDING_INDEX, reduction="sum")
