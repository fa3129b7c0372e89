"""Item vectors to start from, held against an eigendecomposition of the whole matrix."""

import numpy as np
import pytest

from model.neighbours import ItemNeighbours, count_together, nearest
from model.spectral import spectral_vectors

NUM_ITEMS, GROUP = 90, 15


def shop(seed: int = 0) -> ItemNeighbours:
    """Items 2 and up in groups of 15; users mostly have items of one group. Items 0 and 1 nobody has."""
    drawn = np.random.default_rng(seed)
    row, item = [], []
    for user in range(600):
        first = 2 + GROUP * drawn.integers((NUM_ITEMS - 2) // GROUP)
        had = np.unique(np.append(drawn.integers(first, first + GROUP, 4), drawn.integers(2, NUM_ITEMS)))
        row += [user] * len(had)
        item += list(had)
    rows, items = np.array(row), np.array(item)
    return nearest(count_together(rows, items, NUM_ITEMS), np.bincount(items, minlength=NUM_ITEMS), 60)


def dense(neighbours: ItemNeighbours) -> np.ndarray:
    found = np.zeros((NUM_ITEMS, NUM_ITEMS))
    own = np.repeat(np.arange(NUM_ITEMS), np.diff(neighbours.offsets))
    found[own, neighbours.item_index] = neighbours.similarity
    return (found + found.T) / 2 + np.eye(NUM_ITEMS)


def test_products_are_those_of_the_leading_eigenvectors() -> None:
    neighbours, width = shop(), 5
    values, vectors = np.linalg.eigh(dense(neighbours))
    leading = vectors[:, -width:] * np.sqrt(values[-width:])
    expected = leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-9)
    found = spectral_vectors(neighbours, width, seed=3)
    had = np.diff(neighbours.offsets) > 0
    np.testing.assert_allclose((found @ found.T)[had][:, had], (expected @ expected.T)[had][:, had], atol=1e-3)


def test_items_of_one_group_point_the_same_way_and_others_do_not() -> None:
    vectors = spectral_vectors(shop(), 8, seed=0)
    group = (np.arange(2, 77) - 2) // GROUP
    cosine = (vectors @ vectors.T)[2:77, 2:77]
    alike = group[:, None] == group[None, :]
    assert cosine[alike].mean() > 0.8
    assert abs(cosine[~alike].mean()) < 0.3


@pytest.mark.parametrize("width", [4, 200])
def test_every_item_has_a_vector_of_length_1_even_alone_or_wider_than_the_catalogue(width: int) -> None:
    vectors = spectral_vectors(shop(), width, seed=1)
    assert vectors.shape == (NUM_ITEMS, width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert abs(vectors[0] @ vectors[1]) < 0.99, "items without neighbours are drawn each by itself"


def test_the_seed_decides_the_turn() -> None:
    first, again, other = (spectral_vectors(shop(), 8, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
