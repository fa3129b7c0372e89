"""Adversarial steps and changed windows: worse than chance, bounded, and without a trace in other gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from data_io.batch import PADDING_MASK, TARGET_ITEM_INDEX, Batch
from model.adversarial import adversarial_loss, unit_of_users
from model.config import AugmentationSettings
from model.encoder import ClickformerEncoder, TensorBatch, event_inputs
from model.engine import to_tensors
from model.loss_config import BinaryLoss, FullSoftmax
from model.objectives import Extras, ItemLoss, MaskedItemObjective, NextItemObjective

NUM_ITEMS, EPSILON = 12, 1e-3
CPU = torch.device("cpu")
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]


def item_loss() -> ItemLoss:
    return ItemLoss(FullSoftmax(), torch.ones(NUM_ITEMS))


def perturbations(encoder: ClickformerEncoder, objective: nn.Module, batch: Batch) -> list[Tensor | None]:
    """What the event vectors are moved by in each pass of a loss."""
    seen: list[Tensor | None] = []
    original = encoder.event_states

    def watch(*args: Tensor, perturbation: Tensor | None = None, **kwargs: Tensor) -> Tensor:
        seen.append(None if perturbation is None else perturbation.detach().clone())
        return original(*args, perturbation=perturbation, **kwargs)

    encoder.event_states = watch  # pyright: ignore[reportAttributeAccessIssue]
    objective(to_tensors(batch, CPU), seed=0)
    return seen


def loss_when_moved(encoder: ClickformerEncoder, batch: TensorBatch, by: Tensor) -> Tensor:
    hook = encoder.event_embedding.register_forward_hook(lambda module, inputs, vectors: vectors + by)
    loss = NextItemObjective(encoder, item_loss())(batch, seed=0)
    hook.remove()
    return loss


def test_the_worst_step_of_a_quadratic_is_along_its_gradient() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    start = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])

    def loss_at(moved: Tensor | None) -> Tensor:
        return weight * (start if moved is None else start + moved).square().sum()

    loss = adversarial_loss(loss_at, torch.zeros(2, 1, 2), 1.0)
    assert weight.grad is None, "looking for the direction leaves no gradient"
    torch.testing.assert_close(loss, weight * (25.0 + 36.0) / 2)
    loss.backward()
    torch.testing.assert_close(weight.grad, torch.tensor(30.5))


def test_each_user_has_a_step_of_its_own_length_1() -> None:
    gradient = torch.randn(3, 4, 5) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    gradient[1] = 0
    lengths = unit_of_users(gradient).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("block", ["transformer", "hstu", "gru"])
def test_the_worst_step_raises_the_loss_more_than_noise_of_the_same_length(
    make_encoder: MakeEncoder, make_batch: MakeBatch, block: str
) -> None:
    encoder, arrays = make_encoder(block=block), make_batch(6, 3, 0)
    batch = to_tensors(arrays, CPU)
    plain = NextItemObjective(encoder, item_loss())(batch, seed=0)
    objective = NextItemObjective(encoder, item_loss(), Extras(adversarial=EPSILON))
    worst = 2 * objective(batch, seed=0) - plain
    still, none, step = perturbations(encoder, objective, arrays)
    assert step is not None
    assert still is not None
    assert (none, bool(still.any())) == (None, False)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.tensor([EPSILON, EPSILON, 0.0]))
    assert not step[~batch[PADDING_MASK]].any()
    assert plain < worst
    for seed in range(5):
        noise = torch.randn(step.shape, generator=torch.Generator().manual_seed(seed)) * batch[PADDING_MASK][..., None]
        assert loss_when_moved(encoder, batch, EPSILON * unit_of_users(noise)) < worst


def test_masked_items_and_binary_losses_take_the_worst_step_too(
    make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    batch, extras = to_tensors(make_batch(6, 3, 0), CPU), Extras(adversarial=EPSILON)
    both = make_encoder(attention="bidirectional")
    once = make_encoder(repeats=False)
    binary = ItemLoss(BinaryLoss(num_negatives=4), torch.ones(NUM_ITEMS))
    pairs = [
        (MaskedItemObjective(both, item_loss(), 0.5), MaskedItemObjective(both, item_loss(), 0.5, extras)),
        (NextItemObjective(once, binary), NextItemObjective(once, binary, extras)),
    ]
    for plain, adversarial in pairs:
        loss = adversarial(batch, seed=1)
        loss.backward()
        assert loss > plain(batch, seed=1)
        assert all(p.grad is None or p.grad.isfinite().all() for p in adversarial.parameters())


def test_a_batch_of_padding_has_loss_0_under_the_worst_step(make_encoder: MakeEncoder, make_batch: MakeBatch) -> None:
    objective = NextItemObjective(make_encoder(), item_loss(), Extras(adversarial=EPSILON))
    loss = objective(to_tensors(make_batch(0), CPU), seed=0)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in objective.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_targets_of_changed_windows_stand_for_all(make_encoder: MakeEncoder, make_batch: MakeBatch, seed: int) -> None:
    """With even scores and a shut gate each target costs log(V - 2), whichever ones are left."""
    encoder, batch = make_encoder(), to_tensors(make_batch(8, 5), CPU)
    torch.nn.init.zeros_(encoder.item_table.weight)
    torch.nn.init.constant_(encoder.repeat_choice.gate.bias, -1000.0)
    changes = AugmentationSettings(crop=0.4, mask=0.3, reorder=0.4)
    objective = NextItemObjective(encoder, item_loss(), Extras(augmentation=changes))
    torch.testing.assert_close(objective(batch, seed), torch.tensor(13 * math.log(NUM_ITEMS - 2)))
    assert objective(batch, seed) == objective(batch, seed)


def test_a_masked_item_is_unknown_to_the_network_and_asked_all_the_same(
    make_encoder: MakeEncoder, make_batch: MakeBatch
) -> None:
    encoder, batch = make_encoder(), to_tensors(make_batch(8), CPU)
    objective = NextItemObjective(encoder, item_loss(), Extras(augmentation=AugmentationSettings(mask=0.999999)))
    unknown = event_inputs(batch) | {"item_index": torch.ones_like(batch["item_index"])}
    expected = objective.mixture_loss(unknown, batch[TARGET_ITEM_INDEX], seed=0)
    torch.testing.assert_close(objective(batch, seed=0), expected)
