"""Packing: the real events of a batch in one row, so that no layer works on padding.

Attention over the row is block-diagonal: each user is a document, and no event sees another document. Padding of the
row up to a multiple of 128 is a document of its own. Invariant: packing changes no state of an event beyond rounding.

On CUDA attention is `flex_attention`, compiled. Elsewhere, for tests, it is a plain kernel with the same mask as a
matrix, because `flex_attention` has no backward pass on a CPU. Only that, and the forward pass of the compiled
`flex_attention` on a CPU (one kernel for rows of any length), has been run where this was written; a test with the
marker gpu holds the CUDA kernel against padded batches.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.attention import seen_events

_BLOCK = 128
"""Events of a tile of the kernel: the row's length is a multiple of it."""
_LEAST_WIDTH = 16
"""Narrowest head that the compiled kernel takes."""
_MOST_KERNELS = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class Packing:
    """Where the events of a batch stand in its row of P places, and who sees whom."""

    index: Tensor
    """[E] place of each of the E events in the flattened batch; the rest of the row is padding."""
    places: Tensor
    """[P] place of each event in its own sequence."""
    mask: BlockMask
    """[1, 1, P, P] which events each event sees."""

    def pack(self, vectors: Tensor) -> Tensor:
        """The row [1, P, D] of a batch [B, T, D]."""
        row = vectors.flatten(0, 1)[self.index]
        return F.pad(row, (0, 0, 0, len(self.places) - len(row)))[None]

    def unpack(self, row: Tensor, batch_shape: torch.Size) -> Tensor:
        """The batch [B, T, D] of a row [1, P, D], zero where it is padding."""
        empty = row.new_zeros(batch_shape.numel(), row.shape[2])
        return empty.index_copy(0, self.index, row[0, : len(self.index)]).view(*batch_shape, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[1, H, P, C] attention within each document, of [1, H, P, C] queries, keys and values."""
        if query.is_cuda:
            return _compiled()(query, key, value, block_mask=self.mask)
        row = torch.arange(query.shape[2], device=query.device)
        visible = self.mask.mask_mod(row[:1], row[:1], row[:, None], row[None, :])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


def can_pack(device: torch.device, head_width: int) -> bool:
    """Whether attention over packed rows has a fast kernel: on CUDA with its compilers, for heads that are not tiny."""
    return device.type == "cuda" and head_width >= _LEAST_WIDTH and _can_compile()


def make_packing(padding_mask: Tensor, *, causal: bool) -> Packing:
    """The packing of a batch, from padding_mask [B, T], True where an event is real.

    A user without events keeps the first place, as in a padded batch, so that every user has a state.
    """
    seen = seen_events(padding_mask)
    index = seen.flatten().nonzero().squeeze(1)
    num_padding = -len(index) % _BLOCK
    documents = F.pad(index // seen.shape[1], (0, num_padding), value=len(seen))
    places = F.pad(index % seen.shape[1], (0, num_padding))
    return Packing(index=index, places=places, mask=_document_mask(documents, causal=causal))


def _document_mask(documents: Tensor, *, causal: bool) -> BlockMask:
    """Who sees whom in a row of documents [P], in order; the tiles are found without looking at P x P pairs."""
    num_tiles = len(documents) // _BLOCK
    first = torch.searchsorted(documents, documents[::_BLOCK].contiguous()) // _BLOCK
    if causal:
        last = torch.arange(num_tiles, device=documents.device)
    else:
        ends = torch.searchsorted(documents, documents[_BLOCK - 1 :: _BLOCK].contiguous(), right=True)
        last = (ends - 1) // _BLOCK
    tiles = first[:, None] + torch.arange(num_tiles, device=documents.device)
    return BlockMask.from_kv_blocks(
        (last - first + 1).int()[None, None],
        (tiles % num_tiles).int()[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=_same_document(documents, causal=causal),
    )


def _same_document(documents: Tensor, *, causal: bool) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[query] == documents[key]
        return same & (query >= key) if causal else same

    return visible


@cache
def _can_compile() -> bool:
    """Whether Triton is here and the C compiler that it calls for its launchers."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


@cache
def _compiled() -> Any:
    """The fused kernel, for rows of any length: `dynamic` keeps it from being compiled for each of them.

    It is compiled anew for each precision, head width and way of differentiating. By default PyTorch falls back without
    a word to attention over P x P pairs once there are more than eight; here there is room for more, then an error.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_KERNELS)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
