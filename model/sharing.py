"""Models that processes of a machine share: the network as a small object, its weights as arrays beside it.

Ray keeps arrays in shared memory and hands them out without a copy; a tensor it would copy into every process.
Invariant: weights of an unpacked model are for reading.
"""

import copy
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint import SavedModel


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A saved model whose weights are arrays."""

    skeleton: SavedModel
    """The model with weights that have a shape and no content."""
    arrays: dict[str, np.ndarray]
    """Parameters and buffers by name; one that stands in several places has one array."""
    catalogue: np.ndarray
    """[V, D] float32 vectors of items as states are held against them."""


def pack_model(saved: SavedModel) -> PackedModel:
    """A model on the CPU, to be put where processes share it."""
    kept: dict[int, np.ndarray] = {}  # by address: an array that stands in several places is one
    memo: dict[int, object] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(saved.model):
        arrays[name] = kept.setdefault(tensor.data_ptr(), tensor.detach().numpy())
        hollow = tensor.detach().to("meta")
        learned = isinstance(tensor, nn.Parameter)
        memo.setdefault(id(tensor), nn.Parameter(hollow, requires_grad=False) if learned else hollow)
    vectors = saved.encoder.item_table.catalogue()
    catalogue = kept.get(vectors.data_ptr(), vectors.numpy())
    memo.setdefault(id(vectors), vectors.to("meta"))  # a table that keeps them does not carry them along
    return PackedModel(replace(saved, model=copy.deepcopy(saved.model, memo)), arrays, catalogue)


def unpack_model(packed: PackedModel, device: torch.device) -> tuple[SavedModel, Tensor]:
    """The model on a device, and vectors [V, D] of its items; on a CPU nothing is copied."""
    made: dict[int, Tensor] = {}

    def on_device(array: np.ndarray) -> Tensor:
        return made.setdefault(id(array), _as_tensor(array).to(device))

    for name, array in packed.arrays.items():
        path, _, own = name.rpartition(".")
        module = packed.skeleton.model.get_submodule(path)
        tensor = on_device(array)
        is_buffer = own in dict(module.named_buffers(recurse=False))
        setattr(module, own, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))
    vectors = on_device(packed.catalogue)
    packed.skeleton.encoder.item_table.keep_catalogue(vectors)
    return packed.skeleton, vectors


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = list(model.named_parameters(remove_duplicate=False))
    return parameters + list(model.named_buffers(remove_duplicate=False))


def _as_tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
