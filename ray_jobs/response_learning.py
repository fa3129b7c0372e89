"""Learning which shown items are responded to, with a head on a pretrained encoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from data_io.batch import CANDIDATE, FEATURES, OUTCOME, PADDING_MASK, PAIR_FEATURES, Batch, collate, padding_batch
from data_io.examples import Examples
from data_io.features import FEATURE_NAMES
from data_io.leaks import check_no_leak
from data_io.responses import NUM_PAIR_FEATURES, ShownItems, by_user, response_examples
from data_io.sequences import Sequences
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.adapters import describe_base
from model.answers import Binary
from model.checkpoint import load_model
from model.encoder import ClickformerConfig
from model.metrics import area_under_curve
from model.response import ClickformerForResponse, ResponseObjective
from model.scoring import UserBatches, predict_responses, response_inputs
from model.task_config import AutoTrainable, LowRankAdapters, ResponseTask, Trainable
from ray_jobs.learning import (
    VALIDATION_BATCH,
    StoreIndex,
    choose_trainable,
    describe_split,
    feature_scale,
    feature_sums,
)


@dataclass(frozen=True, kw_only=True)
class ResponseLearning:
    """Learning whether an item that is shown is responded to."""

    store: SequenceStore
    split: Cutoffs
    task: ResponseTask
    trainable: AutoTrainable | Trainable
    encoder_config: dict[str, Any]
    pretrained_url: str

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    @property
    def moments(self) -> np.ndarray:
        """[C] moments at which training users are asked; every horizon ends by the validation cutoff."""
        return self.split.training_moments(self.task.num_cutoffs, self.task.horizon_days, self.task.every_days)

    def make_examples(self, sequences: Sequences) -> Examples:
        """Every item shown to a user with history after a training moment."""
        return response_examples(sequences, self.moments, self.length, shown_items(self.task, self.store))

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Histories, the candidate of each, what is known of both, and labels."""
        one_each = examples.with_candidates(examples.candidate.reshape(-1, 1))
        return collate(sequences, examples) | response_inputs(sequences, one_each) | {OUTCOME: examples.target}

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """The examples, and sums from which features get their scale and the head its mean rate.

        Raises:
            DataContractError: a network would be told of what follows.
        """
        check_no_leak(sequences, examples, self.make_batch, labels=(OUTCOME, CANDIDATE))
        return StoreIndex(
            num_examples=np.array([len(examples)]),
            item_counts=np.zeros(0, np.int64),
            feature_sums=feature_sums(sequences, examples),
            label_sums=Binary().statistics(examples.target),
        )

    def empty_batch(self) -> Batch:
        """One user without events."""
        return padding_batch(1, self.store.columns) | {
            FEATURES: np.zeros((1, len(FEATURE_NAMES)), np.float32),
            CANDIDATE: np.zeros((1, 1), np.int64),
            PAIR_FEATURES: np.zeros((1, 1, NUM_PAIR_FEATURES), np.float32),
            OUTCOME: np.zeros((1, 1), np.float32),
        }

    def num_targets(self, batch: Batch) -> int:
        """Examples that have events."""
        return int(batch[PADDING_MASK].any(axis=1).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective with the pretrained encoder and a fresh head."""
        number, total, _ = index.label_sums[:, 0]
        trainable, deep = choose_trainable(self.trainable, min(total, number - total))
        config = ClickformerConfig(
            num_features=len(FEATURE_NAMES),
            deep_heads=deep,
            interaction=self.task.interaction,
            **self.encoder_config,
        )
        model = ClickformerForResponse(config)
        model.encoder.load_state_dict(load_model(self.pretrained_url).encoder.state_dict())
        model.free_parameters(trainable)
        log_odds = float(Binary().start(index.label_sums).bias[0])
        model.head.set_scale(*feature_scale(index.feature_sums), log_odds)
        return ResponseObjective(model)

    def model_of(self, objective: nn.Module) -> ClickformerForResponse:
        """Encoder and head."""
        assert isinstance(objective, ResponseObjective)
        return objective.model

    def validation_examples(self, sequences: Sequences) -> Examples:
        """Every item shown to a user with history after the validation cutoff."""
        moments = np.array([self.split.validation])
        return response_examples(sequences, moments, self.length, shown_items(self.task, self.store))

    def validate(self, model: ClickformerForResponse, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 2] labels and probabilities."""
        users, place = by_user(examples)
        predicted = predict_responses(model, sequences, users, UserBatches(VALIDATION_BATCH))[place]
        return np.stack([examples.target[:, 0], predicted], axis=1).astype(np.float64)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """AUC over pairs of user and item."""
        area = area_under_curve(values[:, 0], values[:, 1])
        return "auc", 0.5 if np.isnan(area) else area

    def describe(self) -> dict[str, Any]:
        """An encoder with a head, and what its predictions mean; it asks no questions of users alone."""
        base = describe_base(self.pretrained_url) if isinstance(self.trainable, LowRankAdapters) else {}
        facts = {"task": self.task.model_dump(mode="json"), "moments": self.moments.tolist(), "questions": []}
        return {"kind": "response", "split": describe_split(self.split)} | facts | base


def shown_items(task: ResponseTask, store: SequenceStore) -> ShownItems:
    """A task as a store's action indices have it.

    Raises:
        SettingsError: the log has no such action.
    """
    shown, actions = store.action_indices(task.shown), store.action_indices(task.actions)
    assert shown is not None, "actions are named"
    assert actions is not None, "actions are named"
    return ShownItems(
        shown=shown, actions=actions, horizon_days=task.horizon_days, most_candidates=task.most_candidates
    )
