"""Scoring: vectors, item scores and task scores of batches of users, without gradients."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data_io.batch import FEATURES, Batch, collate
from data_io.examples import Examples
from data_io.features import history_features, scale_features
from data_io.sequences import Sequences
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.heads import ClickformerForOutcome


def iter_batches(sequences: Sequences, examples: Examples, batch_size: int) -> Iterator[tuple[Examples, Batch]]:
    """Examples in order, batch_size at a time, each part with its batch."""
    for first in range(0, len(examples), batch_size):
        part = examples.take(np.arange(first, min(first + batch_size, len(examples))))
        yield part, collate(sequences, part)


@torch.no_grad()
def rank_items(encoder: ClickformerEncoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Vectors [B, D] of users and log-probabilities [B, V] of items; minus infinity for padding and unknown."""
    users, scores = encoder.rank_items(to_tensors(batch, encoder.device))
    return users.float(), scores.float()


@torch.no_grad()
def outcome_probabilities(
    model: ClickformerForOutcome, sequences: Sequences, examples: Examples, batch_size: int
) -> np.ndarray:
    """[N] probabilities of a task's outcome."""
    parts = [np.zeros(0, np.float32)]
    for part, batch in iter_batches(sequences, examples, batch_size):
        features = scale_features(history_features(sequences, part))
        logits = model(to_tensors(batch | {FEATURES: features}, model.device))
        parts.append(torch.sigmoid(logits.float()).cpu().numpy())
    return np.concatenate(parts)
