"""Heads: what is asked of a pretrained encoder besides items.

A head reads the user's vector and the counts of the whole history, since the encoder sees only the newest events.
Invariant: a folder with a head loads with `from_pretrained` alone.
"""

import torch
from torch import Tensor, nn

from data_io.batch import FEATURES
from data_io.config import SettingsError
from model.adapters import add_adapters
from model.config import FrozenEncoder, FullEncoder, LowRankAdapters, TopLayers, Trainable
from model.encoder import ClickformerConfig, ClickformerEncoder, ClickformerPreTrainedModel, TensorBatch


class OutcomeHead(nn.Module):
    """Logit of a binary outcome from a user's vector and standardised features."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, hidden_size: int, num_features: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.linear = nn.Linear(num_features, 1)
        self.deep = nn.Sequential(
            nn.Linear(hidden_size + num_features, hidden_size),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, 1),
        )

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Fix the features' mean and spread [F], taken from training examples."""
        self.feature_mean = mean.float()
        self.feature_std = std.float().clamp(min=1e-6)

    def forward(self, users: Tensor, features: Tensor) -> Tensor:
        """Logits [B] from user vectors [B, D] and features [B, F]."""
        scaled = (features - self.feature_mean) / self.feature_std
        return (self.linear(scaled) + self.deep(torch.cat([users, scaled], dim=1))).squeeze(1)


class ClickformerForOutcome(ClickformerPreTrainedModel):
    """An encoder with a head for one binary outcome."""

    def __init__(self, config: ClickformerConfig) -> None:
        super().__init__(config)
        self.encoder = ClickformerEncoder(config)
        self.head = OutcomeHead(config.hidden_size, config.num_features, config.dropout)
        self.post_init()

    def free_parameters(self, trainable: Trainable) -> None:
        """Mark what learns: the head, and of the encoder all that an outcome depends on."""
        free_parameters(self.encoder, trainable)
        if self.encoder.repeat_choice is not None:
            self.encoder.repeat_choice.requires_grad_(False)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Logits [B] of the outcome."""
        return self.head(self.encoder.user_states(batch), batch[FEATURES])


def free_parameters(encoder: ClickformerEncoder, trainable: Trainable) -> None:
    """Mark which of the encoder's parameters learn; adapters are added to it.

    Raises:
        SettingsError: more free blocks are asked for than there are, or they have nothing that adapters fit.
    """
    match trainable:
        case FullEncoder():
            encoder.requires_grad_(True)
        case FrozenEncoder():
            encoder.requires_grad_(False)
        case LowRankAdapters():
            add_adapters(encoder, trainable)
        case TopLayers(num_layers=num_layers):
            layers = encoder.layers
            if num_layers > len(layers):
                raise SettingsError(
                    f"finetune.trainable.num_layers is {num_layers}, but the encoder has {len(layers)} blocks that can "
                    "be told apart"
                )
            encoder.requires_grad_(False)
            encoder.readout.requires_grad_(True)
            if encoder.repeat_choice is not None:
                encoder.repeat_choice.requires_grad_(True)
            for layer in layers[-num_layers:]:
                layer.requires_grad_(True)
