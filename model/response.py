"""The chance that an item is responded to by the user it is shown to: a head on the encoder's vectors of both.

The head reads the user's vector, the item's vector as users are held against it (so that features of items enter), the
counts of the whole history and what the user had with the item before. Invariants: a folder loads with
`from_pretrained` alone; losses are sums over examples, so that a loss is the same for any number of workers.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_io.batch import CANDIDATE, FEATURES, OUTCOME, PADDING_MASK, PAIR_FEATURES
from data_io.responses import NUM_PAIR_FEATURES
from data_io.schema import UNKNOWN_INDEX
from model.encoder import ClickformerConfig, ClickformerEncoder, ClickformerPreTrainedModel, TensorBatch
from model.heads import HeadObjective, QuestionHead, free_parameters
from model.task_config import Trainable


class InnerProduct(nn.Module):
    """(A u) . (B v) / sqrt(D), zero before anything is learned because B starts there."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_user = nn.Linear(hidden_size, hidden_size, bias=False)
        self.of_item = nn.Linear(hidden_size, hidden_size, bias=False)

    def start(self) -> None:
        """One of both maps is zero: were both, neither would have a gradient."""
        nn.init.zeros_(self.of_item.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, K] of users [B, D] and items [B, K, D]."""
        return _dot(self.of_user(users), self.of_item(items))


class Bilinear(nn.Module):
    """u W v / sqrt(D); W starts at zero. By the root, a step of W moves wide vectors no further."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(hidden_size, hidden_size, bias=False)

    def start(self) -> None:
        """The matrix is zero."""
        nn.init.zeros_(self.matrix.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, K] of users [B, D] and items [B, K, D]."""
        return _dot(users, self.matrix(items))


def _dot(users: Tensor, items: Tensor) -> Tensor:
    return (users[:, None] * items).sum(dim=-1) / users.shape[-1] ** 0.5


class ResponseHead(nn.Module):
    """Logits of responses: mean log odds, what user and history say, the pair, the item's bias, and user by item.

    Args:
        hidden_size: D.
        num_features: F.
        num_items: V that have a bias; items that came later have that of the unknown one, which is zero.
        dropout: share of the layer on the user's side that is dropped.
        interaction: how user and item meet.
        deep: as of `QuestionHead`.
    """

    feature_mean: Tensor
    feature_std: Tensor
    bias: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_features: int,
        num_items: int,
        dropout: float,
        interaction: Literal["inner_product", "bilinear"],
        *,
        deep: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(1))
        self.of_user = QuestionHead(hidden_size, num_features, 1, dropout, deep=deep)
        self.of_pair = nn.Linear(NUM_PAIR_FEATURES, 1, bias=False)
        self.item_bias = nn.Embedding(num_items, 1)
        self.interaction = (InnerProduct if interaction == "inner_product" else Bilinear)(hidden_size)

    def start(self) -> None:
        """Every logit is the mean log odds before anything is learned: what enters it last is zero everywhere."""
        self.of_user.start()
        nn.init.zeros_(self.of_pair.weight)
        nn.init.zeros_(self.item_bias.weight)
        self.interaction.start()

    def set_scale(self, mean: Tensor, std: Tensor, log_odds: float) -> None:
        """Fix the features' mean and spread [F], and the log odds of the mean rate, taken from training examples."""
        self.feature_mean = mean.float()
        self.feature_std = std.float().clamp(min=1e-6)
        self.bias = torch.tensor([log_odds])

    def forward(self, users: Tensor, features: Tensor, items: Tensor, candidate: Tensor, pairs: Tensor) -> Tensor:
        """Logits [B, K] of vectors [B, D] of users and [B, K, D] of items, features [B, F], item indices [B, K] and
        pair features [B, K, 2]."""
        own = self.of_user(users, (features - self.feature_mean) / self.feature_std)
        known = torch.where(candidate < self.item_bias.num_embeddings, candidate, UNKNOWN_INDEX)
        of_item = self.item_bias(known)[..., 0] + self.of_pair(pairs)[..., 0]
        return self.bias + own + of_item + self.interaction(users, items)


class ClickformerForResponse(ClickformerPreTrainedModel):
    """An encoder with a head for responses to shown items."""

    def __init__(self, config: ClickformerConfig) -> None:
        super().__init__(config)
        self.encoder = ClickformerEncoder(config)
        self.head = ResponseHead(
            config.hidden_size,
            config.num_features,
            config.vocabulary_size,
            config.dropout,
            config.interaction,
            deep=config.deep_heads,
        )
        self.post_init()
        if not self.head.bias.is_meta:
            self.head.start()

    def free_parameters(self, trainable: Trainable) -> None:
        """Mark what learns: the head, and of the encoder all that a response depends on."""
        free_parameters(self.encoder, trainable)
        if self.encoder.repeat_choice is not None:
            self.encoder.repeat_choice.requires_grad_(False)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Logits [B, K] of the candidates; users are encoded once for all of theirs."""
        table, candidate = self.encoder.item_table, batch[CANDIDATE]
        items = table.compared(table(candidate))
        users = self.encoder.user_states(batch)
        return self.head(users, batch[FEATURES], items, candidate, batch[PAIR_FEATURES])

    def predict(self, batch: TensorBatch) -> Tensor:
        """Probabilities [B, K] of the candidates."""
        return torch.sigmoid(self(batch).float())


class ResponseObjective(HeadObjective):
    """The log loss of responses, each example with one candidate."""

    model: ClickformerForResponse

    def __init__(self, model: ClickformerForResponse) -> None:
        super().__init__(model)

    def forward(self, batch: TensorBatch, seed: int) -> Tensor:
        """Summed loss over the examples of a batch that have events; nothing here is drawn by `seed`."""
        real = batch[PADDING_MASK].any(dim=1)
        losses = F.binary_cross_entropy_with_logits(self.model(batch), batch[OUTCOME], reduction="none")[:, 0]
        return torch.where(real, losses, 0.0).sum()
