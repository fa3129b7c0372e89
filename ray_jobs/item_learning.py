"""Learning items: which one comes next, or which one is hidden."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data_io.batch import (
    ITEM_INDEX,
    PADDING_MASK,
    TARGET_ACTION_INDEX,
    TARGET_ITEM_INDEX,
    Batch,
    collate,
    padding_batch,
    shifted_actions,
    shifted_targets,
)
from data_io.examples import Examples, next_item_examples, window_examples
from data_io.inputs import OwnInput
from data_io.schema import FIRST_INDEX
from data_io.scores import seen_pairs
from data_io.sequences import Sequences
from data_io.splits import Split, history_ends
from data_io.store import SequenceStore
from model.adapters import describe_base
from model.auxiliary import AuxiliaryLosses, TargetRates
from model.checkpoint import load_model
from model.config import AugmentationSettings, AuxiliarySettings, MaskedItem, NextItem
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import free_parameters
from model.loss_config import SoftmaxSettings
from model.metrics import ndcg_at
from model.objectives import Extras, ItemLoss, ItemObjective, MaskedItemObjective, NextItemObjective
from model.rewarded import RewardedObjective
from model.scoring import iter_batches, rank_items
from model.task_config import LowRankAdapters, RewardSettings, Trainable
from model.topk import exclude_items, target_ranks
from ray_jobs.item_features import tell_features
from ray_jobs.learning import VALIDATION_BATCH, StoreIndex, count_items, describe_split

VALIDATION_K = 10
_SCORES_AT_ONCE = 2**23
"""Scores of a batch of validation, 34 MB: fewer users at a time where the catalogue is large."""


@dataclass(frozen=True, kw_only=True)
class ItemLearning:
    """Learning which item comes next, or which one is hidden, from scratch or from a pretrained encoder."""

    store: SequenceStore
    split: Split
    softmax: SoftmaxSettings
    windows_per_user: int | None
    """Newest windows of a user that are trained on; None: all."""
    objective: NextItem | MaskedItem
    encoder_config: dict[str, Any]
    target_actions: list[str] | None
    exclude_seen: bool
    """Whether items of a user's own history are left out of the ranking, as in the report: then they are not trained on
    either."""
    pretrained_url: str | None
    """Encoder to start from; None: a fresh one."""
    trainable: Trainable
    auxiliary: AuxiliarySettings = field(default_factory=AuxiliarySettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    adversarial: float = 0.0
    """Length of worst steps of event vectors; 0 takes none."""
    rewards: RewardSettings | None = None
    """What actions are worth; None: what comes next is predicted."""

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    def make_examples(self, sequences: Sequences) -> Examples:
        """Windows over each user's training history."""
        return window_examples(sequences, self.split, self.length, self.windows_per_user)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Windows and, at each event, the item after it, with its action where that is asked for or learned."""
        items = shifted_targets(sequences, examples, self._trained_actions, new_only=self._new_only)
        targets = {TARGET_ITEM_INDEX: items}
        if self._needs_actions:
            targets[TARGET_ACTION_INDEX] = shifted_actions(sequences, examples)
        return collate(sequences, examples) | targets

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """The examples, and how often each item is a target: by that, negatives of a batch are corrected."""
        ends = history_ends(sequences, self.split, "validation")
        size = self.encoder_config["vocabulary_size"]
        counts = count_items(sequences, ends, size, self._trained_actions, new_only=self._new_only)
        begins = sequences.starts
        if self.windows_per_user is not None:
            begins = np.maximum(ends - self.windows_per_user * self.length, sequences.starts)
            counts -= count_items(sequences, begins, size, self._trained_actions, new_only=self._new_only)
        return StoreIndex(
            num_examples=np.array([len(examples)]),
            item_counts=counts,
            num_events=int((ends - begins).sum()),
            item_events=count_items(sequences, ends, size)
            if self.encoder_config["item_features"]
            else np.zeros(0, int),
        )

    def empty_batch(self) -> Batch:
        """One row of padding."""
        names = (TARGET_ITEM_INDEX, TARGET_ACTION_INDEX) if self._needs_actions else (TARGET_ITEM_INDEX,)
        return padding_batch(1, self.store.columns) | {name: np.zeros((1, 1), np.int64) for name in names}

    def num_targets(self, batch: Batch) -> int:
        """Positions whose item is to be predicted; for masked items all known ones, for which the hidden stand."""
        if isinstance(self.objective, MaskedItem):
            return int((batch[PADDING_MASK] & (batch[ITEM_INDEX] >= FIRST_INDEX)).sum())
        return int((batch[TARGET_ITEM_INDEX] > 0).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective, its encoder fresh or pretrained."""
        encoder = self._encoder(index)
        item_loss = ItemLoss(self.softmax, torch.tensor(index.item_counts), encoder.item_table.items_with_events)
        extras = Extras(
            auxiliary=None if self.auxiliary.is_off else self._auxiliary(index),
            augmentation=self.augmentation,
            adversarial=self.adversarial,
        )
        match self.objective:
            case MaskedItem(mask_share=mask_share):
                return MaskedItemObjective(encoder, item_loss, mask_share, extras)
            case NextItem() if self.rewards is not None:
                return self._rewarded(encoder, item_loss, self.rewards)
            case NextItem():
                return NextItemObjective(encoder, item_loss, extras)

    def _rewarded(self, encoder: ClickformerEncoder, item_loss: ItemLoss, settings: RewardSettings) -> nn.Module:
        assert self.pretrained_url is not None, "only fine-tuning learns by reward"
        indices = self.store.action_indices(list(settings.actions))
        rewards = torch.zeros(self.encoder_config["num_actions"])
        rewards[torch.from_numpy(indices)] = torch.tensor(list(settings.actions.values()))
        return RewardedObjective(encoder, item_loss, load_model(self.pretrained_url).encoder, rewards, settings)

    def model_of(self, objective: nn.Module) -> ClickformerEncoder:
        """The encoder."""
        assert isinstance(objective, ItemObjective)
        return objective.encoder

    def validation_examples(self, sequences: Sequences) -> Examples:
        """The first target of each user after the validation cutoff."""
        return next_item_examples(
            sequences, self.split, "validation", self.length, self._target_actions, new_only=self.exclude_seen
        )

    def validate(self, model: ClickformerEncoder, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 1] NDCG of each target in the full catalogue."""
        parts = [np.zeros((0, 1))]
        at_once = max(1, min(VALIDATION_BATCH, _SCORES_AT_ONCE // self.encoder_config["vocabulary_size"]))
        for part, batch in iter_batches(sequences, examples, at_once):
            _, scores = rank_items(model, batch)
            targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
            if self.exclude_seen:
                exclude_items(scores, *seen_pairs(sequences, part))
            parts.append(ndcg_at(target_ranks(scores, targets).cpu().numpy(), VALIDATION_K)[:, None])
        return np.concatenate(parts)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Mean NDCG."""
        return f"ndcg_at_{VALIDATION_K}", float(values.mean()) if len(values) else 0.0

    def describe(self) -> dict[str, Any]:
        """An encoder, whose vectors are held against items."""
        facts = {"kind": "next_item", "target_actions": self.target_actions}
        if self.pretrained_url is not None and isinstance(self.trainable, LowRankAdapters):
            facts |= describe_base(self.pretrained_url)
        return facts | {"split": describe_split(self.split)}

    @property
    def _can_be_asked(self) -> bool:
        return OwnInput.ASKED_ACTION in self.encoder_config["inputs"]

    @property
    def _new_only(self) -> bool:
        """Whether only items new to a user are targets; any item may be hidden."""
        return self.exclude_seen and isinstance(self.objective, NextItem)

    @property
    def _needs_actions(self) -> bool:
        return self._can_be_asked or self.auxiliary.next_action > 0 or self.rewards is not None

    @property
    def _trained_actions(self) -> np.ndarray | None:
        """Actions whose items are targets in training: any may be hidden, and any may be asked for by its action."""
        if self.rewards is not None:
            return self.store.action_indices(list(self.rewards.actions))
        only_wanted = isinstance(self.objective, NextItem) and not self._can_be_asked
        return self._target_actions if only_wanted else None

    @property
    def _target_actions(self) -> np.ndarray | None:
        return self.store.action_indices(self.target_actions)

    def _auxiliary(self, index: StoreIndex) -> AuxiliaryLosses:
        num_targets = int(index.item_counts.sum())
        rates = TargetRates(num_targets / max(1, index.num_events), num_targets / max(1, int(index.num_examples.sum())))
        shape = self.encoder_config
        return AuxiliaryLosses(self.auxiliary, shape["hidden_size"], shape["num_actions"], rates)

    def _encoder(self, index: StoreIndex) -> ClickformerEncoder:
        if self.pretrained_url is None:
            encoder = ClickformerEncoder(ClickformerConfig(**self.encoder_config))
            tell_features(encoder, self.store, index.item_events)
            if index.item_vectors is not None:
                encoder.item_table.start_at(torch.tensor(index.item_vectors))
            if encoder.neighbour_choice is not None and index.neighbours is not None:
                encoder.neighbour_choice.set_neighbours(index.neighbours)
            return encoder
        encoder = load_model(self.pretrained_url).encoder
        free_parameters(encoder, self.trainable)
        encoder.config.asked_action = self.encoder_config["asked_action"]
        return encoder
