"""The response head: before anything is learned, its loss against torch's own, and which way gradients go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_io.batch import CANDIDATE, FEATURES, OUTCOME, PADDING_MASK, PAIR_FEATURES, Batch
from model.encoder import ClickformerConfig, TensorBatch
from model.engine import to_tensors
from model.response import Bilinear, ClickformerForResponse, InnerProduct, ResponseObjective
from model.task_config import FrozenEncoder, FullEncoder, TopLayers

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
INTERACTIONS = pytest.mark.parametrize("interaction", ["inner_product", "bilinear"])


def make_model(**fields: Any) -> ClickformerForResponse:
    torch.manual_seed(0)
    shape = {"vocabulary_size": 12, "num_actions": 4, "hidden_size": 8, "num_features": 3, "dropout": 0.0}
    return ClickformerForResponse(ClickformerConfig(**(shape | fields))).eval()


def with_candidates(batch: Batch, num_candidates: int = 1) -> TensorBatch:
    """The batch with random features, candidates and pairs, and outcomes 0, 1, 0, ..."""
    size, generator = len(batch[PADDING_MASK]), np.random.default_rng(1)
    told = {
        FEATURES: generator.random((size, 3), np.float32),
        CANDIDATE: generator.integers(2, 12, (size, num_candidates)),
        PAIR_FEATURES: generator.random((size, num_candidates, 2), np.float32),
        OUTCOME: np.arange(size, dtype=np.float32)[:, None] % 2,
    }
    return to_tensors(batch | told, CPU)


def learn(model: ClickformerForResponse, batch: TensorBatch, num_steps: int) -> list[float]:
    """Losses of some steps of Adam."""
    objective, losses = ResponseObjective(model), []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = objective(batch, seed=0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@INTERACTIONS
def test_every_probability_is_the_mean_rate_before_anything_is_learned(make_batch: MakeBatch, interaction: str) -> None:
    model, batch = make_model(interaction=interaction), with_candidates(make_batch(3, 1), 4)
    model.head.set_scale(torch.zeros(3), torch.ones(3), log_odds=-2.0)
    logits = model(batch)
    torch.testing.assert_close(logits, torch.full((2, 4), -2.0))
    torch.testing.assert_close(model.predict(batch), torch.sigmoid(logits))


def test_loss_is_the_sum_of_torch_s_own_over_real_rows(make_batch: MakeBatch) -> None:
    model, batch = make_model(), with_candidates(make_batch(3, 0, 2, 1))
    logits, labels = model(batch)[:, 0], batch[OUTCOME][:, 0]
    real = torch.tensor([True, False, True, True])
    expected = F.binary_cross_entropy_with_logits(logits[real], labels[real], reduction="sum")
    torch.testing.assert_close(ResponseObjective(model)(batch, seed=0), expected)


@INTERACTIONS
@pytest.mark.parametrize("trainable", [FrozenEncoder(), TopLayers(), FullEncoder()])
def test_what_learns_receives_gradient_and_the_loss_falls(
    make_batch: MakeBatch, interaction: str, trainable: FrozenEncoder | TopLayers | FullEncoder
) -> None:
    model = make_model(interaction=interaction, attention="bidirectional")  # whose mask is seen in every example
    batch = with_candidates(make_batch(3, 2, 1, 4))
    model.free_parameters(trainable)
    losses = learn(model, batch, num_steps=20)
    assert losses[-1] < losses[0] / 1.5
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert all(p.detach().abs().sum() > 0 for p in model.head.interaction.parameters())


@pytest.mark.parametrize("kind", [InnerProduct, Bilinear])
def test_users_meet_items_by_their_product(kind: type[InnerProduct] | type[Bilinear]) -> None:
    torch.manual_seed(0)
    interaction, users, items = kind(4).double(), torch.randn(2, 4).double(), torch.randn(2, 3, 4).double()
    found = interaction(users, items)
    for row in range(2):
        for place in range(3):
            u, v = users[row], items[row, place]
            if isinstance(interaction, InnerProduct):
                expected = (interaction.of_user.weight @ u) @ (interaction.of_item.weight @ v) / 2
            else:
                expected = u @ interaction.matrix.weight @ v / 2
            torch.testing.assert_close(found[row, place], expected)
    weights = {name: p.detach().clone().requires_grad_() for name, p in interaction.named_parameters()}

    def of_weights(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(interaction, dict(zip(weights, values, strict=True)), (users, items))

    assert torch.autograd.gradcheck(of_weights, tuple(weights.values()))


def test_an_item_that_came_later_has_the_bias_of_the_unknown_one(make_batch: MakeBatch) -> None:
    model, batch = make_model(), with_candidates(make_batch(2), 2)
    model.encoder.item_table.weight = torch.nn.Parameter(F.pad(model.encoder.item_table.weight, (0, 0, 0, 1)))
    torch.nn.init.ones_(model.head.item_bias.weight[2:].detach())
    batch[CANDIDATE] = torch.tensor([[12, 3]])
    new, known = model(batch)[0].tolist()
    assert known - new == pytest.approx(1, abs=1e-5)


def test_a_folder_loads_by_itself(make_batch: MakeBatch, tmp_path: Path) -> None:
    model, batch = make_model(interaction="bilinear", deep_heads=False), with_candidates(make_batch(3, 2))
    model.head.set_scale(torch.ones(3), torch.ones(3) * 2, log_odds=-1.0)
    learn(model, batch, num_steps=2)
    model.save_pretrained(tmp_path)
    again = ClickformerForResponse.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(batch), model(batch), atol=0, rtol=0)
