"""The Transformer block: pre-norm attention and a gated feed-forward layer (SwiGLU, Shazeer 2020, eq. 6)."""

from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import SelfAttention


class FeedForward(nn.Module):
    """SwiGLU of inner width 2 D."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.down = nn.Linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] from [..., D]."""
        return self.down(F.silu(self.gate(states)) * self.up(states))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, causal=causal)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, padding_mask: Tensor) -> Tensor:
        """[B, T, D] from states [B, T, D] and padding_mask [B, T], True where real."""
        states = states + self.dropout(self.attention(self.attention_norm(states), padding_mask))
        return states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
