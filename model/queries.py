"""Queries: what is asked of the catalogue for each user, whichever way items are then ranked.

The next item is a mixture of a softmax over the catalogue, whose scores are dot products, and of items chosen in other
ways (`model.repeat`, `model.neighbour_choice`), which are few for each user. Invariant: the shares of a user add up to
1.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Queries(NamedTuple):
    """What is asked for B users."""

    users: Tensor
    """[B, D] vectors that are held against those of items."""
    log_share: Tensor
    """[B] log of the share of the softmax in the mixture."""
    row: Tensor
    """[P] the user, of items that are chosen in other ways too."""
    item_index: Tensor
    """[P] the item; one may come several times, and its probabilities add up."""
    probability: Tensor
    """[P] above 0, share and all."""

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """[B, V] log-probability of every item, from scores [B, V]; minus infinity where those are and nothing else."""
        anew = scores.log_softmax(dim=1) + self.log_share[:, None]
        if not len(self.row):
            return anew
        places = self.row * scores.shape[1] + self.item_index
        chosen = torch.zeros_like(anew).view(-1).index_add_(0, places, self.probability.to(anew.dtype))
        return torch.logaddexp(anew, chosen.view_as(anew).log_())

    def take(self, rows: np.ndarray) -> "Queries":
        """Queries of some of the users, their rows counted among these."""
        users = torch.from_numpy(rows).to(self.users.device)
        numbers = torch.full((len(self.users),), -1, device=users.device)
        numbers[users] = torch.arange(len(users), device=users.device)
        row = numbers[self.row]
        kept = row >= 0
        return Queries(
            self.users[users], self.log_share[users], row[kept], self.item_index[kept], self.probability[kept]
        )


def pure_queries(users: Tensor) -> Queries:
    """Queries of users [B, D] that the softmax alone answers."""
    none = torch.zeros(0, dtype=torch.long, device=users.device)
    return Queries(users, users.new_zeros(len(users), dtype=torch.float32), none, none, none.float())


def with_choices(queries: Queries, log_left: Tensor, item_index: Tensor, probability: Tensor) -> Queries:
    """The same where items are chosen in one more way, at the cost of all ways before.

    Args:
        queries: of B users.
        log_left: [B] log of the share that the ways before are left with.
        item_index: [B, C] items the new way chooses.
        probability: [B, C] of each, adding up to its share; 0: it is not chosen.
    """
    row, place = probability.nonzero(as_tuple=True)
    return Queries(
        queries.users,
        queries.log_share + log_left,
        torch.cat([queries.row, row]),
        torch.cat([queries.item_index, item_index[row, place]]),
        torch.cat([queries.probability * log_left.exp()[queries.row], probability[row, place].float()]),
    )


def concatenate(parts: list[Queries]) -> Queries:
    """Queries of several batches of users, one after the other."""
    sizes = [len(part.users) for part in parts]
    firsts = [sum(sizes[:number]) for number in range(len(parts))]
    users, log_share, _, item_index, probability = (torch.cat(column) for column in zip(*parts, strict=True))
    row = torch.cat([part.row + first for part, first in zip(parts, firsts, strict=True)])
    return Queries(users, log_share, row, item_index, probability)
