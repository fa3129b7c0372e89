"""HSTU: attention without a softmax, which knows how far apart events are, in places and in time.

Zhai et al. 2024, "Actions speak louder than words", arXiv 2402.17152, eq. 1 to 3. Weights are not normalised, so how
strong an interest is stays visible. Invariant: a state depends on no padding and, where causal, on no later event.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.batch import NUM_TIME_BUCKETS

_LONGEST = NUM_TIME_BUCKETS - 1
_MICROS = 1e6


class HstuBlock(nn.Module):
    """One layer: project, aggregate pointwise, gate, project back, beside a residual."""

    def __init__(self, hidden_size: int, num_heads: int, length: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.length = length
        self.causal = causal
        self.norm = nn.LayerNorm(hidden_size)
        self.project_in = nn.Linear(hidden_size, 4 * hidden_size)
        self.place_bias = nn.Embedding(2 * length + 1, num_heads)
        self.time_bias = nn.Embedding(NUM_TIME_BUCKETS, num_heads)
        self.attended_norm = nn.LayerNorm(hidden_size)
        self.project_out = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, padding_mask: Tensor, moment: Tensor) -> Tensor:
        """[B, T, D] from states [B, T, D], padding_mask [B, T] (True where real), moment [B, T] in microseconds."""
        num_examples, length, hidden_size = states.shape
        projected = F.silu(self.project_in(self.norm(states)))
        gate, rest = projected.split([hidden_size, 3 * hidden_size], dim=2)
        query, key, value = rest.view(num_examples, length, 3, self.num_heads, hidden_size // self.num_heads).permute(
            2, 0, 3, 1, 4
        )
        bias = self.place_bias(self._distances(length, states.device)) + self.time_bias(time_apart(moment))
        weights = F.silu(query @ key.transpose(2, 3) + bias.permute(0, 3, 1, 2)) / self.length
        attended = (weights * self._visible(padding_mask)) @ value
        attended = attended.transpose(1, 2).reshape(num_examples, length, hidden_size)
        return states + self.project_out(self.dropout(self.attended_norm(attended) * gate))

    def _distances(self, length: int, device: torch.device) -> Tensor:
        """[1, T, T] places between events, from 0 to 2 L."""
        places = torch.arange(length, device=device)
        return (places[:, None] - places[None, :] + self.length).clamp(0, 2 * self.length)[None]

    def _visible(self, padding_mask: Tensor) -> Tensor:
        """[B, 1, T, T] which events each event sees."""
        seen = padding_mask[:, None, None, :].expand(-1, 1, padding_mask.shape[1], -1)
        return seen.tril() if self.causal else seen


def time_apart(moment: Tensor) -> Tensor:
    """[B, T, T] half-octave bucket (1 to 63) of the time between events, from moments [B, T] in microseconds."""
    seconds = (moment[:, :, None] - moment[:, None, :]).abs().float() / _MICROS
    return (1 + (2 * torch.log2(seconds + 1)).floor()).clamp(1, _LONGEST).long()
