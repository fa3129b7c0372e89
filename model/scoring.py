"""Scoring: what users ask of the catalogue, item scores and task scores of batches of users, without gradients."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_io.batch import CANDIDATE, FEATURES, PAIR_FEATURES, Batch, collate
from data_io.examples import Examples
from data_io.features import history_features, scale_features
from data_io.responses import pair_features
from data_io.schema import UNKNOWN_INDEX
from data_io.sequences import Sequences
from model.checkpoint import SavedModel
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.heads import ClickformerForOutcome
from model.memory import DeviceMemoryError
from model.queries import Queries
from model.response import ClickformerForResponse

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
def predict_answers(
    model: ClickformerForOutcome, sequences: Sequences, examples: Examples, batches: UserBatches
) -> dict[str, np.ndarray]:
    """[N, P] predictions of a task's network by question (see `model.answers`)."""

    def predict(part: Examples, batch: Batch) -> list[np.ndarray]:
        features = scale_features(history_features(sequences, part))
        found = model.predict(to_tensors(batch | {FEATURES: features}, model.device))
        return [predicted.cpu().numpy() for predicted in found]

    parts = list(batches.each(sequences, examples, predict))
    names = model.questions
    if not parts:
        widths = [question["num_classes"] or 1 for question in model.config.questions]
        return {name: np.zeros((0, width), np.float32) for name, width in zip(names, widths, strict=True)}
    return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}


def blended_answers(
    saved: SavedModel, sequences: Sequences, examples: Examples, batches: UserBatches
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """[N, P] predictions of a published task by question: as they are published, and of the network alone."""
    assert isinstance(saved.model, ClickformerForOutcome), "only tasks with heads have answers"
    alone = predict_answers(saved.model, sequences, examples, batches)
    features = history_features(sequences, examples) if saved.blends else np.zeros((0, 0), np.float32)
    return {
        name: (saved.blends[name].apply(own[:, 0], features)[:, None] if name in saved.blends else own, own)
        for name, own in alone.items()
    }


def response_inputs(sequences: Sequences, examples: Examples) -> Batch:
    """What a network is told of examples with candidates [B, K] besides their histories."""
    return {
        FEATURES: scale_features(history_features(sequences, examples)),
        CANDIDATE: examples.candidate.astype(np.int64),
        PAIR_FEATURES: pair_features(sequences, examples),
    }


@torch.no_grad()
def predict_responses(
    model: ClickformerForResponse, sequences: Sequences, examples: Examples, batches: UserBatches
) -> np.ndarray:
    """[N, K] probabilities that the candidates [N, K] of examples are responded to; each user is encoded once.

    An item that the network does not know is answered as the unknown one.
    """
    known = examples.candidate < model.encoder.config.vocabulary_size
    examples = examples.with_candidates(np.where(known, examples.candidate, UNKNOWN_INDEX))

    def predict(part: Examples, batch: Batch) -> np.ndarray:
        return model.predict(to_tensors(batch | response_inputs(sequences, part), model.device)).cpu().numpy()

    parts = list(batches.each(sequences, examples, predict))
    return np.concatenate([np.zeros((0, examples.candidate.shape[1]), np.float32), *parts])
