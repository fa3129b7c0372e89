"""Learning questions about what follows, with heads on a pretrained encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from data_io.batch import FEATURES, OUTCOME, PADDING_MASK, Batch, collate, padding_batch
from data_io.examples import Examples, question_examples
from data_io.features import FEATURE_NAMES, history_features, scale_features
from data_io.labels import Question, longest_horizon
from data_io.leaks import check_no_leak
from data_io.questions import describe_questions
from data_io.sequences import Sequences
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.adapters import describe_base
from model.answers import AnswerKind, answer_kind, starts
from model.checkpoint import load_model
from model.encoder import ClickformerConfig
from model.heads import ClickformerForOutcome
from model.outcome_objective import OutcomeObjective
from model.scoring import UserBatches, predict_answers
from model.task_config import (
    AutoTrainable,
    LowRankAdapters,
    OutcomeTask,
    QuestionsTask,
    Trainable,
)
from ray_jobs.learning import (
    VALIDATION_BATCH,
    StoreIndex,
    choose_trainable,
    describe_split,
    feature_scale,
    feature_sums,
)
from ray_jobs.outcome_metrics import validation_metric

SPACING_DAYS = 7.0
"""Days between moments where no question looks ahead."""


@dataclass(frozen=True, kw_only=True)
class OutcomeLearning:
    """Learning questions with heads on a pretrained encoder."""

    store: SequenceStore
    split: Cutoffs
    task: OutcomeTask | QuestionsTask
    questions: Sequence[Question]
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
        horizon = longest_horizon(self.questions)
        return self.split.training_moments(
            self.task.num_cutoffs, horizon, self.task.every_days or horizon or SPACING_DAYS
        )

    @cached_property
    def kinds(self) -> list[AnswerKind]:
        """Kinds of answers of the questions."""
        return [answer_kind(question.answer, len(question.classes)) for question in self.questions]

    def make_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at every training moment."""
        return question_examples(sequences, self.moments, self.length, self.questions, "training")

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Histories, their features and labels."""
        features = scale_features(history_features(sequences, examples))
        return collate(sequences, examples) | {FEATURES: features, OUTCOME: examples.target}

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """The examples, and sums from which features and labels get their scale.

        Raises:
            DataContractError: a network would be told of what follows.
        """
        check_no_leak(sequences, examples, self.make_batch, labels=(OUTCOME,))
        return StoreIndex(
            num_examples=np.array([len(examples)]),
            item_counts=np.zeros(0, np.int64),
            feature_sums=feature_sums(sequences, examples),
            label_sums=self._statistics(examples.target),
        )

    def _statistics(self, labels: np.ndarray) -> np.ndarray:
        """[3, O] what labels [N, L] say about the outputs of all heads."""
        ends = np.cumsum([kind.num_labels for kind in self.kinds])
        parts = np.split(labels, ends[:-1], axis=1)
        return np.concatenate([kind.statistics(part) for kind, part in zip(self.kinds, parts, strict=True)], axis=1)

    def empty_batch(self) -> Batch:
        """One user without events."""
        features = np.zeros((1, len(FEATURE_NAMES)), np.float32)
        num_labels = sum(kind.num_labels for kind in self.kinds)
        labels = np.full((1, num_labels), np.nan, np.float32)
        return padding_batch(1, self.store.columns) | {FEATURES: features, OUTCOME: labels}

    def num_targets(self, batch: Batch) -> int:
        """Users that have events."""
        return int(batch[PADDING_MASK].any(axis=1).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective with the pretrained encoder and fresh heads."""
        trainable, deep = choose_trainable(self.trainable, self._fewest_labels(index))
        config = ClickformerConfig(
            num_features=len(FEATURE_NAMES),
            questions=[
                {"name": question.name, "answer": question.answer, "num_classes": len(question.classes)}
                for question in self.questions
            ],
            deep_heads=deep,
            **self.encoder_config,
        )
        model = ClickformerForOutcome(config)
        model.encoder.load_state_dict(load_model(self.pretrained_url).encoder.state_dict())
        model.free_parameters(trainable)
        model.head.set_scale(*feature_scale(index.feature_sums))
        model.head.set_start(starts(self.kinds, index.label_sums))
        weights = [question.settings.weight for question in self.questions]
        return OutcomeObjective(model, weights, learned=self.task.learned_weights)

    def _fewest_labels(self, index: StoreIndex) -> float:
        """Labels of the question that has the fewest, of its rarer answer where it is whether."""
        ends = np.cumsum([kind.num_outputs for kind in self.kinds])
        fewest = np.inf
        for question, (number, total, _) in zip(
            self.questions, np.split(index.label_sums, ends[:-1], axis=1), strict=True
        ):
            rarer = min(total[0], number[0] - total[0]) if question.answer == "binary" else number[0]
            fewest = min(fewest, rarer)
        return fewest

    def model_of(self, objective: nn.Module) -> ClickformerForOutcome:
        """Encoder and heads."""
        assert isinstance(objective, OutcomeObjective)
        return objective.model

    def validation_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at the validation cutoff."""
        moments = np.array([self.split.validation])
        return question_examples(sequences, moments, self.length, self.questions, "validation")

    def validate(self, model: ClickformerForOutcome, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, L + P] labels and predictions of all questions."""
        predicted = predict_answers(model, sequences, examples, UserBatches(VALIDATION_BATCH))
        return np.concatenate([examples.target, *predicted.values()], axis=1).astype(np.float64)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """AUC of one question about whether; of others and of several the mean of their metrics, all 1 at best."""
        return validation_metric(self.questions, self.kinds, values)

    def describe(self) -> dict[str, Any]:
        """An encoder with heads, and what its predictions mean."""
        base = describe_base(self.pretrained_url) if isinstance(self.trainable, LowRankAdapters) else {}
        facts = {"task": self.task.model_dump(mode="json"), "questions": describe_questions(self.questions)}
        facts |= {"moments": self.moments.tolist()}
        return {"kind": "outcome", "split": describe_split(self.split)} | facts | base
