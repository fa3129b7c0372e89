"""One number for each question by which a training is steered: larger is better, 1 is best.

Pure functions. Invariant: predicting the mean of the labels gives about 0.5 (AUC) or 0 (the others).
"""

from collections.abc import Sequence

import numpy as np

from data_io.labels import Question
from model.answers import AnswerKind
from model.metrics import area_under_curve


def validation_metric(
    questions: Sequence[Question], kinds: Sequence[AnswerKind], values: np.ndarray
) -> tuple[str, float]:
    """Name and value, for several questions the mean.

    Args:
        questions: of a task.
        kinds: of their answers.
        values: [N, L + P] labels, and predictions, of all of them.
    """
    found = [
        metric_of(question.answer, labels, predicted)
        for question, labels, predicted in split_values(questions, kinds, values)
    ]
    name = found[0][0] if len(found) == 1 else "mean_metric"
    return name, float(np.mean([value for _, value in found]))


def split_values(
    questions: Sequence[Question], kinds: Sequence[AnswerKind], values: np.ndarray
) -> list[tuple[Question, np.ndarray, np.ndarray]]:
    """Each question with its labels [N, L] and predictions [N, P]."""
    num_labels = [kind.num_labels for kind in kinds]
    num_predicted = [num_predictions(question) for question in questions]
    if not len(values):
        values = np.zeros((0, sum(num_labels) + sum(num_predicted)))
    parts = np.split(values, np.cumsum([*num_labels, *num_predicted])[:-1], axis=1)
    return list(zip(questions, parts[: len(kinds)], parts[len(kinds) :], strict=True))


def num_predictions(question: Question) -> int:
    """Columns of its predictions."""
    return len(question.classes) if question.answer in ("classes", "labels") else 1


def metric_of(answer: str, labels: np.ndarray, predicted: np.ndarray) -> tuple[str, float]:
    """Name and value of a question's metric, from labels [N, L] and predictions [N, P].

    AUC, for labels the mean over those that differ; for classes the share of the entropy that is explained; for numbers
    the share of the variance, of amounts that of log(1 + amount).
    """
    known = ~np.isnan(labels).any(axis=1)
    labels, predicted = labels[known], predicted[known]
    match answer:
        case "binary" | "labels":
            areas = [area_under_curve(labels[:, place], predicted[:, place]) for place in range(labels.shape[1])]
            there = [area for area in areas if not np.isnan(area)]
            return "auc", float(np.mean(there)) if there else 0.5
        case "classes":
            return "explained_entropy", explained_entropy(labels[:, 0].astype(np.int64), predicted)
        case "amount":
            return "explained_variance", explained_variance(np.log1p(labels[:, 0]), np.log1p(predicted[:, 0]))
        case _:
            return "explained_variance", explained_variance(labels[:, 0], predicted[:, 0])


def explained_entropy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """1 less the log loss of predictions [N, C] beside that of the classes' own rates; labels [N] are classes."""
    if not len(labels):
        return 0.0
    rates = np.bincount(labels, minlength=predicted.shape[1]) / len(labels)
    entropy = -(rates[rates > 0] * np.log(rates[rates > 0])).sum()
    loss = -np.log(np.clip(predicted[np.arange(len(labels)), labels], 1e-7, 1)).mean()
    return float(1 - loss / entropy) if entropy > 0 else 0.0


def explained_variance(labels: np.ndarray, predicted: np.ndarray) -> float:
    """1 less the squared error beside that of the mean (R squared)."""
    spread = labels.var() if len(labels) else 0.0
    return float(1 - ((labels - predicted) ** 2).mean() / spread) if spread > 0 else 0.0
