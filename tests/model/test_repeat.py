"""Repeats: the mixture is a probability, and training and ranking mean the same one."""

import torch

from model.queries import pure_queries
from model.repeat import RepeatChoice, choose_again, mix_losses


def make_choice(causal: bool) -> RepeatChoice:
    torch.manual_seed(0)
    return RepeatChoice(4, causal=causal)


def mixed(scores: torch.Tensor, items: torch.Tensor, log_weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    queries = choose_again(pure_queries(torch.zeros(len(scores), 1)), items, log_weight, gate)
    return queries.log_probabilities(scores)


def test_attention_over_allowed_events_sums_to_one_and_sees_no_later_event() -> None:
    states, allowed = torch.randn(1, 4, 4), torch.tensor([[True, False, True, True]])
    weight = make_choice(causal=True)(states, allowed).log_weight.exp()
    torch.testing.assert_close(weight.sum(dim=2), torch.ones(1, 4))
    assert (weight[0, :, 1] < 1e-6).all(), "not allowed"
    assert (weight[0].triu(1) < 1e-6).all(), "later"


def test_the_loss_is_the_negative_score_of_the_target() -> None:
    torch.manual_seed(0)
    states, items = torch.randn(3, 5, 4), torch.randint(2, 8, (3, 5))
    repeats = make_choice(causal=True)(states, torch.ones(3, 5, dtype=torch.bool))
    catalogue = torch.randn(3, 8)
    catalogue[:, :2] = float("-inf")
    scores = choose_again(
        pure_queries(torch.zeros(len(catalogue), 1)), items, repeats.log_weight[:, -1], repeats.gate[:, -1]
    ).log_probabilities(catalogue)
    for target in range(2, 8):
        wanted = torch.full((3, 5), target)
        again = repeats.log_probability(items, wanted)[:, -1]
        loss = mix_losses(-catalogue.log_softmax(dim=1)[:, target], again, repeats.gate[:, -1])
        torch.testing.assert_close(-loss, scores[:, target], atol=1e-4, rtol=1e-4)


def test_a_user_with_nothing_to_choose_again_has_a_finite_gradient() -> None:
    states = torch.randn(1, 3, 4, requires_grad=True)
    repeats = make_choice(causal=True)(states, torch.zeros(1, 3, dtype=torch.bool))
    again = repeats.log_probability(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), 5))
    mix_losses(torch.ones(1, 3), again, repeats.gate).sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
