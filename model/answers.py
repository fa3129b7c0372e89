"""Answers: what outputs of a head mean, what they cost, and what they predict.

One class for each kind of answer, without parameters. A label that is NaN costs nothing. Invariant: a prediction is
what the loss is minimised by in the mean: a probability, or an expected amount.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_PRIOR_COUNT = 0.5
_LARGEST_LOG = 30.0
_UNIT_SOFTPLUS = 0.5413248546129181
"""Whose softplus is 1."""


class AnswerKind(Protocol):
    """A kind of answer: O outputs, L columns of labels, P columns of predictions."""

    @property
    def num_outputs(self) -> int:
        """O."""
        ...

    @property
    def num_labels(self) -> int:
        """L."""
        ...

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """[3, O] how many labels [N, L] say something about each output, their sum and sum of squares."""
        ...

    def start(self, statistics: np.ndarray) -> "Start":
        """What outputs are before anything is learned, from the statistics of training labels."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """[B] negative log likelihood of labels [B, L] by outputs [B, O]; 0 where a label is NaN."""
        ...

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """[B, P] predictions from outputs [B, O]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Outputs before anything is learned."""

    bias: np.ndarray
    """[O] that fits the mean of the labels."""
    spread: np.ndarray
    """[O] units in which outputs of numbers are learned; 1 elsewhere."""


@dataclass(frozen=True, slots=True)
class Binary:
    """Whether something is so: the logit of its probability."""

    num_outputs: int = 1
    num_labels: int = 1

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """Of the label."""
        return _sums(labels)

    def start(self, statistics: np.ndarray) -> Start:
        """The log odds of the mean rate."""
        return Start(bias=_log_odds(statistics), spread=np.ones(1))

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return _of_known(F.binary_cross_entropy_with_logits, outputs, labels).sum(dim=1)

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """The probability."""
        return torch.sigmoid(outputs)


@dataclass(frozen=True, slots=True)
class Labels:
    """Which of several things are so, each by itself: a logit for each."""

    num_outputs: int

    @property
    def num_labels(self) -> int:
        """A column for each."""
        return self.num_outputs

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """Of each label."""
        return _sums(labels)

    def start(self, statistics: np.ndarray) -> Start:
        """The log odds of the mean rates."""
        return Start(bias=_log_odds(statistics), spread=np.ones(self.num_outputs))

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """Mean binary cross-entropy over them."""
        return _of_known(F.binary_cross_entropy_with_logits, outputs, labels).mean(dim=1)

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """The probabilities."""
        return torch.sigmoid(outputs)


@dataclass(frozen=True, slots=True)
class Classes:
    """Which one of several classes: a logit for each."""

    num_outputs: int
    num_labels: int = 1

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """Of whether each class is the one."""
        known = labels[~np.isnan(labels[:, 0]), 0].astype(np.int64)
        counts = np.bincount(known, minlength=self.num_outputs).astype(np.float64)
        return np.stack([np.full(self.num_outputs, float(len(known))), counts, counts])

    def start(self, statistics: np.ndarray) -> Start:
        """The logarithms of their rates."""
        number, total, _ = statistics
        rate = (total + _PRIOR_COUNT) / (number + _PRIOR_COUNT * self.num_outputs)
        return Start(bias=np.log(rate), spread=np.ones(self.num_outputs))

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """Cross-entropy."""
        known = ~labels[:, 0].isnan()
        classes = torch.where(known, labels[:, 0], 0.0).long()
        return torch.where(known, F.cross_entropy(outputs, classes, reduction="none"), 0.0)

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """The probabilities, which add up to 1."""
        return outputs.softmax(dim=1)


@dataclass(frozen=True, slots=True)
class Value:
    """A number: its mean, learned by squared error."""

    num_outputs: int = 1
    num_labels: int = 1

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """Of the number."""
        return _sums(labels)

    def start(self, statistics: np.ndarray) -> Start:
        """Mean and standard deviation."""
        mean, deviation = _moments(statistics)
        return Start(bias=mean / deviation, spread=deviation)

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """Half the squared error, in standard deviations."""
        return _of_known(_half_square, outputs, labels / spread).sum(dim=1)

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """The number."""
        return outputs * spread


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount that is 0 for many and has a long tail for others: zero-inflated and log-normal.

    Outputs are the logit of there being any, the mean of its logarithm, and the softplus of its deviation, the last two
    in standard deviations of the training labels.

    Source:
        Wang et al. 2019, "A deep probabilistic model for customer lifetime value prediction", eq. 2 to 5.
    """

    num_outputs: int = 3
    num_labels: int = 1

    def statistics(self, labels: np.ndarray) -> np.ndarray:
        """Of whether there is any, and of its logarithm, twice."""
        logs = np.log(np.where(labels > 0, labels, np.nan))
        any_at_all = _sums(np.where(np.isnan(labels), np.nan, labels > 0))
        return np.concatenate([any_at_all, _sums(logs), _sums(logs)], axis=1)

    def start(self, statistics: np.ndarray) -> Start:
        """The log odds of there being any, and mean and deviation of its logarithm."""
        mean, deviation = _moments(statistics[:, 1:2])
        bias = np.concatenate([_log_odds(statistics[:, :1]), mean / deviation, [_UNIT_SOFTPLUS]])
        return Start(bias=bias, spread=np.concatenate([[1.0], deviation, deviation]))

    def loss(self, outputs: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
        """Cross-entropy of there being any, and the log-normal likelihood of how much, up to a constant."""
        known, some = ~labels[:, 0].isnan(), labels[:, 0] > 0
        exists = F.binary_cross_entropy_with_logits(outputs[:, 0], some.float(), reduction="none")
        logs = torch.where(some, labels[:, 0], 1.0).log() / spread[1]
        deviation = F.softplus(outputs[:, 2]).clamp(min=1e-3)
        size = 0.5 * ((logs - outputs[:, 1]) / deviation) ** 2 + deviation.log()
        return torch.where(known, exists + torch.where(some, size, 0.0), 0.0)

    def predict(self, outputs: Tensor, spread: Tensor) -> Tensor:
        """The expected amount."""
        mean, deviation = outputs[:, 1] * spread[1], F.softplus(outputs[:, 2]) * spread[2]
        log_of_mean = (mean + deviation**2 / 2).clamp(max=_LARGEST_LOG)
        return (torch.sigmoid(outputs[:, 0]) * log_of_mean.exp())[:, None]


def answer_kind(answer: str, num_classes: int = 0) -> AnswerKind:
    """The kind of that name (`data_io.question_config.Answer`)."""
    match answer:
        case "binary":
            return Binary()
        case "classes":
            return Classes(num_classes)
        case "labels":
            return Labels(num_classes)
        case "amount":
            return Amount()
        case _:
            return Value()


def starts(kinds: Sequence[AnswerKind], statistics: np.ndarray) -> list[Start]:
    """Where each kind starts, from the statistics [3, O] of all of them side by side."""
    ends = np.cumsum([kind.num_outputs for kind in kinds])
    return [kind.start(part) for kind, part in zip(kinds, np.split(statistics, ends[:-1], axis=1), strict=True)]


def _sums(values: np.ndarray) -> np.ndarray:
    """[3, C] number, sum and sum of squares of the columns of [N, C], NaN left out."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0).astype(np.float64)
    return np.stack([known.sum(axis=0), filled.sum(axis=0), (filled**2).sum(axis=0)])


def _log_odds(statistics: np.ndarray) -> np.ndarray:
    number, total, _ = statistics
    return np.log((total + _PRIOR_COUNT) / (number - total + _PRIOR_COUNT))


def _moments(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    number, total, squares = statistics
    mean = total / np.maximum(number, 1)
    variance = squares / np.maximum(number, 1) - mean**2
    return mean, np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 1e-12)), 1.0)


def _of_known(loss: Callable[..., Tensor], outputs: Tensor, labels: Tensor) -> Tensor:
    """[B, L] a loss where a label is known, else 0, with gradients that are 0 there too."""
    known = ~labels.isnan()
    return torch.where(known, loss(outputs, torch.where(known, labels, 0.0), reduction="none"), 0.0)


def _half_square(outputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(outputs, labels, reduction=reduction) / 2
