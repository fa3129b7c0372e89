"""Neighbours mixed in: the table and the mixture against counting by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_io.batch import ITEM_INDEX, PADDING_MASK, TARGET_ITEM_INDEX
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.neighbour_choice import NeighbourChoice, NeighbourTable, make_table
from model.neighbours import count_together, nearest
from model.queries import pure_queries
from tests.model.conftest import NUM_ITEMS

CPU = torch.device("cpu")
BASKETS = ((2, 3, 4), (2, 3, 5), (2, 3), (4, 6), (2, 6))
ALONE = 9
SHARE = 0.3


def make_neighbours(most: int = 4) -> NeighbourTable:
    row = np.repeat(np.arange(len(BASKETS)), [len(basket) for basket in BASKETS])
    item = np.concatenate(BASKETS)
    together = count_together(row, item, NUM_ITEMS)
    return make_table(nearest(together, np.bincount(item, minlength=NUM_ITEMS), most), most)


def make_choice() -> NeighbourChoice:
    choice = NeighbourChoice(NUM_ITEMS, 4, SHARE)
    choice.set_neighbours(make_neighbours())
    return choice


def softmax(num_users: int = 1) -> torch.Tensor:
    scores = torch.randn(num_users, NUM_ITEMS, generator=torch.Generator().manual_seed(0))
    scores[:, :2] = float("-inf")
    return scores.log_softmax(dim=1)


def mixed(choice: NeighbourChoice, alone: torch.Tensor, items: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    queries = choice.choose(pure_queries(torch.zeros(len(alone), 1)), items, last)
    return queries.log_probabilities(alone)


def test_rows_are_similarities_scaled_to_one_by_hand() -> None:
    table = make_neighbours()
    found = dict(zip(table.item_index[2].tolist(), table.weight[2].tolist(), strict=True))
    similarity = {3: 3 / np.sqrt(4 * 3), 4: 1 / np.sqrt(4 * 2), 5: 1 / np.sqrt(4 * 1), 6: 1 / np.sqrt(4 * 2)}
    assert found == pytest.approx({near: value / sum(similarity.values()) for near, value in similarity.items()})
    assert table.weight.sum(axis=1)[[2, 3, 4, 5, 6]] == pytest.approx(1), "of every item with neighbours"
    assert not table.weight[[0, 1, ALONE]].any()


def test_only_the_nearest_are_kept() -> None:
    table = make_neighbours(most=1)
    assert table.item_index.shape == (NUM_ITEMS, 1)
    assert (table.item_index[3, 0], table.weight[3, 0]) == (2, 1)


def test_the_mixture_by_hand_newer_events_counting_more() -> None:
    table, alone = make_neighbours(), softmax()
    items, last = torch.tensor([[3, ALONE, 4, 0]]), torch.tensor([2])
    found = mixed(make_choice(), alone, items, last).exp()[0]
    expected = (1 - SHARE) * alone.exp()[0]
    for item, weight in ((4, 1.0), (3, 0.8**2)):
        for near, share in zip(table.item_index[item], table.weight[item], strict=True):
            expected[near] += SHARE * weight / (1 + 0.8**2) * share
    torch.testing.assert_close(found, expected)
    assert found.sum() == pytest.approx(1)
    assert not found[:2].any(), "padding and unknown are never recommended"


def test_who_has_no_neighbours_keeps_the_softmax() -> None:
    alone = softmax(3)
    items = torch.tensor([[ALONE, 1, 0], [0, 0, 0], [3, 0, 0]])
    found = mixed(make_choice(), alone, items, torch.tensor([1, 0, 0]))
    torch.testing.assert_close(found[:2], alone[:2])
    assert not torch.allclose(found[2], alone[2])


def test_only_the_newest_events_count() -> None:
    items = torch.full((1, 40), ALONE)
    items[0, 19] = 3
    found = mixed(make_choice(), softmax(), items, torch.tensor([39]))
    torch.testing.assert_close(found, softmax(), msg="the 21st from the end")
    items[0, 20] = 3
    assert not torch.allclose(mixed(make_choice(), softmax(), items, torch.tensor([39])), softmax())


@pytest.mark.parametrize("fields", [{}, {"repeats": False}, {"attention": "bidirectional"}], ids=str)
def test_an_encoder_ranks_by_the_mixture_and_is_loaded_with_its_neighbours(
    make_encoder: Callable, make_batch: Callable, tmp_path: Path, fields: dict[str, object]
) -> None:
    encoder: ClickformerEncoder = make_encoder(neighbours=4, **fields)
    assert encoder.neighbour_choice is not None
    batch = to_tensors(make_batch(3, 6), CPU)
    before = encoder.rank_items(batch)[1]
    encoder.neighbour_choice.set_neighbours(make_neighbours())
    _, scores = encoder.rank_items(batch)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores, before)
    encoder.save_pretrained(tmp_path)
    loaded = ClickformerEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.rank_items(batch)[1], scores)


def test_padding_and_other_users_change_nothing(make_encoder: Callable, make_batch: Callable) -> None:
    encoder: ClickformerEncoder = make_encoder(neighbours=4)
    assert encoder.neighbour_choice is not None
    encoder.neighbour_choice.set_neighbours(make_neighbours())
    wide = to_tensors(make_batch(3, 8), CPU)
    alone = {name: part[:1, :3] for name, part in wide.items() if name != TARGET_ITEM_INDEX}
    assert alone[PADDING_MASK].all()
    assert alone[ITEM_INDEX].shape == (1, 3)
    torch.testing.assert_close(encoder.rank_items(wide)[1][:1], encoder.rank_items(alone)[1], atol=1e-4, rtol=1e-4)


def test_new_items_have_no_neighbours() -> None:
    choice = make_choice()
    choice.extend(2)
    alone = softmax()
    wider = torch.cat([alone, alone[:, :2]], dim=1).log_softmax(dim=1)
    torch.testing.assert_close(mixed(choice, wider, torch.tensor([[NUM_ITEMS + 1]]), torch.tensor([0])), wider)
