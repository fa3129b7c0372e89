"""Attention, block and mixture against naive loops and cases worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from model.attention import SelfAttention, rotate
from model.queries import pure_queries
from model.repeat import RepeatChoice, choose_again, mix_losses
from model.transformer import LigrBlock, TransformerBlock

INFINITY = float("inf")
SCORES = torch.tensor([[-INFINITY, -INFINITY, 1.0, 0.5, -1.0, 2.0]])


def naive_attention(layer: SelfAttention, states: Tensor, num_real: int) -> Tensor:
    """[T, D] attention of one user, one head and one event at a time."""
    length, size = states.shape
    query, key, value = (part.view(length, layer.num_heads, -1) for part in layer.project_in(states).split(size, dim=1))
    query, key = (rotate(part.transpose(0, 1)[None])[0].transpose(0, 1) for part in (query, key))
    rows = []
    for event in range(length):
        seen = range(event + 1) if layer.causal else range(num_real)
        heads = []
        for head in range(layer.num_heads):
            scores = torch.stack([query[event, head] @ key[other, head] for other in seen])
            weights = (scores / query.shape[-1] ** 0.5).softmax(dim=0)
            heads.append(sum(weight * value[other, head] for weight, other in zip(weights, seen, strict=True)))
        rows.append(torch.cat(heads))
    return layer.project_out(torch.stack(rows))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_a_naive_loop(causal: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, causal=causal)
    states, mask = torch.randn(1, 5, 8), torch.tensor([[True, True, True, False, False]])
    expected = naive_attention(layer, states[0], num_real=3)
    torch.testing.assert_close(layer(states, mask)[0, :3], expected[:3], atol=1e-5, rtol=0)


def test_fresh_attention_passes_on_the_mean_of_what_it_sees() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, causal=True)
    layer.copy_history()
    states = torch.randn(1, 5, 8)
    mean = states.cumsum(dim=1) / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(layer(states, torch.ones(1, 5, dtype=torch.bool)), mean, atol=0.05, rtol=0)


def test_block_whose_layers_give_nothing_passes_states_through() -> None:
    block = TransformerBlock(8, 2, dropout=0.0, causal=True, rotary=True)
    torch.nn.init.zeros_(block.attention.project_out.weight)
    torch.nn.init.zeros_(block.feed_forward.down.weight)
    states = torch.randn(1, 3, 8)
    assert torch.equal(block(states, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.long)), states)


@pytest.mark.parametrize(("gate", "share"), [(-1e4, 0.0), (0.0, 0.5), (1e4, 1.0)])
def test_gates_of_ligr_let_a_share_of_each_branch_through(gate: float, share: float) -> None:
    torch.manual_seed(0)
    plain = TransformerBlock(8, 2, dropout=0.0, causal=True, rotary=True)
    block = LigrBlock(8, 2, dropout=0.0, causal=True, rotary=True)
    block.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(block.feed_forward.down.weight)
    torch.nn.init.zeros_(block.attention_gate.weight)
    torch.nn.init.constant_(block.attention_gate.bias, gate)
    states, real = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    attended = plain.attention(plain.attention_norm(states), real)
    found = block(states, real, torch.zeros(1, 3, dtype=torch.long))
    torch.testing.assert_close(found, states + share * attended)


def mixed(scores: torch.Tensor, items: torch.Tensor, log_weight: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    queries = choose_again(pure_queries(torch.zeros(len(scores), 1)), items, log_weight, gate)
    return queries.log_probabilities(scores)


def test_mix_losses_and_choose_again_agree_on_a_case_by_hand() -> None:
    item_index, weight, gate = torch.tensor([[3, 5, 3]]), torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([0.4])
    scores = mixed(SCORES, item_index, weight.log(), gate)
    share = 1 / (1 + math.exp(-0.4))
    for item, probability in {2: 0.0, 3: 0.5, 4: 0.0, 5: 0.5}.items():
        anew = SCORES.softmax(dim=1)[0, item]
        expected = torch.log((1 - share) * anew + share * probability)
        log_again = torch.tensor([math.log(probability) if probability else -1e4])
        torch.testing.assert_close(scores[0, item], expected)
        torch.testing.assert_close(-mix_losses(-anew.log()[None], log_again, gate)[0], expected)
    assert (scores[0, :2] == -INFINITY).all()


def test_shut_gate_leaves_the_softmax_and_open_gate_only_the_own_items() -> None:
    item_index, log_weight = torch.tensor([[3, 5]]), torch.tensor([[0.25, 0.75]]).log()
    shut = choose_again(
        pure_queries(torch.zeros(len(SCORES), 1)), item_index, log_weight, torch.tensor([-60.0])
    ).log_probabilities(SCORES)
    opened = choose_again(
        pure_queries(torch.zeros(len(SCORES), 1)), item_index, log_weight, torch.tensor([60.0])
    ).log_probabilities(SCORES)
    torch.testing.assert_close(shut, SCORES.log_softmax(dim=1))
    torch.testing.assert_close(opened.exp(), torch.tensor([[0, 0, 0, 0.25, 0, 0.75]]))


def test_probability_of_a_target_is_the_weight_of_its_events() -> None:
    torch.manual_seed(0)
    repeats = RepeatChoice(8, causal=True)(torch.randn(1, 4, 8), torch.tensor([[True, True, False, True]]))
    items, targets = torch.tensor([[3, 5, 3, 3]]), torch.tensor([[3, 4, 5, 3]])
    same = (items[:, None, :] == targets[:, :, None]).float()
    expected = (repeats.log_weight.exp() * same).sum(dim=2)
    torch.testing.assert_close(repeats.log_probability(items, targets).exp(), expected)
