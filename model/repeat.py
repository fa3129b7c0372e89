"""Repeats: how likely a user comes back to which item of the own history.

People buy again, and a dot product of D numbers cannot name every item of a long history. So the next item is a mixture
of two ways to choose: anew, by a softmax over the catalogue, or again, by attention over the own events (Ren et al.
2019, "RepeatNet", eq. 1; a pointer-generator as in See et al. 2017). Invariant: the mixture is a probability over
items, and an event gives no weight to events after it under causal attention.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import rotate
from model.queries import Queries, with_choices

_NEVER = -1e4
"""Log-weight of what may not be chosen: finite, because the gradient of minus infinity is not a number."""


class Repeats(NamedTuple):
    """What may be chosen again at each event."""

    log_weight: Tensor
    """[B, T, T] log of the attention of each event (second) over events (third); sums to 1 over allowed ones."""
    gate: Tensor
    """[B, T] logit of choosing again rather than anew; never where there is nothing to choose again."""

    def log_probability(self, item_index: Tensor, targets: Tensor) -> Tensor:
        """[B, T] log-probability that choosing again gives the target of each event.

        Args:
            item_index: [B, T] items of the events.
            targets: [B, T] an item for each event.
        """
        same = item_index[:, None, :] == targets[:, :, None]
        return torch.logsumexp(self.log_weight.masked_fill(~same, _NEVER), dim=2)


class RepeatChoice(nn.Module):
    """Attention of each state over the events it may choose again, and the gate."""

    def __init__(self, hidden_size: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, 1)

    def forward(self, states: Tensor, allowed: Tensor) -> Repeats:
        """Repeats from states [B, T, D]; allowed [B, T] is True at events with a known item that is not hidden."""
        query, key = rotate(self.query(states)[:, None]), rotate(self.key(states)[:, None])
        scores = (query @ key.transpose(2, 3))[:, 0].float() * states.shape[-1] ** -0.5
        choosable = allowed[:, None, :]
        if self.causal:
            places = torch.arange(states.shape[1], device=states.device)
            choosable = choosable & (places[None, :] <= places[:, None])
        log_weight = F.log_softmax(scores.masked_fill(~choosable, _NEVER), dim=2)
        log_weight = log_weight.masked_fill(~choosable, _NEVER)
        gate = self.gate(states).squeeze(-1).float()
        return Repeats(log_weight, gate.masked_fill(~choosable.any(dim=2), _NEVER))


def mix_losses(loss_anew: Tensor, log_again: Tensor, gate: Tensor) -> Tensor:
    """[P] negative log-likelihood of targets under the mixture.

    Args:
        loss_anew: [P] negative log-probability of each target when choosing anew.
        log_again: [P] log-probability of each target when choosing again.
        gate: [P] logit of choosing again.
    """
    return -torch.logaddexp(F.logsigmoid(-gate) - loss_anew, F.logsigmoid(gate) + log_again)


def choose_again(queries: Queries, item_index: Tensor, log_weight: Tensor, gate: Tensor) -> Queries:
    """Queries of B users who may choose again too.

    Args:
        queries: of choosing anew.
        item_index: [B, T] the user's items.
        log_weight: [B, T] of each event when choosing again.
        gate: [B] logit of choosing again.
    """
    return with_choices(queries, F.logsigmoid(-gate), item_index, gate.sigmoid()[:, None] * log_weight.exp())
