"""Blocks: states in, states out, by attention and a gated feed-forward layer or by recurrence.

Invariant: with causal attention, and always with recurrence, a state depends on no later event.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import SelfAttention
from model.hstu import HstuBlock
from model.packing import Packing


class FeedForward(nn.Module):
    """SwiGLU of inner width 2 D (Shazeer 2020, "GLU variants improve Transformer", eq. 6)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.down = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] from [..., D]."""
        return self.down(F.silu(self.gate(states)) * self.up(states))


BlockKind = Literal["transformer", "ligr", "hstu", "gru"]
PACKABLE = ("transformer", "ligr")
"""Kinds of blocks that take a packed row; the others need a user in each row."""


def make_block(
    kind: BlockKind,
    hidden_size: int,
    num_heads: int,
    length: int,
    dropout: float,
    *,
    causal: bool,
    rotary: bool,
) -> nn.Module:
    """A block of a kind, see `EncoderSettings.block`.

    Args:
        kind: of block.
        hidden_size, num_heads, dropout: its shape.
        length: most events it sees.
        causal: whether no event sees later ones.
        rotary: whether queries and keys are turned by their place.

    Raises:
        ValueError: recurrence is asked to look in both directions.
    """
    if kind == "gru":
        if not causal:
            raise ValueError("block gru sees only what was before; masked_item needs transformer or ligr")
        return RecurrentBlock(hidden_size, dropout)
    if kind == "hstu":
        return HstuBlock(hidden_size, num_heads, length, dropout, causal=causal)
    block = LigrBlock if kind == "ligr" else TransformerBlock
    return block(hidden_size, num_heads, dropout, causal=causal, rotary=rotary)


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, *, causal: bool, rotary: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, causal=causal, rotary=rotary)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, padding_mask: Tensor, moment: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, T, D] from states [B, T, D]; padding_mask [B, T] is True where real, moment [B, T] is not looked at.

        With a packing, states are its row [1, P, D].
        """
        states = states + self.dropout(self.attention(self.attention_norm(states), padding_mask, packing))
        return states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))


class LigrBlock(TransformerBlock):
    """A Transformer block whose branches pass learned gates (Borisyuk et al. 2025, "LiGR", arXiv 2502.03417)."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, *, causal: bool, rotary: bool) -> None:
        super().__init__(hidden_size, num_heads, dropout, causal=causal, rotary=rotary)
        self.attention_gate = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_gate = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: Tensor, padding_mask: Tensor, moment: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, T, D] from states [B, T, D]; padding_mask [B, T] is True where real, moment [B, T] is not looked at.

        With a packing, states are its row [1, P, D].
        """
        attended = self.dropout(self.attention(self.attention_norm(states), padding_mask, packing))
        states = states + torch.sigmoid(self.attention_gate(states)) * attended
        changed = self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return states + torch.sigmoid(self.feed_forward_gate(states)) * changed


class RecurrentBlock(nn.Module):
    """A gated recurrent unit behind a norm and beside a residual (Hidasi et al. 2016, "GRU4Rec")."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.recurrent = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, padding_mask: Tensor, moment: Tensor) -> Tensor:
        """[B, T, D] from states [B, T, D]; events stand before padding, so neither mask nor moment [B, T] is needed."""
        return states + self.dropout(self.recurrent(self.norm(states))[0])
