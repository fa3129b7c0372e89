"""Losses against torch's own and naive loops: full and sampled softmax, and binary ones."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model import losses
from model.embedding import ItemTable
from model.losses import (
    Correction,
    catalogue_loss,
    gbce_exponent,
    generalised_bce_loss,
    log_partition,
    sampled_softmax_loss,
)

NUM_ITEMS, WIDTH = 7, 4


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CPU_TILE_BYTES", 64)
    monkeypatch.setattr(losses, "_CPU_TILE_STATES", 2)


@pytest.fixture(autouse=True)
def fixed_draws() -> None:
    torch.manual_seed(0)


def make_table(num_rows: int = NUM_ITEMS, width: int = WIDTH) -> ItemTable:
    table = ItemTable(num_rows, width)
    torch.nn.init.normal_(table.weight)
    return table


def plain_loss(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    logits = states @ weight[2:].T
    return F.cross_entropy(logits, targets - 2, reduction="none", label_smoothing=label_smoothing)


def pool_loss(table: ItemTable, states: torch.Tensor, targets: torch.Tensor, pool: list[int], **given: Any) -> Any:
    """Sampled softmax against a pool of which each is expected once."""
    items = torch.tensor(pool)
    log_expected = given.pop("log_expected", torch.zeros(len(pool)))
    correction = Correction(items, targets, log_expected)
    return sampled_softmax_loss(states, table(targets), table(items), correction, **given)


def gradients(
    loss: Callable[..., torch.Tensor], states: torch.Tensor, weight: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """Losses, and gradients of a weighted sum of them by states and weight."""
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    found = loss(states, weight, *rest)
    upstream = torch.linspace(-1, 2, len(found), dtype=found.dtype)
    return found.detach(), *torch.autograd.grad((found * upstream).sum(), (states, weight))


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, a table and targets, of any size; scores of some hundreds are in double precision."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    num_positions, num_rows = draw(st.integers(0, 12)), draw(st.integers(3, 40))
    width, scale = draw(st.integers(1, 6)), draw(st.sampled_from([0.01, 1.0, 10.0]))
    dtype = torch.float64 if scale > 1 else torch.float32
    states = torch.randn(num_positions, width, generator=generator, dtype=dtype) * scale
    weight = torch.randn(num_rows, width, generator=generator, dtype=dtype) * scale
    return states, weight, torch.randint(2, num_rows, (num_positions,), generator=generator)


@settings(deadline=None)
@given(
    problem=problems(),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    tile_bytes=st.sampled_from([16, 256, 2**22]),
    tile_states=st.sampled_from([1, 5, 1024]),
)
def test_loss_and_gradients_are_those_of_plain_cross_entropy_for_any_size_of_tile(
    problem: tuple[torch.Tensor, ...], label_smoothing: float, tile_bytes: int, tile_states: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_CPU_TILE_BYTES", tile_bytes)
        patch.setattr(losses, "_CPU_TILE_STATES", tile_states)
        found = gradients(catalogue_loss, *problem, label_smoothing)
    for ours, plain in zip(found, gradients(plain_loss, *problem, label_smoothing), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("small_tiles")
def test_gradient_is_right_to_double_precision() -> None:
    states = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    items, log_expected = torch.randint(2, 9, (9,)), torch.randn(9, dtype=torch.float64)
    correction = Correction(items, torch.randint(2, 9, (5,)), log_expected)
    assert torch.autograd.gradcheck(lambda s, w: log_partition(s, w, first=2), (states, weight))
    assert torch.autograd.gradcheck(lambda s, w: log_partition(s, w, correction=correction), (states, weight))


@pytest.mark.usefixtures("small_tiles")
def test_bfloat16_is_summed_in_float32() -> None:
    states, weight = torch.randn(6, 16).bfloat16(), torch.randn(500, 16).bfloat16()
    targets = torch.randint(2, 500, (6,))
    ours, of_states, of_weight = gradients(catalogue_loss, states, weight, targets)
    plain = gradients(plain_loss, states.float(), weight.float(), targets)
    assert ours.dtype == torch.float32
    assert of_states.dtype == of_weight.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_states.float(), plain[1], atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(of_weight.float(), plain[2], atol=2e-2, rtol=1e-2)


def test_autocast_changes_nothing_on_a_cpu() -> None:
    problem = torch.randn(6, 16), torch.randn(50, 16), torch.randint(2, 50, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(catalogue_loss, *problem)
    for ours, plain in zip(found, gradients(plain_loss, *problem), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_scores_of_the_catalogue_are_never_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CPU_TILE_BYTES", 4 * 1000)
    states, weight = torch.randn(100, 2), torch.randn(3000, 2)
    targets = torch.randint(2, 3000, (100,))
    with LargestTensor() as largest:
        gradients(catalogue_loss, states, weight, targets)
    assert largest.numel == 3000 * 2, "the table and its gradient, and no 100 times 3000 scores"
    with LargestTensor() as largest:
        gradients(plain_loss, states, weight, targets)
    assert largest.numel == 100 * 2998


@pytest.mark.parametrize("num_at_once", [128, 150, 1000])
@pytest.mark.parametrize("weights", [torch.full((300,), 0.5), torch.linspace(0, 1, 300)], ids=["alike", "unlike"])
def test_gradients_made_with_the_losses_are_those_made_after_them(
    monkeypatch: pytest.MonkeyPatch, weights: torch.Tensor, num_at_once: int
) -> None:
    monkeypatch.setattr(losses, "_CPU_WHOLE_BYTES", num_at_once * 4 * (NUM_ITEMS - 2))
    states, weight = torch.randn(300, WIDTH, requires_grad=True), torch.randn(NUM_ITEMS, WIDTH, requires_grad=True)
    targets = torch.randint(2, NUM_ITEMS, (300,))
    found = []
    for alike in (False, True):
        loss = catalogue_loss(states, weight, targets, 0.1, weighed_alike=alike)
        found.append((loss, *torch.autograd.grad((loss * weights).sum(), (states, weight))))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_a_loss_may_be_gone_through_backwards_twice() -> None:
    states, weight = torch.randn(9, WIDTH, requires_grad=True), torch.randn(NUM_ITEMS, WIDTH)
    loss = catalogue_loss(states, weight, torch.full((9,), 3), weighed_alike=True).sum() * 2
    first, second = (torch.autograd.grad(loss, states, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_padding_and_unknown_get_no_gradient_and_do_not_count() -> None:
    states, weight, targets = torch.randn(5, WIDTH), torch.randn(NUM_ITEMS, WIDTH), torch.tensor([2, 3, 4, 5, 6])
    moved = weight.clone()
    moved[:2] = 100.0
    loss, _, of_weight = gradients(catalogue_loss, states, weight, targets, 0.1)
    assert (of_weight[:2] == 0).all()
    assert (of_weight[2:] != 0).all()
    assert torch.equal(catalogue_loss(states, moved, targets, 0.1), loss)


@pytest.mark.parametrize("target", [0, 1])
def test_target_that_is_no_item_costs_infinitely_much(target: int) -> None:
    loss = catalogue_loss(torch.randn(2, WIDTH), torch.randn(NUM_ITEMS, WIDTH), torch.tensor([target, 3]))
    assert loss.isinf().tolist() == [True, False]


def test_frozen_table_gets_no_gradient() -> None:
    states, weight = torch.randn(3, WIDTH, requires_grad=True), torch.randn(NUM_ITEMS, WIDTH)
    catalogue_loss(states, weight, torch.tensor([2, 3, 4])).sum().backward()
    assert states.grad is not None
    assert weight.grad is None


@settings(deadline=None)
@given(problem=problems(), cut=st.integers(0, 12))
def test_loss_of_a_position_does_not_depend_on_the_others(problem: tuple[torch.Tensor, ...], cut: int) -> None:
    states, weight, targets = problem
    items = torch.arange(2, len(weight))
    pool = weight[2:]

    def each(rows: slice) -> list[torch.Tensor]:
        own, positives, wanted = states[rows], weight[targets[rows]], targets[rows]
        correction = Correction(items, wanted, torch.zeros(len(items)))
        return [
            catalogue_loss(own, weight, wanted, 0.1),
            sampled_softmax_loss(own, positives, pool, correction, len(pool), 0.1),
            generalised_bce_loss(own, positives, pool, items == wanted[:, None], 0.5),
        ]

    for whole, first, second in zip(each(slice(None)), each(slice(cut)), each(slice(cut, None)), strict=True):
        torch.testing.assert_close(whole, torch.cat([first, second]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_pool_of_every_item_once_gives_the_full_softmax(label_smoothing: float) -> None:
    table, states, targets = make_table(), torch.randn(5, WIDTH), torch.tensor([2, 3, 4, 5, 6])
    loss = pool_loss(table, states, targets, [2, 3, 4, 5, 6], num_even=5, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, plain_loss(states, table.weight, targets, label_smoothing))


def test_sampled_loss_of_a_case_by_hand() -> None:
    table = ItemTable(5, 2)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0, 0], [9, 9], [1, 0], [0, 1], [1, 1]]))
    log_expected = torch.tensor([0.5, 2.0]).log()
    loss = pool_loss(table, torch.tensor([[2.0, 1.0]]), torch.tensor([2]), [3, 4], log_expected=log_expected)
    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) / 0.5 + math.exp(3) / 2))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_gradient_is_that_of_the_papers_weighted_loss() -> None:
    """arXiv 2507.09331: (1 - p) held constant, times the target's log-share among negatives alone."""
    weight, targets, items = torch.randn(NUM_ITEMS, WIDTH), torch.tensor([2, 3, 4]), torch.tensor([5, 2, 6, 5, 3])
    log_expected = torch.randn(5)

    def ours(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sampled_softmax_loss(states, weight[targets], weight[items], Correction(items, targets, log_expected))

    def paper(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        positive = (states * weight[targets]).sum(dim=1)
        scores = states @ weight[items].T - log_expected
        against = scores.masked_fill(items == targets[:, None], float("-inf")).logsumexp(dim=1)
        uncertainty = torch.sigmoid(against - positive).detach()
        return uncertainty * (against - positive)

    states = torch.randn(3, WIDTH)
    for one, other in zip(gradients(ours, states, weight)[1:], gradients(paper, states, weight)[1:], strict=True):
        torch.testing.assert_close(one, other)


@settings(deadline=None)
@given(
    pool=st.lists(st.integers(2, NUM_ITEMS - 1), min_size=1, max_size=8),
    hits=st.integers(1, 5),
    target=st.integers(2, NUM_ITEMS - 1),
)
def test_target_never_counts_among_its_own_negatives(pool: list[int], hits: int, target: int) -> None:
    states, weight, targets = torch.randn(1, WIDTH), torch.randn(NUM_ITEMS, WIDTH), torch.tensor([target])

    def softmax(states: torch.Tensor, weight: torch.Tensor, pool: list[int]) -> torch.Tensor:
        items = torch.tensor(pool)
        correction = Correction(items, targets, torch.zeros(len(items)))
        return sampled_softmax_loss(states, weight[targets], weight[items], correction)

    def binary(states: torch.Tensor, weight: torch.Tensor, pool: list[int]) -> torch.Tensor:
        items = torch.tensor(pool)
        loss = generalised_bce_loss(states, weight[targets], weight[items], items == targets[:, None], 0.5)
        return loss * (len(items) + 1)

    for loss in (softmax, binary):
        found = [gradients(loss, states, weight, p) for p in (pool, [target] * hits + pool)]
        for without, with_target in zip(*found, strict=True):
            torch.testing.assert_close(with_target, without)


def test_pool_of_nothing_but_the_target_gives_no_loss_and_finite_gradient() -> None:
    table, states = make_table(), torch.randn(2, WIDTH, requires_grad=True)
    loss = pool_loss(table, states, torch.tensor([4, 4]), [4, 4, 4])
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert states.grad is not None
    assert (states.grad == 0).all()
    assert table.weight.grad is not None
    assert (table.weight.grad == 0).all()


@settings(deadline=None)
@given(num_negatives=st.integers(1, 2000), num_items=st.integers(2, 1000), calibration=st.floats(0, 1, allow_nan=False))
def test_exponent_goes_from_one_to_the_share_of_items_that_are_drawn(
    num_negatives: int, num_items: int, calibration: float
) -> None:
    """The paper's beta, multiplied out."""
    alpha = min(1.0, num_negatives / (num_items - 1))
    expected = calibration * alpha + (1 - calibration)
    assert gbce_exponent(num_negatives, num_items, calibration) == pytest.approx(expected)


def test_without_calibration_gbce_is_binary_cross_entropy() -> None:
    table, states, targets = make_table(), torch.randn(3, WIDTH), torch.tensor([2, 3, 4])
    items = torch.tensor([5, 6, 6, 5])
    exponent = gbce_exponent(len(items), NUM_ITEMS - 2, 0.0)
    none = torch.zeros(3, 4, dtype=torch.bool)
    loss = generalised_bce_loss(states, table(targets), table(items), none, exponent)
    scores = torch.cat([(states * table(targets)).sum(dim=1, keepdim=True), states @ table(items).T], dim=1)
    labels = torch.tensor([[1.0, 0, 0, 0, 0]]).expand(3, 5)
    expected = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(dim=1)
    torch.testing.assert_close(loss, expected)


@settings(deadline=None)
@given(problem=problems(), exponent=st.floats(0.01, 1))
def test_gbce_is_that_of_a_naive_loop(problem: tuple[torch.Tensor, ...], exponent: float) -> None:
    states, weight, targets = (part.double() if part.is_floating_point() else part for part in problem)
    items = torch.arange(2, len(weight))
    is_target = items == targets[:, None]
    found = generalised_bce_loss(states, weight[targets], weight[items], is_target, exponent)
    for position, target in enumerate(targets.tolist()):
        scores = states[position] @ weight.T
        expected = -exponent * F.logsigmoid(scores[target])
        for item in range(2, len(weight)):
            if item != target:
                expected = expected - F.logsigmoid(-scores[item])
        torch.testing.assert_close(found[position], expected / (len(items) + 1), atol=1e-4, rtol=1e-4)
