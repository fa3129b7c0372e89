"""Learning items: which one comes next, or which one is hidden."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_io.batch import ITEM_INDEX, PADDING_MASK, TARGET_ITEM_INDEX, Batch, collate, padding_batch, shifted_targets
from data_io.examples import Examples, next_item_examples, window_examples
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from data_io.splits import Split, history_ends
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.config import FrozenEncoder, FullEncoder, MaskedItem, NextItem, SoftmaxSettings, TopLayers
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import free_parameters
from model.metrics import ndcg_at
from model.objectives import ItemLoss, ItemObjective, MaskedItemObjective, NextItemObjective
from model.scoring import iter_batches, rank_items
from model.topk import target_ranks
from ray_jobs.item_features import tell_features
from ray_jobs.learning import VALIDATION_BATCH, StoreIndex, count_items

VALIDATION_K = 10


@dataclass(frozen=True, kw_only=True)
class ItemLearning:
    """Learning which item comes next, or which one is hidden, from scratch or from a pretrained encoder."""

    store: SequenceStore
    split: Split
    softmax: SoftmaxSettings
    objective: NextItem | MaskedItem
    encoder_config: dict[str, Any]
    target_actions: list[str] | None
    pretrained_url: str | None
    """Encoder to start from; None: a fresh one."""
    trainable: FrozenEncoder | TopLayers | FullEncoder

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    def make_examples(self, sequences: Sequences) -> Examples:
        """Windows over each user's training history."""
        return window_examples(sequences, self.split, self.length)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Windows and, at each event, the item after it."""
        targets = shifted_targets(sequences, examples, self._target_actions)
        return collate(sequences, examples) | {TARGET_ITEM_INDEX: targets}

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """The examples, and how often each item is a target: by that, negatives of a batch are corrected."""
        ends = history_ends(sequences, self.split, "validation")
        actions = self._target_actions if isinstance(self.objective, NextItem) else None  # any known item may be hidden
        size = self.encoder_config["vocabulary_size"]
        counts = count_items(sequences, ends, size, actions)
        events = count_items(sequences, ends, size) if self.encoder_config.get("item_features") else np.zeros(0, int)
        return StoreIndex(num_examples=np.array([len(examples)]), item_counts=counts, item_events=events)

    def empty_batch(self) -> Batch:
        """One row of padding."""
        return padding_batch(1) | {TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}

    def num_targets(self, batch: Batch) -> int:
        """Positions whose item is to be predicted; for masked items all known ones, for which the hidden stand."""
        if isinstance(self.objective, MaskedItem):
            return int((batch[PADDING_MASK] & (batch[ITEM_INDEX] >= FIRST_INDEX)).sum())
        return int((batch[TARGET_ITEM_INDEX] > 0).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective, its encoder fresh or pretrained."""
        encoder = self._encoder(index)
        item_loss = ItemLoss(self.softmax, torch.tensor(index.item_counts), encoder.item_table.items_with_events)
        match self.objective:
            case MaskedItem(mask_share=mask_share):
                return MaskedItemObjective(encoder, item_loss, mask_share)
            case NextItem():
                return NextItemObjective(encoder, item_loss)

    def model_of(self, objective: nn.Module) -> ClickformerEncoder:
        """The encoder."""
        assert isinstance(objective, ItemObjective)
        return objective.encoder

    def validation_examples(self, sequences: Sequences) -> Examples:
        """The first target of each user after the validation cutoff."""
        return next_item_examples(sequences, self.split, "validation", self.length, self._target_actions)

    def validate(self, model: ClickformerEncoder, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 1] NDCG of each target in the full catalogue."""
        parts = [np.zeros((0, 1))]
        for part, batch in iter_batches(sequences, examples, VALIDATION_BATCH):
            _, scores = rank_items(model, batch)
            targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
            parts.append(ndcg_at(target_ranks(scores, targets).cpu().numpy(), VALIDATION_K)[:, None])
        return np.concatenate(parts)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Mean NDCG."""
        return f"ndcg_at_{VALIDATION_K}", float(values.mean()) if len(values) else 0.0

    def describe(self) -> dict[str, Any]:
        """An encoder, whose vectors are held against items."""
        return {"kind": "next_item", "target_actions": self.target_actions}

    @property
    def _target_actions(self) -> np.ndarray | None:
        return self.store.action_indices(self.target_actions)

    def _encoder(self, index: StoreIndex) -> ClickformerEncoder:
        if self.pretrained_url is None:
            encoder = ClickformerEncoder(ClickformerConfig(**self.encoder_config))
            tell_features(encoder, self.store, index.item_events)
            return encoder
        encoder = load_model(self.pretrained_url).encoder
        free_parameters(encoder, self.trainable)
        return encoder
