"""Negatives: the items a sampled softmax holds the target against.

A shared pool of N negatives is drawn partly evenly and partly from the targets of the batch, so by popularity; each
pool entry is corrected by how often it is expected there. The target itself is not drawn and not corrected (Khrylchenko
et al. 2025, "Correcting the LogQ Correction", arXiv 2507.09331). Invariant: an item is never its own negative.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.schema import FIRST_INDEX
from model.config import SampledSoftmax
from model.embedding import ItemTable


class NegativeSampler(nn.Module):
    """Draws negatives and knows the log of their expected number."""

    share: Tensor
    """[V] share of each item among all events."""

    def __init__(self, settings: SampledSoftmax, item_counts: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("share", item_counts.float() / item_counts.sum().clamp(min=1), persistent=False)

    def forward(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Negatives [N] and the log of their expected number in the pool [N], from targets [P]."""
        device, vocabulary_size = targets.device, len(self.share)
        uniform = torch.randint(FIRST_INDEX, vocabulary_size, (self.settings.num_uniform,), generator=generator)
        pool = [uniform.to(device)]
        num_in_batch = self.settings.num_in_batch if len(targets) else 0
        if num_in_batch:
            pool.append(targets[torch.randint(len(targets), (num_in_batch,), generator=generator).to(device)])
        negatives = torch.cat(pool)
        evenly = self.settings.num_uniform / (vocabulary_size - FIRST_INDEX)
        return negatives, torch.log(evenly + num_in_batch * self.share[negatives])


def sampled_softmax_loss(
    states: Tensor, targets: Tensor, item_table: ItemTable, negatives: Tensor, log_expected: Tensor
) -> Tensor:
    """[P] sampled-softmax loss of each position.

    Args:
        states: [P, D]. targets: [P]. negatives: [N], shared by all positions.
        item_table: of the encoder.
        log_expected: [N] log of the expected number of each negative in the pool.
    """
    positive = (states * item_table(targets)).sum(dim=1, keepdim=True).float()
    against = (states @ item_table(negatives).T).float() - log_expected
    against = against.masked_fill(negatives[None, :] == targets[:, None], float("-inf"))
    scores = torch.cat([positive, against], dim=1)
    return F.cross_entropy(scores, torch.zeros_like(targets), reduction="none")
