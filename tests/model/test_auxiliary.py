"""Auxiliary losses against torch's own, heads that do not see what they are asked, and views compared by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_io.batch import ELAPSED, ITEM_INDEX, PADDING_MASK, TARGET_ACTION_INDEX, TARGET_ITEM_INDEX, Batch
from model.auxiliary import AuxiliaryLosses, TargetRates
from model.config import AugmentationSettings, AuxiliarySettings
from model.contrastive import contrastive_losses, make_views
from model.encoder import ClickformerEncoder, TensorBatch, event_inputs
from model.engine import to_tensors
from model.loss_config import FullSoftmax
from model.objectives import VIEWS, Extras, ItemLoss, MaskedItemObjective, NextItemObjective, generator_of
from model.readout import READOUT_INPUTS

NUM_ITEMS, NUM_ACTIONS, WIDTH = 12, 4, 8
CPU = torch.device("cpu")
RATES = TargetRates(per_event=0.5, per_window=2.0)
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]
SETTINGS = [
    AuxiliarySettings(next_action=2.0),
    AuxiliarySettings(time_to_next=2.0),
    AuxiliarySettings(contrastive=2.0),
    AuxiliarySettings(next_action=1.0, time_to_next=1.0, contrastive=1.0),
]


def make_losses(settings: AuxiliarySettings) -> AuxiliaryLosses:
    torch.manual_seed(1)
    return AuxiliaryLosses(settings, WIDTH, NUM_ACTIONS, RATES)


def make_objective(encoder: ClickformerEncoder, auxiliary: AuxiliarySettings | None) -> NextItemObjective:
    extras = Extras(auxiliary=make_losses(auxiliary) if auxiliary else None)
    return NextItemObjective(encoder, ItemLoss(FullSoftmax(), torch.ones(NUM_ITEMS)), extras)


def with_actions(batch: Batch) -> TensorBatch:
    tensors = to_tensors(batch, CPU)
    return tensors | {TARGET_ACTION_INDEX: torch.where(tensors[PADDING_MASK], 2 + tensors[ITEM_INDEX] % 2, 0)}


def event_states(encoder: ClickformerEncoder, batch: TensorBatch) -> Tensor:
    known = {name: tensor for name, tensor in event_inputs(batch).items() if name not in READOUT_INPUTS}
    return encoder.event_states(**known)


def part(batch: TensorBatch, first: int, end: int) -> TensorBatch:
    return {name: tensor[first:end] for name, tensor in batch.items()}


@pytest.mark.parametrize("name", ["next_action", "time_to_next"])
def test_loss_of_the_next_event_is_torch_cross_entropy(
    make_encoder: MakeEncoder, make_batch: MakeBatch, name: str
) -> None:
    encoder, batch = make_encoder(), with_actions(make_batch(4, 2, 0))
    losses = make_losses(AuxiliarySettings.model_validate({name: 3.0}))
    head = losses.action_head if name == "next_action" else losses.time_head
    target = batch[TARGET_ACTION_INDEX if name == "next_action" else ELAPSED]
    events, asked = event_states(encoder, batch), batch[PADDING_MASK].clone()
    asked[0, 1] = False
    expected = sum(
        F.cross_entropy(head(events[row, place]), target[row, place])  # pyright: ignore[reportOptionalCall]
        for row, place in asked.nonzero().tolist()
    )
    found = losses.of_events(batch, asked, torch.tensor(6))(events)
    assert list(found) == [name]
    torch.testing.assert_close(found[name], expected * 3.0 * RATES.per_event * 6 / 5)


def test_no_head_sees_the_next_event_or_the_time_until_it(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    for block in ("transformer", "ligr", "hstu", "gru"):
        encoder, batch = make_encoder(block=block), with_actions(make_batch(6))
        other = with_actions(make_batch(6, seed=1))
        for place in range(5):
            changed = {name: tensor.clone() for name, tensor in batch.items()}
            for name, tensor in other.items():
                changed[name][:, place + 1 :] = tensor[:, place + 1 :]
            changed[ELAPSED] = other[ELAPSED]
            before, after = event_states(encoder, batch), event_states(encoder, changed)
            torch.testing.assert_close(before[:, : place + 1], after[:, : place + 1], atol=1e-6, rtol=0)
            assert not torch.equal(before[:, place + 1], after[:, place + 1])


def test_states_before_the_readout_are_what_it_reads(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder, batch = make_encoder(), to_tensors(make_batch(5, 3), CPU)
    states = encoder.read_out(event_states(encoder, batch), batch[ELAPSED])
    assert torch.equal(encoder(**event_inputs(batch)), states)


def test_weights_of_0_make_no_head_and_the_same_loss(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    batch = to_tensors(make_batch(5, 3), CPU)
    off = make_objective(make_encoder(), AuxiliarySettings())
    assert [name for name, _ in off.named_parameters() if not name.startswith("encoder.")] == []
    assert torch.equal(off(batch, seed=0), make_objective(make_encoder(), None)(batch, seed=0))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_padding_changes_no_loss(make_encoder: MakeEncoder, make_batch: MakeBatch, settings: AuxiliarySettings) -> None:
    settings = settings.model_copy(update={"contrastive_views": AugmentationSettings(crop=0.4)})
    objective, batch = make_objective(make_encoder(), settings), with_actions(make_batch(4, 2))
    padded = {name: F.pad(tensor, (0, 3)) for name, tensor in batch.items()}
    torch.testing.assert_close(objective(batch, seed=0), objective(padded, seed=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_two_micro_batches_give_the_summed_loss_of_one_batch(
    make_encoder: MakeEncoder, make_batch: MakeBatch, settings: AuxiliarySettings
) -> None:
    objective, batch = make_objective(make_encoder(), settings), with_actions(make_batch(4, 2, 5, 3))
    batch[TARGET_ITEM_INDEX][:2] = 0  # targets of items are not spread like events
    parts = objective(part(batch, 0, 2), seed=0) + objective(part(batch, 2, 4), seed=1)
    torch.testing.assert_close(objective(batch, seed=0), parts, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_batch_of_padding_has_loss_0_and_reaches_every_head(
    make_encoder: MakeEncoder, make_batch: MakeBatch, settings: AuxiliarySettings
) -> None:
    objective = make_objective(make_encoder(), settings)
    loss = objective(with_actions(make_batch(0, 0)), seed=0)
    loss.backward()
    assert loss == 0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is None or not parameter.grad.any()
        assert parameter.grad is not None or not name.startswith("auxiliary")


def test_contrastive_loss_of_two_users_by_hand() -> None:
    """Views at angles 0 and 60 degrees, 90 and 90: each user's own other view against the two of the other user."""
    angles = torch.tensor([0.0, math.pi / 2, math.pi / 3, math.pi / 2])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    losses = contrastive_losses(vectors, torch.tensor([True, True]), temperature=0.5)

    def loss(own: float, others: tuple[float, float]) -> float:
        return -math.log(math.exp(own / 0.5) / sum(math.exp(cosine / 0.5) for cosine in (own, *others)))

    first = (loss(0.5, (0, 0)) + loss(0.5, (math.sqrt(3) / 2, math.sqrt(3) / 2))) / 2
    second = loss(1, (0, math.sqrt(3) / 2))
    torch.testing.assert_close(losses, torch.tensor([first, second]))


def test_padding_is_no_negative_and_one_user_alone_has_nothing_to_tell() -> None:
    vectors, real = torch.randn(6, 4), torch.tensor([True, False, True])
    among_real = contrastive_losses(vectors[[0, 2, 3, 5]], torch.tensor([True, True]), 0.1)
    torch.testing.assert_close(contrastive_losses(vectors, real, 0.1), torch.tensor([among_real[0], 0, among_real[1]]))
    alone = contrastive_losses(vectors, torch.tensor([False, True, False]), 0.1)
    torch.testing.assert_close(alone, torch.zeros(3))


def test_views_differ_and_do_not_tell_the_time_of_the_next_event(make_batch: MakeBatch) -> None:
    batch = to_tensors(make_batch(8, 0, 6), CPU)
    views = make_views(batch, AugmentationSettings(crop=0.5), torch.Generator().manual_seed(0))
    assert all(len(tensor) == 6 for tensor in views.values())
    assert torch.equal(views[ELAPSED], views[PADDING_MASK].long())
    assert views[PADDING_MASK].sum(dim=1).tolist() == [4, 0, 3, 4, 0, 3]
    first, second = views[ITEM_INDEX].chunk(2)
    assert not torch.equal(first, second)


def test_contrastive_loss_stands_beside_that_of_either_objective(
    make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    batch, settings = to_tensors(make_batch(6, 3, 0), CPU), AuxiliarySettings(contrastive=0.5)
    for attention, kind, share in (("causal", NextItemObjective, ()), ("bidirectional", MaskedItemObjective, (0.5,))):
        encoder, item_loss = make_encoder(attention=attention), ItemLoss(FullSoftmax(), torch.ones(NUM_ITEMS))
        with_users = kind(encoder, item_loss, *share, Extras(auxiliary=make_losses(settings)))
        alone = kind(encoder, item_loss, *share)
        views = make_views(batch, settings.contrastive_views, generator_of(5, VIEWS))
        losses = contrastive_losses(encoder.user_states(views), batch[PADDING_MASK].any(dim=1), 0.1)
        expected = alone(batch, seed=5) + 0.5 * RATES.per_window * losses.sum()
        torch.testing.assert_close(with_users(batch, seed=5), expected)
        assert with_users(batch, seed=5) == with_users(batch, seed=5)


def test_the_parts_of_a_loss_are_what_it_sums_to(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective, batch = make_objective(make_encoder(), SETTINGS[-1]), with_actions(make_batch(4, 2))
    loss = objective(batch, seed=0) + objective(batch, seed=1)
    parts = objective.take_parts()
    assert list(parts) == ["items", "next_action", "time_to_next", "contrastive"]
    assert sum(parts.values()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert objective.take_parts() == {}
