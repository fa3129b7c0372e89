"""Learning a binary outcome with a head on a pretrained encoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_io.batch import FEATURES, OUTCOME, PADDING_MASK, Batch, collate, padding_batch
from data_io.examples import Examples, outcome_examples
from data_io.features import FEATURE_NAMES, history_features, scale_features
from data_io.sequences import Sequences
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.adapters import describe_base
from model.checkpoint import load_model
from model.config import LowRankAdapters, OutcomeTask, Trainable
from model.encoder import ClickformerConfig
from model.heads import ClickformerForOutcome
from model.metrics import area_under_curve
from model.objectives import OutcomeObjective
from model.scoring import UserBatches, outcome_probabilities
from ray_jobs.learning import VALIDATION_BATCH, StoreIndex, describe_split


@dataclass(frozen=True, kw_only=True)
class OutcomeLearning:
    """Learning a binary outcome with a head on a pretrained encoder."""

    store: SequenceStore
    split: Cutoffs
    task: OutcomeTask
    trainable: Trainable
    encoder_config: dict[str, Any]
    pretrained_url: str

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    @property
    def cutoffs(self) -> np.ndarray:
        """[C] moments at which training users are asked; every horizon ends by the validation cutoff."""
        return self.split.training_moments(self.task.num_cutoffs, self.task.horizon_days)

    def make_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at every training cutoff."""
        return self._outcomes(sequences, self.cutoffs)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Histories, their features and outcomes."""
        features = scale_features(history_features(sequences, examples))
        return collate(sequences, examples) | {FEATURES: features, OUTCOME: examples.target.astype(np.float32)}

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """The examples, and sums from which features get their scale."""
        features = scale_features(history_features(sequences, examples)).astype(np.float64)
        sums = np.stack([np.full(features.shape[1], len(examples)), features.sum(axis=0), (features**2).sum(axis=0)])
        return StoreIndex(num_examples=np.array([len(examples)]), item_counts=np.zeros(0, np.int64), feature_sums=sums)

    def empty_batch(self) -> Batch:
        """One user without events."""
        features = np.zeros((1, len(FEATURE_NAMES)), np.float32)
        return padding_batch(1, self.store.columns) | {FEATURES: features, OUTCOME: np.zeros(1, np.float32)}

    def num_targets(self, batch: Batch) -> int:
        """Users that have events."""
        return int(batch[PADDING_MASK].any(axis=1).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective with the pretrained encoder and a fresh head."""
        config = ClickformerConfig(num_features=len(FEATURE_NAMES), **self.encoder_config)
        model = ClickformerForOutcome(config)
        model.encoder.load_state_dict(load_model(self.pretrained_url).encoder.state_dict())
        model.free_parameters(self.trainable)
        number, total, squares = index.feature_sums
        mean = total / np.maximum(number, 1)
        spread = np.sqrt(np.maximum(squares / np.maximum(number, 1) - mean**2, 0))
        model.head.set_scale(torch.from_numpy(mean), torch.from_numpy(spread))
        return OutcomeObjective(model)

    def model_of(self, objective: nn.Module) -> ClickformerForOutcome:
        """Encoder and head."""
        assert isinstance(objective, OutcomeObjective)
        return objective.model

    def validation_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at the validation cutoff."""
        return self._outcomes(sequences, np.array([self.split.validation]))

    def validate(self, model: ClickformerForOutcome, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 2] outcome and probability."""
        probability = outcome_probabilities(model, sequences, examples, UserBatches(VALIDATION_BATCH))
        return np.stack([examples.target.astype(np.float64), probability.astype(np.float64)], axis=1)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Area under the ROC curve; 0.5 where only one outcome occurs."""
        area = area_under_curve(values[:, 0], values[:, 1]) if len(values) else float("nan")
        return "auc", 0.5 if np.isnan(area) else area

    def describe(self) -> dict[str, Any]:
        """An encoder with a head, and what its probability means."""
        base = describe_base(self.pretrained_url) if isinstance(self.trainable, LowRankAdapters) else {}
        return {"kind": "outcome", "task": self.task.model_dump(), "split": describe_split(self.split)} | base

    def _outcomes(self, sequences: Sequences, cutoffs: np.ndarray) -> Examples:
        actions = self.store.action_indices(self.task.actions)
        return outcome_examples(sequences, cutoffs, self.task.horizon_days, self.length, actions)
