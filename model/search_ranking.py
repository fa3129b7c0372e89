"""Personalised search: what the network prefers for a user and a query, put together with how well items fit the query.

Invariants: an item that the network does not know never stands before one that it knows; ties go to the smaller item
index over the catalogue, and to the earlier one among candidates.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_io.examples import history_examples
from data_io.searches import Searches, search_sequences
from data_io.sequences import Sequences
from model.encoder import ClickformerEncoder
from model.scoring import UserBatches, rank_items


def preferences(
    encoder: ClickformerEncoder, searches: Searches, sequences: Sequences, search_action: int, num_items: int
) -> Tensor:
    """[N, V] log-probability of each item to come next after each search; minus infinity where it is not known.

    Args:
        encoder: which sees queries.
        searches: N of a bucket.
        sequences: of the bucket, as the encoder knows them.
        search_action: index of the action of searches.
        num_items: V, at least as many as the encoder knows.
    """
    length = encoder.config.sequence_length
    own = search_sequences(searches, sequences, search_action, length)
    examples = history_examples(own, None, length)
    batches = UserBatches(max(len(searches), 1))
    parts = list(batches.each(own, examples, lambda _, batch: rank_items(encoder, batch)[1]))
    found = torch.cat(parts) if parts else torch.zeros(0, encoder.config.vocabulary_size)
    return F.pad(found, (0, num_items - found.shape[1]), value=-torch.inf)


def blend(relevance: Tensor, preference: Tensor, weight: float) -> Tensor:
    """relevance + weight x preference, element by element; minus infinity where an item is not known."""
    return torch.where(torch.isneginf(preference), preference, relevance + weight * preference)


def order_candidates(search: np.ndarray, score: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """[P] places of candidates by search, best first, those without a score (NaN) last and by relevance.

    Args:
        search: [P] whose candidate each is.
        score: [P] blended scores, NaN where the item is not known.
        relevance: [P] of each.
    """
    unknown = np.isnan(score)
    key = np.where(unknown, relevance, score)
    return np.lexsort((np.arange(len(search)), -key, unknown, search))
