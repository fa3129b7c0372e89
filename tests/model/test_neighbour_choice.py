"""Choosing among neighbours: the table against counting by hand, and training and ranking against each other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_io.batch import ITEM_INDEX, PADDING_MASK, TARGET_ITEM_INDEX
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.neighbour_choice import NUM_EVENTS, NeighbourChoice, NeighbourTable, make_table
from model.neighbours import count_together, nearest
from tests.model.conftest import NUM_ITEMS

CPU = torch.device("cpu")
BASKETS = ((2, 3, 4), (2, 3, 5), (2, 3), (4, 6), (2, 6))


def table_of(baskets: tuple[tuple[int, ...], ...], most: int, size: int = NUM_ITEMS) -> NeighbourTable:
    row = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    item = np.concatenate([sorted(basket) for basket in baskets])
    num_users = np.bincount(item, minlength=size)
    return make_table(nearest(count_together(row, item, size), num_users, most), num_users, most)


def weights(table: NeighbourTable, values: np.ndarray) -> np.ndarray:
    """[V, V] by item and neighbour."""
    found = np.zeros((len(values), len(values)))
    np.add.at(found, (np.arange(len(values))[:, None], table.item_index), values)
    return found


def make_choice(most: int = 4, hidden_size: int = 8) -> NeighbourChoice:
    torch.manual_seed(0)
    choice = NeighbourChoice(hidden_size, NUM_ITEMS, most)
    choice.set_neighbours(table_of(BASKETS, most))
    return choice.eval()


def test_rows_are_similarities_scaled_to_one_by_hand() -> None:
    found = weights(table := table_of(BASKETS, 4), table.weight)
    similarity = {3: 3 / np.sqrt(4 * 3), 4: 1 / np.sqrt(4 * 2), 5: 1 / np.sqrt(4 * 1), 6: 1 / np.sqrt(4 * 2)}
    for near, value in similarity.items():
        assert found[2, near] == pytest.approx(value / sum(similarity.values()), abs=1e-6)
    assert table.weight.sum(axis=1)[[2, 3, 4, 5, 6]] == pytest.approx(1), "of every item with neighbours"
    assert not table.weight[[0, 1, 7]].any()


def test_a_pair_that_one_user_had_is_unknown_without_that_user() -> None:
    found = weights(table := table_of(BASKETS, 4), table.weight_of_others)
    assert found[2, 4] == found[4, 2] == found[2, 5] == found[6, 4] == 0
    assert found[2, 3] > 0


def test_weights_of_others_are_near_those_counted_without_the_user() -> None:
    drawn = np.random.default_rng(0)
    baskets = tuple(tuple(2 + drawn.choice(30, 5, replace=False, p=np.arange(30, 0, -1) / 465)) for _ in range(300))
    table = table_of(baskets, 40, size=32)
    of_others, ratios = weights(table, table.weight_of_others), []
    for left_out in range(0, 300, 10):
        without = table_of(baskets[:left_out] + baskets[left_out + 1 :], 40, size=32)
        exact, own = weights(without, without.weight), baskets[left_out]
        ratios += [of_others[a, b] / exact[a, b] for a in own for b in own if a != b and exact[a, b] > 0]
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert np.quantile(np.abs(np.array(ratios) - 1), 0.9) < 0.1


def test_only_the_nearest_are_kept() -> None:
    table = table_of(BASKETS, 1)
    assert table.item_index.shape == (NUM_ITEMS, 1)
    assert table.item_index[3] == 2
    assert table.weight[3] == 1


def test_ranking_gives_the_probability_that_training_asks_for() -> None:
    choice = make_choice()
    states, items = torch.randn(3, 5, 8), torch.randint(2, 8, (3, 5))
    near = choice(states, items, torch.ones(3, 5, dtype=torch.bool))
    last = [part[:, -1] for part in near]
    scores = choice.mix(torch.full((3, NUM_ITEMS), -60.0), last[0], last[1], torch.full((3,), 60.0))
    for target in range(2, NUM_ITEMS):
        found = choice.log_probability(last[0], last[1], torch.full((3,), target))
        torch.testing.assert_close(found.clamp(min=-60), scores[:, target].clamp(min=-60), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(3), atol=1e-4, rtol=1e-4)


def test_training_does_not_see_what_the_own_history_added() -> None:
    choice = make_choice()
    states, items = torch.randn(1, 2, 8), torch.tensor([[4, 2]])
    near = choice(states, items, torch.ones(1, 2, dtype=torch.bool))
    target = torch.tensor([4])
    assert choice.log_probability(near.items[:, 1], near.log_weight[:, 1], target) > -10
    assert choice.train().log_probability(near.items[:, 1], near.log_weight[:, 1], target) == -1e4


def test_a_state_chooses_by_its_newest_allowed_events_that_have_neighbours() -> None:
    choice = make_choice()
    length = NUM_EVENTS + 4
    items = torch.full((1, length), 2)
    items[0, 2], allowed = 9, torch.ones(1, length, dtype=torch.bool)
    allowed[0, 1] = False
    near = choice(torch.randn(1, length, 8), items, allowed)
    weight = near.log_weight.exp()
    torch.testing.assert_close(weight.sum(dim=2), torch.ones(1, length))
    assert weight[0, 3, 1] < 1e-6, "item 9 has no neighbours"
    assert weight[0, 3, 2] < 1e-6, "not allowed"
    assert (weight[0, 3, 4:] < 1e-6).all(), "before the first event"
    assert (weight[0, -1] > 0).all(), "all of the newest count"


def test_who_has_nothing_to_choose_keeps_the_softmax_and_a_finite_gradient(
    make_encoder: Callable, make_batch: Callable
) -> None:
    encoder: ClickformerEncoder = make_encoder(neighbours=3, repeats=False)
    batch = to_tensors(make_batch(0, 4), CPU)
    expected = encoder.item_table(states=encoder.user_states(batch)).log_softmax(dim=1)
    torch.testing.assert_close(encoder.rank_items(batch)[1], expected, atol=1e-4, rtol=1e-4)
    choice, states = make_choice(), torch.randn(1, 3, 8, requires_grad=True)
    near = choice(states, torch.full((1, 3), 9), torch.ones(1, 3, dtype=torch.bool))
    (choice.log_probability(near.items[0], near.log_weight[0], torch.tensor([2, 3, 4])) + near.gate[0]).sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("repeats", [True, False])
def test_an_encoder_ranks_by_the_mixture_and_is_loaded_with_its_neighbours(
    make_encoder: Callable, make_batch: Callable, tmp_path: Path, repeats: bool
) -> None:
    encoder: ClickformerEncoder = make_encoder(neighbours=4, repeats=repeats)
    batch = to_tensors(make_batch(3, 6), CPU)
    before = encoder.rank_items(batch)[1]
    encoder.neighbour_choice.set_neighbours(table_of(BASKETS, 4))
    _, scores = encoder.rank_items(batch)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores, before)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.rank_items(batch)[1], scores)


def test_padding_and_other_users_change_nothing(make_encoder: Callable, make_batch: Callable) -> None:
    encoder: ClickformerEncoder = make_encoder(neighbours=4)
    encoder.neighbour_choice.set_neighbours(table_of(BASKETS, 4))
    wide = to_tensors(make_batch(3, 8), CPU)
    alone = {name: part[:1, :3] for name, part in wide.items() if name != TARGET_ITEM_INDEX}
    assert alone[PADDING_MASK].all()
    assert alone[ITEM_INDEX].shape == (1, 3)
    torch.testing.assert_close(encoder.rank_items(wide)[1][:1], encoder.rank_items(alone)[1], atol=1e-4, rtol=1e-4)
