"""Top-K and ranks against a naive sort, above all where scores are equal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.topk import exclude_items, target_ranks, top_k

few_scores = st.sampled_from([float("-inf"), -1.5, 0.0, 0.25, 3.0])


@st.composite
def score_tables(draw: st.DrawFn) -> Tensor:
    """[B, V] scores with many equal ones."""
    num_items = draw(st.integers(1, 40))
    row = st.lists(few_scores, min_size=num_items, max_size=num_items)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=3)))


def naive_order(row: Tensor) -> list[int]:
    """Items best first, equal ones by index."""
    scores = row.tolist()
    return sorted(range(len(scores)), key=lambda item: (-scores[item], item))


def assert_is_naive_sort(scores: Tensor, k: int) -> None:
    values, indices = top_k(scores, k)
    expected = [naive_order(row)[:k] for row in scores]
    assert indices.tolist() == expected
    assert torch.equal(values, scores.gather(1, torch.tensor(expected)))


@given(scores=score_tables(), k=st.integers(1, 50))
def test_top_k_equals_a_naive_sort(scores: Tensor, k: int) -> None:
    assert_is_naive_sort(scores, k)


@pytest.mark.parametrize("num_items", [4, 20, 50, 500, 5_000])
@pytest.mark.parametrize("k", [1, 2, 10, 100])
def test_equal_scores_at_the_border_of_k_go_to_the_smaller_index(num_items: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    assert_is_naive_sort(torch.zeros(1, num_items), k)
    assert_is_naive_sort(torch.randint(0, 3, (2, num_items), generator=generator).float(), k)


@pytest.mark.parametrize("k", [1, 7, 30])
def test_top_k_without_ties_equals_a_naive_sort(k: int) -> None:
    assert_is_naive_sort(torch.stack([torch.randperm(30), torch.randperm(30)]).float(), k)


def test_k_beyond_the_catalogue_gives_the_whole_catalogue() -> None:
    values, indices = top_k(torch.tensor([[1.0, 2.0, 1.0]]), 10)
    assert values.tolist() == [[2, 1, 1]]
    assert indices.tolist() == [[1, 0, 2]]


def test_rows_with_too_few_finite_scores_end_in_minus_infinity() -> None:
    values, indices = top_k(torch.tensor([[float("-inf"), float("-inf"), 4.0, 5.0, float("-inf")]]), 4)
    assert values.tolist() == [[5, 4, float("-inf"), float("-inf")]]
    assert indices[0, :2].tolist() == [3, 2]


def test_top_k_of_no_user_is_empty() -> None:
    values, indices = top_k(torch.zeros(0, 5), 3)
    assert values.shape == indices.shape == (0, 3)


@given(scores=score_tables(), data=st.data())
def test_rank_of_a_target_is_its_position_in_the_naive_sort(scores: Tensor, data: st.DataObject) -> None:
    num_users, num_items = scores.shape
    targets = data.draw(st.lists(st.integers(0, num_items - 1), min_size=num_users, max_size=num_users))
    expected = [naive_order(row).index(target) + 1 for row, target in zip(scores, targets, strict=True)]
    assert target_ranks(scores, torch.tensor(targets)).tolist() == expected


def test_excluded_items_and_only_those_become_minus_infinity() -> None:
    scores = torch.zeros(2, 4)
    exclude_items(scores, np.array([0, 1, 1]), np.array([3, 0, 0], np.int32))
    assert torch.isneginf(scores).nonzero().tolist() == [[0, 3], [1, 0]]


def test_excluding_nothing_changes_nothing() -> None:
    scores = torch.zeros(2, 4)
    exclude_items(scores, np.zeros(0, np.int64), np.zeros(0, np.int32))
    assert (scores == 0).all()
