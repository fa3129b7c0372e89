"""Objectives: a batch in, the summed loss of its targets out.

Losses are sums, not means: the engine divides by the number of targets of the whole global batch, so that a loss is
the same for any number of workers and any padding. An objective that asks fewer than all of them, or learns something
beside items, scales its sums to stand for those targets; the contrastive loss alone depends on the micro-batch, from
which it has its negatives. Each objective is one module, so that ZeRO sees every parameter inside a forward pass; and
none returns early where a rank has no target, because under ZeRO-3 all ranks must run the same modules in the same
order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from data_io.batch import (
    ACTION_INDEX,
    ASKED_ACTION,
    ELAPSED,
    ITEM_INDEX,
    PADDING_MASK,
    TARGET_ACTION_INDEX,
    TARGET_ITEM_INDEX,
)
from data_io.config import SettingsError
from data_io.inputs import OwnInput
from data_io.schema import FIRST_INDEX, PADDING_INDEX
from model.adversarial import adversarial_loss
from model.augmentation import Augmented, augment, even_shares
from model.auxiliary import AuxiliaryLosses, Losses
from model.config import AugmentationSettings
from model.encoder import (
    ClickformerEncoder,
    EncoderInputs,
    TensorBatch,
    choosable_events,
    event_inputs,
)
from model.loss_config import AutoSoftmax, BinaryLoss, FullSoftmax, SampledSoftmax, SoftmaxSettings
from model.losses import Correction, gbce_exponent, generalised_bce_loss, sampled_softmax_loss
from model.negatives import NegativeSampler
from model.readout import READOUT_INPUTS
from model.repeat import mix_losses
from model.streams import ASKED, VIEWS, WINDOWS, generator_of

_ASKED_SHARE = 0.5


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
        self.softmax = softmax_for(softmax, self.num_items)
        self.sampler = _make_sampler(self.softmax, item_counts, candidates)

    def forward(self, encoder: ClickformerEncoder, states: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Loss [P] of states [P, D] with targets [P]."""
        if isinstance(self.softmax, FullSoftmax):
            return encoder.item_table(
                states=states,
                targets=targets,
                label_smoothing=self.softmax.label_smoothing,
                seed=seed,
                weighed_alike=encoder.repeat_choice is None,
            )
        assert self.sampler is not None
        pool = self.sampler(targets, torch.Generator().manual_seed(seed))
        vectors = encoder.item_table(torch.cat([targets, pool.items]), seed=seed)
        positives, negatives = encoder.item_table.compared(vectors).tensor_split([len(targets)])
        if isinstance(self.softmax, BinaryLoss):
            exponent = gbce_exponent(self.softmax.num_negatives, self.num_items, self.softmax.calibration)
            return generalised_bce_loss(states, positives, negatives, pool.items == targets[:, None], exponent)
        correction = Correction(pool.items, targets, pool.log_expected)
        smoothing = self.softmax.label_smoothing
        return sampled_softmax_loss(states, positives, negatives, correction, pool.num_uniform, smoothing)


def softmax_for(softmax: SoftmaxSettings, num_items: int) -> FullSoftmax | SampledSoftmax | BinaryLoss:
    """The loss that settings mean for a catalogue of that size."""
    if not isinstance(softmax, AutoSoftmax):
        return softmax
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


def check_choices(softmax: SoftmaxSettings, *, mixes: bool) -> None:
    """Refuse what cannot be mixed.

    Raises:
        SettingsError: the loss gives no probability over items, and the encoder mixes it with other choices.
    """
    if isinstance(softmax, BinaryLoss) and mixes:
        raise SettingsError(
            "softmax kind gbce gives no probability over items, and so cannot be mixed with choosing items again or "
            "neighbours of them: set encoder.repeats to false and encoder.neighbours to 0, or choose kind full or "
            "sampled"
        )


def ask_for_some(actions: Tensor, seed: int) -> Tensor:
    """The actions [B, T] of targets where they are asked for, at half of the places, drawn by `seed`; else 0.

    So one network learns what comes next, and what comes next by action.
    """
    drawn = torch.rand(actions.shape, generator=generator_of(seed, ASKED)).to(actions.device)
    return torch.where(drawn < _ASKED_SHARE, actions, PADDING_INDEX)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What an item objective does besides predicting the items of windows as they are."""

    auxiliary: AuxiliaryLosses | None = None
    """What is learned beside items."""
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    """How windows are changed; of next items only."""
    adversarial: float = 0.0
    """Length of worst steps; 0 takes none."""


class ItemObjective(nn.Module):
    """What item objectives share: the encoder, and the loss of choosing anew, mixed with choosing again if it can."""

    def __init__(self, encoder: ClickformerEncoder, item_loss: ItemLoss, extras: Extras | None = None) -> None:
        super().__init__()
        check_choices(item_loss.softmax, mixes=encoder.mixes)
        extras = extras or Extras()
        self.encoder = encoder
        self.item_loss = item_loss
        self.auxiliary = extras.auxiliary
        self.augmentation = extras.augmentation
        self.adversarial = extras.adversarial
        self._parts: Losses = {}

    def ask(self, inputs: EncoderInputs, actions: Tensor, seed: int) -> EncoderInputs:
        """Inputs that ask for some of the actions [B, T] of targets, if the encoder can be asked."""
        if OwnInput.ASKED_ACTION not in self.encoder.config.inputs:
            return inputs
        return inputs | {ASKED_ACTION: ask_for_some(actions, seed)}

    def mixture_loss(
        self,
        inputs: EncoderInputs,
        targets: Tensor,
        seed: int,
        num_targets: Tensor | None = None,
        of_events: Callable[[Tensor], Losses] | None = None,
    ) -> Tensor:
        """Summed loss over positions whose target [B, T] is not 0.

        Args:
            inputs: of the encoder.
            targets: [B, T] items.
            seed: fixes negatives.
            num_targets: how many targets these stand for; None: themselves.
            of_events: losses of the states [B, T, D] before the readout, to be added.
        """
        scale = 1 if num_targets is None else num_targets / (targets > 0).sum().clamp(min=1)

        def loss_at(perturbation: Tensor | None) -> Tensor:
            known = {name: tensor for name, tensor in inputs.items() if name not in READOUT_INPUTS}
            events = self.encoder.event_states(**known, perturbation=perturbation, seed=seed)
            states = self.encoder.read_out(events, inputs[ELAPSED], inputs.get(ASKED_ACTION))
            loss = self._loss_of_states(states, inputs, targets, seed) * scale
            beside = of_events(events) if of_events is not None else {}
            if perturbation is None:
                self._note({"items": loss} | beside)
            return sum(beside.values(), loss)

        if not self.adversarial:
            return loss_at(None)
        zeros = torch.zeros(*targets.shape, self.encoder.config.hidden_size, device=targets.device)
        return adversarial_loss(loss_at, zeros, self.adversarial)

    def add_contrasts(self, loss: Tensor, batch: TensorBatch, targets: Tensor, seed: int) -> Tensor:
        """A summed loss and those of telling users and items apart, if that is learned.

        Args:
            loss: of what comes next.
            batch: whose users are told apart.
            targets: [B, T] whose items are.
            seed: fixes the views of users.
        """
        if self.auxiliary is None:
            return loss
        losses = self.auxiliary.of_users(self.encoder, batch, generator_of(seed, VIEWS))
        losses |= self.auxiliary.of_items(self.encoder, targets)
        self._note(losses)
        return sum(losses.values(), loss)

    def take_parts(self) -> dict[str, float]:
        """What each part of the loss has summed to on this worker since this was last asked, without worst steps."""
        parts, self._parts = self._parts, {}
        return {name: float(loss) for name, loss in parts.items()}

    def _note(self, parts: Losses) -> None:
        self._parts |= {name: self._parts.get(name, 0) + loss.detach() for name, loss in parts.items()}

    def _loss_of_states(self, states: Tensor, inputs: EncoderInputs, targets: Tensor, seed: int) -> Tensor:
        return choice_losses(self.encoder, self.item_loss, states, inputs, targets, seed).sum()


def choice_losses(
    encoder: ClickformerEncoder, item_loss: ItemLoss, states: Tensor, inputs: EncoderInputs, targets: Tensor, seed: int
) -> Tensor:
    """Loss [P] of each position whose target [B, T] is not 0, from states [B, T, D] after the readout."""
    wanted = targets > 0
    losses = item_loss(encoder, states[wanted], targets[wanted], seed)
    if encoder.repeat_choice is not None:
        repeats = encoder.repeat_choice(states, choosable_events(inputs))
        again = repeats.log_probability(inputs[ITEM_INDEX], targets)[wanted]
        losses = mix_losses(losses, again, repeats.gate[wanted])
    return losses


class NextItemObjective(ItemObjective):
    """Predict the item of the event after each position (Kang and McAuley 2018, "SASRec")."""

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over positions whose target is not 0; those of changed windows stand for all of the batch."""
        changed, asked = self._augment(batch, seed)
        of_events = None
        if self.auxiliary is not None:
            of_events = self.auxiliary.of_events(changed, asked, batch[PADDING_MASK].sum())
        num_targets = None if self.augmentation.is_off else (batch[TARGET_ITEM_INDEX] > 0).sum()
        inputs = event_inputs(changed)
        if TARGET_ACTION_INDEX in changed:
            inputs = self.ask(inputs, changed[TARGET_ACTION_INDEX], seed)
        loss = self.mixture_loss(inputs, changed[TARGET_ITEM_INDEX], seed, num_targets, of_events)
        return self.add_contrasts(loss, batch, batch[TARGET_ITEM_INDEX], seed)

    def _augment(self, batch: TensorBatch, seed: int) -> Augmented:
        if self.augmentation.is_off:
            return Augmented(batch, batch[PADDING_MASK])
        shares = even_shares(self.augmentation, len(batch[PADDING_MASK]))
        return augment(batch, shares, generator_of(seed, WINDOWS))


class MaskedItemObjective(ItemObjective):
    """Hide some items of a window and predict them from both sides (Sun et al. 2019, "BERT4Rec")."""

    def __init__(
        self, encoder: ClickformerEncoder, item_loss: ItemLoss, mask_share: float, extras: Extras | None = None
    ) -> None:
        super().__init__(encoder, item_loss, extras)
        self.mask_share = mask_share

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over hidden positions, scaled to stand for all known items of the batch."""
        items = batch[ITEM_INDEX]
        known = batch[PADDING_MASK] & (items >= FIRST_INDEX)
        drawn = torch.rand(items.shape, generator=generator_of(seed)).to(items.device) < self.mask_share
        hidden = known & drawn
        inputs = event_inputs(batch) | {"hidden": hidden}
        inputs = self.ask(inputs, torch.where(hidden, batch[ACTION_INDEX], PADDING_INDEX), seed)
        loss = self.mixture_loss(inputs, torch.where(hidden, items, 0), seed, known.sum())
        return self.add_contrasts(loss, batch, torch.where(known, items, PADDING_INDEX), seed)
