"""Objectives: a batch in, the summed loss of its targets out.

Losses are sums, not means: the engine divides by the number of targets of the whole global batch, so that a loss is
the same for any number of workers and any padding. Each objective is one module, so that ZeRO sees every parameter
inside a forward pass; and none returns early where a rank has no target, because under ZeRO-3 all ranks must run the
same modules in the same order.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.batch import ITEM_INDEX, OUTCOME, PADDING_MASK, TARGET_ITEM_INDEX
from data_io.schema import FIRST_INDEX
from model.config import FullSoftmax, SampledSoftmax
from model.encoder import ClickformerEncoder, TensorBatch, choosable_events, event_inputs
from model.heads import ClickformerForOutcome
from model.negatives import NegativeSampler, sampled_softmax_loss
from model.repeat import mix_losses


class Objective(Protocol):
    """What the engine trains."""

    def __call__(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over the targets of a batch; `seed` fixes all that is drawn at random."""
        ...


class ItemLoss(nn.Module):
    """Cross-entropy of states against their target items, over the catalogue or over sampled negatives."""

    def __init__(self, softmax: FullSoftmax | SampledSoftmax, item_counts: Tensor) -> None:
        super().__init__()
        self.sampler = NegativeSampler(softmax, item_counts) if isinstance(softmax, SampledSoftmax) else None

    def forward(self, encoder: ClickformerEncoder, states: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Loss [P] of states [P, D] with targets [P]."""
        if self.sampler is None:
            return F.cross_entropy(encoder.item_table(states=states), targets, reduction="none")
        negatives, log_expected = self.sampler(targets, torch.Generator().manual_seed(seed))
        return sampled_softmax_loss(states, targets, encoder.item_table, negatives, log_expected)


class ItemObjective(nn.Module):
    """What item objectives share: the encoder, and the loss of a mixture of choosing anew and choosing again."""

    def __init__(self, encoder: ClickformerEncoder, item_loss: ItemLoss) -> None:
        super().__init__()
        self.encoder = encoder
        self.item_loss = item_loss

    def mixture_loss(self, inputs: TensorBatch, targets: Tensor, seed: int) -> Tensor:
        """Summed loss over positions whose target [B, T] is not 0."""
        states = self.encoder(**inputs)
        wanted = targets > 0
        repeats = self.encoder.repeat_choice(states, choosable_events(inputs))
        again = repeats.log_probability(inputs[ITEM_INDEX], targets)[wanted]
        anew = self.item_loss(self.encoder, states[wanted], targets[wanted], seed)
        return mix_losses(anew, again, repeats.gate[wanted]).sum()


class NextItemObjective(ItemObjective):
    """Predict the item of the event after each position (Kang and McAuley 2018, "SASRec")."""

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over positions whose target is not 0."""
        return self.mixture_loss(event_inputs(batch), batch[TARGET_ITEM_INDEX], seed)


class MaskedItemObjective(ItemObjective):
    """Hide some items of a window and predict them from both sides (Sun et al. 2019, "BERT4Rec")."""

    def __init__(self, encoder: ClickformerEncoder, item_loss: ItemLoss, mask_share: float) -> None:
        super().__init__(encoder, item_loss)
        self.mask_share = mask_share

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over hidden positions, scaled to stand for all known items of the batch."""
        items = batch[ITEM_INDEX]
        known = batch[PADDING_MASK] & (items >= FIRST_INDEX)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(items.shape, generator=generator).to(items.device) < self.mask_share
        hidden = known & drawn
        inputs = event_inputs(batch) | {"hidden": hidden}
        loss = self.mixture_loss(inputs, torch.where(hidden, items, 0), seed)
        return loss * (known.sum() / hidden.sum().clamp(min=1))


class OutcomeObjective(nn.Module):
    """Binary cross-entropy of one outcome a user."""

    def __init__(self, model: ClickformerForOutcome) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> "OutcomeObjective":
        """As usual, but an encoder that does not learn keeps its dropout off."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.encoder.parameters()):
            self.model.encoder.eval()
        return self

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over the users of a batch that have events; nothing here is drawn by `seed`."""
        logits = self.model(batch)
        real = batch[PADDING_MASK].any(dim=1)
        losses = F.binary_cross_entropy_with_logits(logits, batch[OUTCOME], reduction="none")
        return torch.where(real, losses, 0.0).sum()
