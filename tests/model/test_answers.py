"""Kinds of answers: losses against torch's own distributions, priors that fit, NaN that costs nothing."""

import numpy as np
import pytest
import torch
from torch.distributions import LogNormal
from torch.nn import functional as F

from model.answers import Amount, AnswerKind, Binary, Classes, Labels, Value, answer_kind, starts

KINDS: list[tuple[AnswerKind, list[list[float]]]] = [
    (Binary(), [[1.0], [0.0], [1.0], [1.0]]),
    (Classes(3), [[0.0], [2.0], [2.0], [1.0]]),
    (Labels(2), [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]),
    (Value(), [[3.0], [5.0], [4.0], [4.5]]),
    (Amount(), [[0.0], [10.0], [100.0], [0.0]]),
]


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_a_missing_label_costs_nothing_and_gives_no_gradient(kind: AnswerKind, labels: list[list[float]]) -> None:
    outputs = torch.randn(4, kind.num_outputs, requires_grad=True)
    given = torch.tensor(labels)
    given[1] = float("nan")
    losses = kind.loss(outputs, given, torch.ones(kind.num_outputs))
    losses.sum().backward()
    assert losses[1] == 0
    assert losses.isfinite().all()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert (outputs.grad[1] == 0).all()
    assert (outputs.grad[0] != 0).any()


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_outputs_start_where_the_mean_answer_is(kind: AnswerKind, labels: list[list[float]]) -> None:
    many = np.repeat(np.array(labels), 500, axis=0)
    (start,) = starts([kind], kind.statistics(many))
    bias, spread = (torch.from_numpy(part).float() for part in (start.bias, start.spread))
    predicted = kind.predict(bias.expand(1, -1), spread)[0].numpy()
    if isinstance(kind, Classes):
        expected = np.array([0.25, 0.25, 0.5])
    elif isinstance(kind, Amount):  # half of them log-normal about 31.6 with a deviation of log(10) / 2
        expected = 0.5 * np.exp([np.log(1000) / 2 + np.log(10) ** 2 / 8])
    else:
        expected = many.mean(axis=0)
    np.testing.assert_allclose(predicted, expected, rtol=2e-3)
    shift = bias.clone().requires_grad_()
    kind.loss(shift.expand(len(many), -1), torch.from_numpy(many).float(), spread).mean().backward()
    assert shift.grad is not None
    assert shift.grad.abs().max() < 2e-3, "no change of all outputs alike would be better"


def test_statistics_leave_out_what_is_not_known() -> None:
    labels = np.array([[1.0], [np.nan], [0.0]])
    assert Binary().statistics(labels)[:, 0].tolist() == [2, 1, 1]
    assert Classes(2).statistics(labels)[:2].tolist() == [[2, 2], [1, 1]]


def test_binary_and_classes_are_torch_s_cross_entropies() -> None:
    outputs, labels = torch.randn(5, 3), torch.tensor([[0.0], [2.0], [1.0], [1.0], [0.0]])
    torch.testing.assert_close(
        Classes(3).loss(outputs, labels, torch.ones(3)),
        F.cross_entropy(outputs, labels[:, 0].long(), reduction="none"),
    )
    one = outputs[:, :1]
    expected = F.binary_cross_entropy_with_logits(one, (labels > 0).float(), reduction="none")[:, 0]
    torch.testing.assert_close(Binary().loss(one, (labels > 0).float(), torch.ones(1)), expected)


def test_an_amount_is_log_normal_where_there_is_any() -> None:
    outputs, labels = torch.randn(6, 3), torch.tensor([[0.0], [3.0], [0.5], [0.0], [70.0], [9.0]])
    spread = torch.tensor([1.0, 2.0, 2.0])
    deviation = F.softplus(outputs[:, 2])
    some = labels[:, 0] > 0
    exists = F.binary_cross_entropy_with_logits(outputs[:, 0], some.float(), reduction="none")
    law = LogNormal(2.0 * outputs[:, 1], 2.0 * deviation)
    size = torch.where(some, -law.log_prob(labels[:, 0].clamp(min=1e-9)), 0.0)
    constant = torch.where(some, labels[:, 0].clamp(min=1e-9).log() + 0.5 * np.log(2 * np.pi) + np.log(2.0), 0.0)
    torch.testing.assert_close(Amount().loss(outputs, labels, spread), exists + size - constant)
    expected = torch.sigmoid(outputs[:, 0]) * law.mean
    torch.testing.assert_close(Amount().predict(outputs, spread)[:, 0], expected)


def test_each_name_has_its_kind() -> None:
    found = [answer_kind(name, 4) for name in ("binary", "classes", "labels", "amount", "value")]
    assert found == [Binary(), Classes(4), Labels(4), Amount(), Value()]
