"""Scoring: what users ask of the catalogue, item scores and task scores of batches of users, without gradients."""

from collections.abc import Callable, Iterator
from typing import TypeVar

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
from model.memory import DeviceMemoryError
from model.queries import Queries

Result = TypeVar("Result")


class UserBatches:
    """Batches of users for a network: smaller ones for good once the device has no room for one.

    Args:
        size: users of a batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def each(
        self, sequences: Sequences, examples: Examples, work: Callable[[Examples, Batch], Result]
    ) -> Iterator[Result]:
        """What is made of each batch, in the order of the examples.

        Raises:
            DeviceMemoryError: there is no room for a single user.
        """
        first = 0
        while first < len(examples):
            part = examples.take(np.arange(first, min(first + self.size, len(examples))))
            try:
                result = work(part, collate(sequences, part))
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise DeviceMemoryError(
                        "out of GPU memory while one user was encoded: take a smaller encoder, or a larger GPU"
                    ) from None
                self.size = max(self.size // 2, 1)
                torch.cuda.empty_cache()
                continue
            first += len(part)
            yield result


@torch.no_grad()
def ask(encoder: ClickformerEncoder, batch: Batch) -> Queries:
    """What the catalogue is asked for each user of a batch."""
    return encoder.queries(to_tensors(batch, encoder.device))


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
    model: ClickformerForOutcome, sequences: Sequences, examples: Examples, batches: UserBatches
) -> np.ndarray:
    """[N] probabilities of a task's outcome."""

    def predict(part: Examples, batch: Batch) -> np.ndarray:
        features = scale_features(history_features(sequences, part))
        logits = model(to_tensors(batch | {FEATURES: features}, model.device))
        return torch.sigmoid(logits.float()).cpu().numpy()

    return np.concatenate([np.zeros(0, np.float32), *batches.each(sequences, examples, predict)])
