"""Heads: what is asked of a pretrained encoder besides items, one head for each question.

A head reads the user's vector and the counts of the whole history, since the encoder sees only the newest events.
Invariant: a folder with a head loads with `from_pretrained` alone.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from data_io.batch import FEATURES
from data_io.config import SettingsError
from model.adapters import add_adapters
from model.answers import AnswerKind, Start, answer_kind
from model.encoder import ClickformerConfig, ClickformerEncoder, ClickformerPreTrainedModel, TensorBatch
from model.task_config import FrozenEncoder, FullEncoder, LowRankAdapters, TopLayers, Trainable


class QuestionHead(nn.Module):
    """Outputs of one question: linear in the features, and by a layer in between from the user's vector and them.

    Args:
        hidden_size: D.
        num_features: F.
        num_outputs: O.
        dropout: share of the layer in between that is dropped.
        deep: False: without the layer in between, linear in vector and features, which suits few labels.
    """

    def __init__(self, hidden_size: int, num_features: int, num_outputs: int, dropout: float, *, deep: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_outputs)
        both = hidden_size + num_features
        if deep:
            last = nn.Linear(hidden_size, num_outputs)
            self.deep: nn.Module = nn.Sequential(nn.Linear(both, hidden_size), nn.SiLU(), nn.Dropout(dropout), last)
        else:
            self.deep = nn.Linear(both, num_outputs)

    def start(self) -> None:
        """All outputs become zero; what is in between keeps its fresh weights, and learns from the second step on."""
        for layer in (self.linear, self.deep[-1] if isinstance(self.deep, nn.Sequential) else self.deep):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, users: Tensor, features: Tensor) -> Tensor:
        """Outputs [B, O] from user vectors [B, D] and standardised features [B, F]."""
        return self.linear(features) + self.deep(torch.cat([users, features], dim=1))


class OutcomeHead(nn.Module):
    """Outputs of all questions of a task from a user's vector and features, which it standardises."""

    feature_mean: Tensor
    feature_std: Tensor
    bias: Tensor
    spread: Tensor

    def __init__(
        self, hidden_size: int, num_features: int, dropout: float, kinds: Sequence[AnswerKind], *, deep: bool = True
    ) -> None:
        super().__init__()
        self.kinds = list(kinds)
        num_outputs = sum(kind.num_outputs for kind in kinds)
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_outputs))
        self.register_buffer("spread", torch.ones(num_outputs))
        self.parts = nn.ModuleList(
            QuestionHead(hidden_size, num_features, kind.num_outputs, dropout, deep=deep) for kind in kinds
        )

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Fix the features' mean and spread [F], taken from training examples."""
        self.feature_mean = mean.float()
        self.feature_std = std.float().clamp(min=1e-6)

    def set_start(self, found: Sequence[Start]) -> None:
        """Fix what the outputs are before anything is learned, taken from training labels."""
        self.bias = torch.from_numpy(np.concatenate([start.bias for start in found])).float()
        self.spread = torch.from_numpy(np.concatenate([start.spread for start in found])).float()

    def forward(self, users: Tensor, features: Tensor) -> Tensor:
        """Outputs [B, O] of all questions from user vectors [B, D] and features [B, F]."""
        scaled = (features - self.feature_mean) / self.feature_std
        return torch.cat([part(users, scaled) for part in self.parts], dim=1) + self.bias

    def split(self, outputs: Tensor) -> list[tuple[AnswerKind, Tensor, Tensor]]:
        """Of each question the kind of its answer, its outputs [B, O] and their units [O]."""
        sizes = [kind.num_outputs for kind in self.kinds]
        return list(zip(self.kinds, outputs.split(sizes, dim=1), self.spread.split(sizes), strict=True))


class ClickformerForOutcome(ClickformerPreTrainedModel):
    """An encoder with heads for questions about what follows."""

    def __init__(self, config: ClickformerConfig) -> None:
        super().__init__(config)
        self.encoder = ClickformerEncoder(config)
        kinds = [answer_kind(question["answer"], question["num_classes"]) for question in config.questions]
        self.head = OutcomeHead(config.hidden_size, config.num_features, config.dropout, kinds, deep=config.deep_heads)
        self.post_init()

    @property
    def questions(self) -> list[str]:
        """Names of the questions, in the order of the heads."""
        return [question["name"] for question in self.config.questions]

    def free_parameters(self, trainable: Trainable) -> None:
        """Mark what learns: the heads, and of the encoder all that an outcome depends on."""
        free_parameters(self.encoder, trainable)
        if self.encoder.repeat_choice is not None:
            self.encoder.repeat_choice.requires_grad_(False)

    def forward(self, batch: TensorBatch) -> Tensor:
        """Outputs [B, O] of all questions."""
        return self.head(self.encoder.user_states(batch), batch[FEATURES])

    def predict(self, batch: TensorBatch) -> list[Tensor]:
        """Predictions [B, P] of each question (see `model.answers`)."""
        return [kind.predict(outputs, spread) for kind, outputs, spread in self.head.split(self(batch).float())]


class HeadObjective(nn.Module):
    """An objective of an encoder with heads, whose dropout is off while it does not learn.

    Args:
        model: encoder and heads.
    """

    def __init__(self, model: ClickformerPreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Self:
        """As usual, but an encoder that does not learn keeps its dropout off."""
        super().train(mode)
        encoder = self.model.get_submodule("encoder")
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
        return self


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
