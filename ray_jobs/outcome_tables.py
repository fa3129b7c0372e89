"""What is kept of each user and question: the label, what was predicted, and what simple baselines say.

A row for every user that is asked, at the validation and the test cutoff. Invariant: a baseline knows what lies before
the moment of prediction alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_io.examples import Examples, question_examples
from data_io.features import FEATURE_NAMES, history_features
from data_io.labels import NO_CLASS, Question, label_users
from data_io.question_config import horizon_of
from data_io.schema import USER_ID
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Cutoffs, Stage
from model.checkpoint import SavedModel
from model.scoring import UserBatches, blended_answers
from model.trees import predict_trees
from ray_jobs.models import score_name

TREES, NETWORK, BEFORE, STAGE = "trees", "network", "before", "stage"
OUTCOME, PREDICTED = "outcome", "probability"
STAGES: tuple[Stage, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class AskedTask:
    """A task with the questions it answers, for a store."""

    name: str
    saved: SavedModel
    questions: list[Question]
    trees: Mapping[str, Any]
    """Boosted trees by question."""


def outcome_tables(task: AskedTask, sequences: Sequences, split: Cutoffs, batches: UserBatches) -> dict[str, pa.Table]:
    """One table for each question, by its score name, of the users of a bucket as the task's network knows them."""
    parts: dict[str, list[pa.Table]] = {question.name: [] for question in task.questions}
    length = task.saved.encoder.config.sequence_length
    for stage in STAGES:
        examples = question_examples(sequences, np.array([split.of(stage)]), length, task.questions, stage)
        features = history_features(sequences, examples)
        answers = blended_answers(task.saved, sequences, examples, batches)
        column = 0
        for question in task.questions:
            labels = examples.target[:, column : column + question.width]
            rows = np.flatnonzero(~np.isnan(labels).any(axis=1))
            asked = _Asked(task, question, sequences, examples.take(rows), labels[rows], features[rows])
            predicted, alone = (values[rows] for values in answers[question.name])
            table = pa.table(asked.columns(predicted, alone) | {STAGE: [stage] * len(rows)})
            parts[question.name].append(table)
            column += question.width
    return {
        score_name(task.name, name): pa.concat_tables(tables, promote_options="permissive")
        for name, tables in parts.items()
    }


class _Asked:
    """Users who are asked a question at a moment.

    Args:
        task, question: what is asked.
        sequences: of the bucket.
        examples: N of them.
        labels: [N, L].
        features: [N, F] of their histories.
    """

    def __init__(
        self,
        task: AskedTask,
        question: Question,
        sequences: Sequences,
        examples: Examples,
        labels: np.ndarray,
        features: np.ndarray,
    ) -> None:
        self.task, self.question, self.sequences = task, question, sequences
        self.examples, self.labels, self.features = examples, labels, features
        trees = task.trees.get(question.name)
        self.by_trees = None if trees is None else predict_trees(trees, features)

    def columns(self, predicted: np.ndarray, alone: np.ndarray) -> dict[str, Any]:
        """Columns of the table, from predictions [N, P] as they are published and of the network alone."""
        own = {USER_ID: self.sequences.user_id.take(pa.array(self.examples.row))}
        match self.question.answer:
            case "binary":
                return own | self._binary(predicted[:, 0], alone[:, 0])
            case "classes":
                return own | self._classes(predicted)
            case "labels":
                return own | {OUTCOME: _lists(self.labels), PREDICTED: _lists(predicted)}
            case _:
                return own | self._numbers(predicted[:, 0])

    def _binary(self, predicted: np.ndarray, alone: np.ndarray) -> dict[str, Any]:
        columns: dict[str, Any] = {f"feature_{name}": self.features[:, n] for n, name in enumerate(FEATURE_NAMES)}
        columns |= {OUTCOME: self.labels[:, 0].astype(np.int32), PREDICTED: predicted}
        if self.question.name in self.task.saved.blends:
            columns[NETWORK] = alone
        return columns if self.by_trees is None else columns | {TREES: self.by_trees[:, 0]}

    def _classes(self, predicted: np.ndarray) -> dict[str, Any]:
        label = self.labels[:, 0].astype(np.int64)
        columns = {OUTCOME: label.astype(np.int32)} | _class_columns("", predicted, label)
        columns[BEFORE] = self._most_frequent_class()
        return columns if self.by_trees is None else columns | _class_columns(f"{TREES}_", self.by_trees, label)

    def _numbers(self, predicted: np.ndarray) -> dict[str, Any]:
        columns = {OUTCOME: self.labels[:, 0], PREDICTED: predicted, BEFORE: self._one_horizon_before()}
        return columns if self.by_trees is None else columns | {TREES: self.by_trees[:, 0]}

    def _one_horizon_before(self) -> np.ndarray:
        """[N] what the answer was a horizon earlier; 0 where it was not asked."""
        if not len(self.examples):
            return np.zeros(0, np.float32)
        moment = int(self.examples.now[0]) - int(horizon_of(self.question.settings) * DAY_US)
        found = label_users([self.question], self.sequences, moment)[self.examples.row, 0]
        return np.nan_to_num(found).astype(np.float32)

    def _most_frequent_class(self) -> np.ndarray:
        """[N] the class most events of each history are of, the first of equal ones; -1 where none is."""
        num_classes = len(self.question.classes)
        if not len(self.question.item_class):
            return np.full(len(self.examples), NO_CLASS, np.int32)
        classes = self.question.item_class[self.sequences.item_index].astype(np.int64)
        row = np.repeat(np.arange(self.sequences.num_users), np.diff(self.sequences.offsets))
        moment = int(self.examples.now[0]) if len(self.examples) else 0
        counted = (classes != NO_CLASS) & (self.sequences.event_time < moment)
        cells = np.bincount(
            row[counted] * num_classes + classes[counted], minlength=self.sequences.num_users * num_classes
        ).reshape(-1, num_classes)[self.examples.row]
        return np.where(cells.any(axis=1), cells.argmax(axis=1), NO_CLASS).astype(np.int32)


def _class_columns(before: str, predicted: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Probability and rank of the true class [N] among predictions [N, C]; equal ones stand in the order of classes."""
    own = predicted[np.arange(len(label)), label]
    ahead = (predicted > own[:, None]) | (
        (predicted == own[:, None]) & (np.arange(predicted.shape[1]) < label[:, None])
    )
    return {f"{before}{PREDICTED}": own, f"{before}rank": (1 + ahead.sum(axis=1)).astype(np.int32)}


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
