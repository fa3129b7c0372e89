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
from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX
from model.config import AutoSoftmax, BinaryLoss, FullSoftmax, SampledSoftmax, SoftmaxSettings
from model.encoder import ClickformerEncoder, TensorBatch, choosable_events, event_inputs
from model.heads import ClickformerForOutcome
from model.losses import Correction, gbce_exponent, generalised_bce_loss, sampled_softmax_loss
from model.negatives import NegativeSampler
from model.repeat import mix_losses


class Objective(Protocol):
    """What the engine trains."""

    def __call__(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over the targets of a batch; `seed` fixes all that is drawn at random."""
        ...


class ItemLoss(nn.Module):
    """What a state costs that is held against its target item: one of `model.losses`, as the settings say.

    Args:
        softmax: which one.
        item_counts: [V] how often each item is a target in training.
        candidates: [C] items that may be negatives; None: all.
    """

    def __init__(self, softmax: SoftmaxSettings, item_counts: Tensor, candidates: Tensor | None = None) -> None:
        super().__init__()
        self.num_items = len(item_counts) - FIRST_INDEX if candidates is None else len(candidates)
        self.softmax = _by_size(softmax, self.num_items) if isinstance(softmax, AutoSoftmax) else softmax
        self.sampler = _make_sampler(self.softmax, item_counts, candidates)

    def forward(self, encoder: ClickformerEncoder, states: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Loss [P] of states [P, D] with targets [P]."""
        if isinstance(self.softmax, FullSoftmax):
            smoothing = self.softmax.label_smoothing
            return encoder.item_table(states=states, targets=targets, label_smoothing=smoothing, seed=seed)
        assert self.sampler is not None
        pool = self.sampler(targets, torch.Generator().manual_seed(seed))
        vectors = encoder.item_table(torch.cat([targets, pool.items]), seed=seed)
        positives, negatives = vectors.tensor_split([len(targets)])
        if isinstance(self.softmax, BinaryLoss):
            exponent = gbce_exponent(self.softmax.num_negatives, self.num_items, self.softmax.calibration)
            return generalised_bce_loss(states, positives, negatives, pool.items == targets[:, None], exponent)
        correction = Correction(pool.items, targets, pool.log_expected)
        smoothing = self.softmax.label_smoothing
        return sampled_softmax_loss(states, positives, negatives, correction, pool.num_uniform, smoothing)


def _by_size(softmax: AutoSoftmax, num_items: int) -> FullSoftmax | SampledSoftmax:
    if num_items <= softmax.full_up_to:
        return FullSoftmax(label_smoothing=softmax.label_smoothing)
    return SampledSoftmax(
        num_uniform=softmax.num_uniform,
        num_in_batch=softmax.num_in_batch,
        label_smoothing=softmax.label_smoothing,
    )


def _make_sampler(
    softmax: FullSoftmax | SampledSoftmax | BinaryLoss, item_counts: Tensor, candidates: Tensor | None
) -> NegativeSampler | None:
    match softmax:
        case FullSoftmax():
            return None
        case SampledSoftmax(num_uniform=num_uniform, num_in_batch=num_in_batch):
            return NegativeSampler(num_uniform, num_in_batch, item_counts, candidates)
        case BinaryLoss(num_negatives=num_negatives):
            return NegativeSampler(num_negatives, 0, item_counts, candidates)


def check_repeats(softmax: SoftmaxSettings, repeats: bool) -> None:
    """Refuse what cannot be mixed.

    Raises:
        SettingsError: the loss gives no probability over items, and the encoder chooses items again by one.
    """
    if isinstance(softmax, BinaryLoss) and repeats:
        raise SettingsError(
            "softmax kind gbce gives no probability over items, and so cannot be mixed with choosing items again: "
            "set encoder.repeats to false, or choose kind full or sampled"
        )


class ItemObjective(nn.Module):
    """What item objectives share: the encoder, and the loss of choosing anew, mixed with choosing again if it can."""

    def __init__(self, encoder: ClickformerEncoder, item_loss: ItemLoss) -> None:
        super().__init__()
        check_repeats(item_loss.softmax, encoder.repeat_choice is not None)
        self.encoder = encoder
        self.item_loss = item_loss

    def mixture_loss(self, inputs: TensorBatch, targets: Tensor, seed: int) -> Tensor:
        """Summed loss over positions whose target [B, T] is not 0."""
        states = self.encoder(**inputs, seed=seed)
        wanted = targets > 0
        anew = self.item_loss(self.encoder, states[wanted], targets[wanted], seed)
        if self.encoder.repeat_choice is None:
            return anew.sum()
        repeats = self.encoder.repeat_choice(states, choosable_events(inputs))
        again = repeats.log_probability(inputs[ITEM_INDEX], targets)[wanted]
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
