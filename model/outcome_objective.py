"""The objective of a task that asks questions: the losses of all its heads.

Invariant: as with every objective, losses are sums over users, so that a loss is the same for any number of workers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_io.batch import OUTCOME, PADDING_MASK
from model.encoder import TensorBatch
from model.heads import ClickformerForOutcome, HeadObjective


class OutcomeObjective(HeadObjective):
    """The sum over questions of what their answers cost, weighed.

    Args:
        model: encoder and heads.
        weights: of the questions; None: each weighs 1.
        learned: whether weights are learned beside them, from how uncertain answers are: each loss is divided by a
            variance, whose logarithm is added. Source: Kendall et al. 2018, "Multi-task learning using uncertainty to
            weigh losses", eq. 10.
    """

    model: ClickformerForOutcome
    weights: Tensor

    def __init__(
        self,
        model: ClickformerForOutcome,
        weights: Sequence[float] | None = None,
        *,
        learned: bool = False,
    ) -> None:
        super().__init__(model)
        num_questions = len(model.head.kinds)
        self.register_buffer("weights", torch.tensor(weights or [1.0] * num_questions), persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(num_questions)) if learned else None

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over the users of a batch that have events; nothing here is drawn by `seed`."""
        real = batch[PADDING_MASK].any(dim=1)
        total = torch.zeros((), device=real.device)
        for place, losses in enumerate(self._losses(batch)):
            loss = self.weights[place] * losses
            if self.log_variance is not None:
                loss = loss * torch.exp(-self.log_variance[place]) + self.log_variance[place] / 2
            total = total + torch.where(real, loss, 0.0).sum()
        return total

    def _losses(self, batch: TensorBatch) -> list[Tensor]:
        """[B] of each question."""
        heads = self.model.head.split(self.model(batch))
        labels = batch[OUTCOME].split([kind.num_labels for kind, _, _ in heads], dim=1)
        return [kind.loss(outputs, own, spread) for (kind, outputs, spread), own in zip(heads, labels, strict=True)]
