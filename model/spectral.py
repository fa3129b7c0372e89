"""Item vectors to start from: items that the same users had point the same way before the first step of training.

An item that few users had gets few gradients, and from a random vector they never bring it to where its neighbours are.
Invariant: what an item starts with follows from the neighbours and the seed alone.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from model.neighbours import ItemNeighbours

_ROUNDS = 10
"""Products with the similarities: by then the span holds most of the leading eigenvectors. On Amazon Sports a training
that started from it was as good as one from eigenvectors to machine precision."""
_OVERSAMPLING = 32
"""Vectors iterated beyond those wanted, so that the last of those are found too."""


def spectral_vectors(neighbours: ItemNeighbours, width: int, seed: int) -> np.ndarray:
    """[V, width] float32 vectors of length 1 from the leading eigenvectors of the similarities between items.

    The similarity of two items is the mean of what each says of the other, and 1 of an item with itself. Eigenvectors
    are weighed by the root of their eigenvalue, so that products of vectors are near the similarities, and turned at
    random, so that no coordinate means more than another. Items without neighbours get random vectors.

    Args:
        neighbours: of items 0 to V - 1.
        width: of the vectors.
        seed: fixes all that is random here.

    Source:
        Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithm 4.4 and section 5.3.
    """
    generator = torch.Generator().manual_seed(seed)
    similar = _Similarities(neighbours)
    num_items, num_iterated = len(neighbours.offsets) - 1, min(width + _OVERSAMPLING, len(neighbours.offsets) - 1)
    span = torch.linalg.qr(torch.randn(num_items, num_iterated, generator=generator)).Q
    for _ in range(_ROUNDS):
        span = torch.linalg.qr(similar @ span).Q
    values, combination = torch.linalg.eigh(span.T @ (similar @ span))
    leading = values.argsort(descending=True)[:width]
    vectors = span @ combination[:, leading] * values[leading].clamp(min=0).sqrt()
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    vectors = vectors @ turn[: vectors.shape[1]]
    alone = torch.from_numpy(np.diff(neighbours.offsets) == 0)
    vectors[alone] = torch.randn(int(alone.sum()), width, generator=generator)
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


class _Similarities:
    """The symmetric matrix [V, V] of similarities, kept as the neighbours of each item and as those whose neighbour an
    item is: the sum of both is never made."""

    def __init__(self, neighbours: ItemNeighbours) -> None:
        num_items = len(neighbours.offsets) - 1
        own = np.repeat(np.arange(num_items, dtype=np.int32), np.diff(neighbours.offsets))
        by_near = np.argsort(neighbours.item_index, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(neighbours.item_index, minlength=num_items))])
        self._parts = (
            _sparse(neighbours.offsets, neighbours.item_index, neighbours.similarity),
            _sparse(offsets, own[by_near], neighbours.similarity[by_near]),
        )

    def __matmul__(self, vectors: Tensor) -> Tensor:
        near, far = (part @ vectors for part in self._parts)
        return vectors + (near + far) / 2


def _sparse(offsets: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Tensor:
    size = len(offsets) - 1
    places, near = (torch.from_numpy(part.astype(np.int64)) for part in (offsets, columns))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(places, near, torch.from_numpy(values), (size, size), check_invariants=False)
