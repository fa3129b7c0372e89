"""Objectives: summed losses against torch's own, for any padding and any cut into micro-batches."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from data_io.batch import ITEM_INDEX, PADDING_MASK, TARGET_ITEM_INDEX, Batch
from data_io.config import SettingsError
from model.encoder import ClickformerEncoder, TensorBatch, choosable_events, event_inputs
from model.engine import to_tensors
from model.loss_config import AutoSoftmax, BinaryLoss, FullSoftmax, SampledSoftmax, SoftmaxSettings
from model.objectives import ItemLoss, MaskedItemObjective, NextItemObjective

NUM_ITEMS = 12
CPU = torch.device("cpu")
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]
LOSSES = [
    FullSoftmax(),
    FullSoftmax(label_smoothing=0.1),
    SampledSoftmax(num_uniform=4, num_in_batch=4),
    SampledSoftmax(num_uniform=4, num_in_batch=4, label_smoothing=0.1),
    BinaryLoss(num_negatives=4),
]
each_loss = pytest.mark.parametrize("softmax", LOSSES, ids=str)


def item_loss(softmax: SoftmaxSettings | None = None) -> ItemLoss:
    return ItemLoss(softmax or FullSoftmax(), torch.ones(NUM_ITEMS))


def can_repeat(softmax: SoftmaxSettings) -> bool:
    return not isinstance(softmax, BinaryLoss)


def rows(batch: TensorBatch, first: int, end: int) -> TensorBatch:
    return {name: tensor[first:end] for name, tensor in batch.items()}


def with_item(batch: TensorBatch, place: int, item: int) -> TensorBatch:
    items = batch[ITEM_INDEX].clone()
    items[:, place] = item
    return batch | {ITEM_INDEX: items}


def test_full_softmax_is_torch_cross_entropy_over_real_items(make_encoder: MakeEncoder) -> None:
    encoder, states, targets = make_encoder(), torch.randn(4, 8), torch.tensor([2, 5, 11, 5])
    logits = states @ encoder.item_table.weight[2:].T
    expected = F.cross_entropy(logits, targets - 2, reduction="none")
    torch.testing.assert_close(item_loss()(encoder, states, targets, seed=0), expected)


@pytest.mark.parametrize("known", [True, False])
def test_training_loss_of_every_target_is_its_ranking_score(
    make_encoder: MakeEncoder, make_batch: MakeBatch, known: bool
) -> None:
    encoder, batch = make_encoder(), to_tensors(make_batch(4), CPU)
    if not known:
        batch[ITEM_INDEX] = torch.ones_like(batch[ITEM_INDEX])
    _, scores = encoder.rank_items(batch)
    for target in range(2, NUM_ITEMS):
        targets = torch.tensor([[0, 0, 0, target]])
        loss = NextItemObjective(encoder, item_loss())(batch | {TARGET_ITEM_INDEX: targets}, seed=0)
        torch.testing.assert_close(-loss, scores[0, target], atol=1e-5, rtol=1e-5)


@each_loss
def test_without_repeats_the_loss_is_that_of_choosing_anew(
    make_encoder: MakeEncoder, make_batch: MakeBatch, softmax: SoftmaxSettings
) -> None:
    encoder, batch = make_encoder(repeats=False), to_tensors(make_batch(4, 2), CPU)
    objective = NextItemObjective(encoder, item_loss(softmax))
    wanted = batch[TARGET_ITEM_INDEX] > 0
    states, targets = encoder(**event_inputs(batch))[wanted], batch[TARGET_ITEM_INDEX][wanted]
    torch.testing.assert_close(objective(batch, seed=3), item_loss(softmax)(encoder, states, targets, 3).sum())


def test_binary_loss_is_not_mixed_with_repeats(make_encoder: MakeEncoder) -> None:
    with pytest.raises(SettingsError, match=r"kind gbce gives no probability .* set encoder\.repeats to false"):
        NextItemObjective(make_encoder(), item_loss(BinaryLoss()))


@pytest.mark.parametrize(("full_up_to", "kind"), [(NUM_ITEMS - 2, "full"), (NUM_ITEMS - 3, "sampled")])
def test_auto_is_full_up_to_so_many_items_and_sampled_beyond(full_up_to: int, kind: str) -> None:
    chosen = item_loss(AutoSoftmax(full_up_to=full_up_to, num_uniform=3, num_in_batch=5, label_smoothing=0.2)).softmax
    assert chosen.kind == kind
    assert chosen in (
        FullSoftmax(label_smoothing=0.2),
        SampledSoftmax(num_uniform=3, num_in_batch=5, label_smoothing=0.2),
    )


@pytest.mark.parametrize("calibration", [0.0, 1.0])
def test_binary_loss_of_even_scores_is_known(make_encoder: MakeEncoder, calibration: float) -> None:
    """Every probability is a half, and alpha is three of nine."""
    encoder, states = make_encoder(repeats=False), torch.zeros(200, 8)
    targets = torch.full((200,), 11)
    settings = BinaryLoss(num_negatives=3, calibration=calibration)
    loss = item_loss(settings)(encoder, states, targets, seed=0)
    pool = torch.randint(2, NUM_ITEMS, (3,), generator=torch.Generator().manual_seed(0))
    exponent = 1 - calibration + calibration * 3 / 9
    expected = (exponent + int((pool != 11).sum())) * math.log(2) / 4
    torch.testing.assert_close(loss, torch.full((200,), expected))


def test_sampled_negatives_follow_the_seed(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective = NextItemObjective(make_encoder(), item_loss(SampledSoftmax(num_uniform=4, num_in_batch=4)))
    batch = to_tensors(make_batch(4, 2), CPU)
    assert objective(batch, seed=1) == objective(batch, seed=1)
    assert objective(batch, seed=1) != objective(batch, seed=2)


def test_two_micro_batches_give_the_summed_loss_and_gradient_of_one_batch(
    make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    whole, halves = NextItemObjective(make_encoder(), item_loss()), NextItemObjective(make_encoder(), item_loss())
    batch = to_tensors(make_batch(4, 2, 5, 3), CPU)
    one = whole(batch, seed=0)
    two = halves(rows(batch, 0, 2), seed=0) + halves(rows(batch, 2, 4), seed=1)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    one.backward()
    two.backward()
    for before, after in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(before.grad, after.grad, atol=1e-4, rtol=1e-4)


def test_padding_changes_no_loss(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective, batch = NextItemObjective(make_encoder(), item_loss()), to_tensors(make_batch(4, 2), CPU)
    padded = {name: F.pad(tensor, (0, 3, 0, 1)) for name, tensor in batch.items()}
    torch.testing.assert_close(objective(batch, seed=0), objective(padded, seed=0), atol=1e-4, rtol=0)


@each_loss
def test_batch_without_target_has_loss_0_and_still_runs_backward(
    make_encoder: MakeEncoder, make_batch: MakeBatch, softmax: SoftmaxSettings
) -> None:
    causal, both = (make_encoder(attention=way, repeats=can_repeat(softmax)) for way in ("causal", "bidirectional"))
    for objective in (
        NextItemObjective(causal, item_loss(softmax)),
        MaskedItemObjective(both, item_loss(softmax), 0.5),
    ):
        loss = objective(to_tensors(make_batch(0), CPU), seed=0)
        loss.backward()
        assert loss == 0
        assert all(p.grad is None or (p.grad == 0).all() for p in objective.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_hidden_items_stand_for_all_known_items(make_encoder: MakeEncoder, make_batch: MakeBatch, seed: int) -> None:
    """With even scores and a shut gate each known item costs log(V - 2), whichever ones are hidden."""
    encoder, batch = make_encoder(attention="bidirectional"), with_item(to_tensors(make_batch(7, 5), CPU), 3, 1)
    torch.nn.init.zeros_(encoder.item_table.weight)
    torch.nn.init.constant_(encoder.repeat_choice.gate.bias, -1000.0)
    known = int((batch[PADDING_MASK] & (batch[ITEM_INDEX] >= 2)).sum())
    loss = MaskedItemObjective(encoder, item_loss(), 0.5)(batch, seed)
    assert known == 10
    torch.testing.assert_close(loss, torch.tensor(known * math.log(NUM_ITEMS - 2)))


def test_masked_loss_is_that_of_the_hidden_positions_alone(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective = MaskedItemObjective(make_encoder(attention="bidirectional"), item_loss(), 0.5)
    batch = to_tensors(make_batch(5), CPU)
    hidden = torch.rand(1, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    alone = objective.mixture_loss(event_inputs(batch) | {"hidden": hidden}, batch[ITEM_INDEX] * hidden, seed=1)
    assert 0 < hidden.sum() < 5
    torch.testing.assert_close(objective(batch, seed=1), alone * 5 / hidden.sum())


def test_hidden_items_leak_into_no_state_and_no_loss(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective = MaskedItemObjective(make_encoder(attention="bidirectional"), item_loss(), 0.5)
    batch, hidden, target = to_tensors(make_batch(3), CPU), torch.tensor([[False, True, False]]), 7
    targets = hidden * target
    inputs = [event_inputs(with_item(batch, 1, item)) | {"hidden": hidden} for item in (target, 11)]
    assert torch.equal(objective.encoder(**inputs[0]), objective.encoder(**inputs[1]))
    assert objective.mixture_loss(inputs[0], targets, seed=0) == objective.mixture_loss(inputs[1], targets, seed=0)
    assert torch.equal(choosable_events(inputs[0]), ~hidden)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@each_loss
def test_bfloat16_loss_and_gradient_on_a_gpu_are_finite_and_near_the_cpus(
    make_encoder: MakeEncoder, make_batch: MakeBatch, softmax: SoftmaxSettings, attention: str
) -> None:
    encoder = make_encoder(attention=attention, repeats=can_repeat(softmax))
    objective, batch = NextItemObjective(encoder, item_loss(softmax)), make_batch(4, 2, 0, 5)
    expected = float(objective(to_tensors(batch, CPU), seed=0))
    objective.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = objective(to_tensors(batch, torch.device("cuda")), seed=0)
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
