"""Attention over a user's events, with rotary positions (Su et al. 2021, "RoFormer", eq. 34).

Positions count from a sequence's first event, and only their differences matter. Invariant: with causal attention a
state depends on no later event; with either kind on no padding.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from model.packing import Packing

_ROTARY_BASE = 10_000.0
_EVEN_STD = 0.02


class SelfAttention(nn.Module):
    """Multi-head self-attention, causal or in both directions.

    Attention weights are not dropped: with dropout torch leaves its fused kernel on the CPU.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, causal: bool, rotary: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.causal = causal
        self.project_in = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.project_out = nn.Linear(hidden_size, hidden_size, bias=False)

    @torch.no_grad()
    def copy_history(self) -> None:
        """Fresh weights by which attention passes on the mean of what it sees.

        Queries and keys start small, so attention starts even; values and output start as an orthogonal map and its
        inverse. What users had is the best first guess at what they will have, and few steps suffice to learn more.
        """
        hidden_size = self.project_out.weight.shape[0]
        query_key, value = self.project_in.weight.split([2 * hidden_size, hidden_size])
        nn.init.normal_(query_key, std=_EVEN_STD)
        nn.init.orthogonal_(value)
        self.project_out.weight.copy_(value.T)

    def forward(self, states: Tensor, padding_mask: Tensor, packing: "Packing | None" = None) -> Tensor:
        """[B, T, D] from states [B, T, D]; padding_mask [B, T] is True where an event is real.

        With a packing, states are its row [1, P, D].
        """
        num_examples, length, hidden_size = states.shape
        projected = self.project_in(states).view(num_examples, length, 3, self.num_heads, hidden_size // self.num_heads)
        query_key, value = (part.permute(2, 0, 3, 1, 4) for part in projected.split([2, 1], dim=2))
        places = None if packing is None else packing.places
        query, key = rotate(query_key, places) if self.rotary else query_key
        if packing is not None:
            attended = packing.attend(query, key, value[0])
        else:
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value[0],
                attn_mask=None if self.causal else _visible(padding_mask),
                is_causal=self.causal,
            )
        return self.project_out(attended.transpose(1, 2).reshape(num_examples, length, hidden_size))


def rotate(vectors: Tensor, places: Tensor | None = None) -> Tensor:
    """Turn each pair of channels of [..., T, C] vectors by an angle that grows with the place.

    A pair is a complex number and the turn a product, in float32 at least. On a CPU queries and keys together took a
    fifth of the time that products of every other channel did.

    Args:
        vectors: to turn.
        places: [T] place of each vector; None: 0, 1, 2 and so on.
    """
    length, width = vectors.shape[-2:]
    places = torch.arange(length, device=vectors.device) if places is None else places
    frequency = _ROTARY_BASE ** (-torch.arange(0, width, 2, device=vectors.device) / width)
    angle = places[:, None] * frequency
    real = torch.promote_types(vectors.dtype, torch.float32)
    turn = torch.polar(torch.ones_like(angle), angle).to(real.to_complex())
    pairs = torch.view_as_complex(vectors.to(real).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(vectors.dtype)


def seen_events(padding_mask: Tensor) -> Tensor:
    """[B, T] which events others may see: the real ones, and the first place of a user who has none.

    Without that place a user with no event would attend to nothing and become not-a-number.
    """
    seen = padding_mask.clone()
    seen[:, 0] |= ~padding_mask.any(dim=1)
    return seen


def _visible(padding_mask: Tensor) -> Tensor:
    """[B, 1, T, T] which events each event sees."""
    return seen_events(padding_mask)[:, None, None, :].expand(-1, 1, padding_mask.shape[1], -1)
