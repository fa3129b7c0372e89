"""Learning by reward: weights by hand, gradients against a loop, a policy that moves to what pays."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from data_io.batch import TARGET_ACTION_INDEX, TARGET_ITEM_INDEX, Batch
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.loss_config import FullSoftmax
from model.objectives import ItemLoss
from model.rewarded import RewardedObjective, policy_weights
from model.task_config import RewardSettings

CPU = torch.device("cpu")
REWARDS = torch.tensor([0.0, 0.0, 0.1, 1.0])


def make_objective(encoder: ClickformerEncoder, **settings: Any) -> RewardedObjective:
    counts = torch.ones(encoder.config.vocabulary_size, dtype=torch.int64)
    reward = RewardSettings(actions={"buy": 1.0}, **settings)
    item_loss = ItemLoss(FullSoftmax(), counts)
    return RewardedObjective(encoder, item_loss, copy.deepcopy(encoder), REWARDS, reward)


def with_targets(batch: Batch, item: int, action: int) -> dict[str, torch.Tensor]:
    shape = batch["item_index"].shape
    targets = np.where(batch["padding_mask"], item, 0)
    actions = np.full(shape, action)
    return to_tensors(batch | {TARGET_ITEM_INDEX: targets, TARGET_ACTION_INDEX: actions}, CPU)


def test_weights_are_importance_times_the_chance_to_miss() -> None:
    policy, behaviour = torch.tensor([0.2, 0.5, 0.9]).log(), torch.tensor([0.1, 0.5, 0.01]).log()
    expected = torch.tensor([2.0 * 3 * 0.8**2, 1.0 * 3 * 0.5**2, 5.0 * 3 * 0.1**2])
    torch.testing.assert_close(policy_weights(policy, behaviour, 3, 5.0), expected)
    torch.testing.assert_close(policy_weights(policy, behaviour, 1, 5.0), torch.tensor([2.0, 1.0, 5.0]))


def test_at_the_start_it_is_the_loss_weighed_by_rewards(
    make_encoder: Callable[..., ClickformerEncoder], make_batch: Callable[..., Batch]
) -> None:
    encoder = make_encoder()
    objective = make_objective(encoder).eval()
    batch = make_batch(3, 2)
    losses = [objective(with_targets(batch, 4, action), seed=0).item() for action in (2, 3)]
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-5)
    plain = objective.item_loss
    assert losses[1] > 0
    assert not any(parameter.requires_grad for parameter in objective.behaviour.parameters())
    assert plain.softmax == FullSoftmax()


def test_an_action_without_reward_teaches_nothing(
    make_encoder: Callable[..., ClickformerEncoder], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective(make_encoder())
    objective(with_targets(make_batch(3, 2), 4, 1), seed=0).backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.encoder.parameters())


def test_the_policy_moves_to_what_pays_and_the_behaviour_stays(
    make_encoder: Callable[..., ClickformerEncoder], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective(make_encoder(), top_k=2, max_importance=3.0).train()
    assert not objective.behaviour.training
    before = {name: tensor.clone() for name, tensor in objective.behaviour.state_dict().items()}
    optimizer = torch.optim.Adam(objective.encoder.parameters(), lr=0.05)
    pays, does_not = (with_targets(make_batch(4, 3), item, action) for item, action in ((4, 3), (5, 2)))
    for step in range(15):
        optimizer.zero_grad()
        (objective(pays, seed=step) + objective(does_not, seed=step)).backward()
        optimizer.step()
    probabilities = objective.encoder.eval().rank_items(pays)[1].exp().mean(dim=0)
    assert probabilities[4] > probabilities[5]
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.behaviour.state_dict().items())
