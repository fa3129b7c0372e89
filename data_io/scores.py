"""Scores: one row per user, what the scoring job writes and everyone else reads.

Invariant: every user of the store has exactly one row, in the bucket of the user.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_io.examples import Examples
from data_io.schema import FIRST_INDEX, USER_ID
from data_io.sequences import Sequences
from data_io.vocabulary import Vocabulary

ITEM_IDS = "item_ids"
SCORES = "scores"
EMBEDDING = "embedding"
NUM_EVENTS = "num_events"
MODEL_VERSION = "model_version"


def task_column(name: str) -> str:
    """The column of a task's probability."""
    return f"score_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserScores:
    """What was computed for the B users of a bucket."""

    item_index: np.ndarray
    """[B, K] recommended items, best first."""
    item_score: np.ndarray
    """[B, K] their scores; minus infinity where there was no further item."""
    embedding: np.ndarray
    """[B, D]."""
    tasks: dict[str, np.ndarray]
    """[B] probability by task."""


def scores_table(sequences: Sequences, scores: UserScores, vocabulary: Vocabulary, model_version: str) -> pa.Table:
    """The rows of a bucket; lists of users with fewer than K eligible items are shorter."""
    real = np.isfinite(scores.item_score)
    offsets = pa.array(np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64))
    width = scores.embedding.shape[1]
    vectors = pa.array(scores.embedding.astype(np.float32).reshape(-1))
    num_events = (sequences.ends - sequences.starts).astype(np.int32)
    columns = {
        USER_ID: sequences.user_id,
        ITEM_IDS: pa.LargeListArray.from_arrays(offsets, vocabulary.decode(scores.item_index[real])),
        SCORES: pa.LargeListArray.from_arrays(offsets, pa.array(scores.item_score[real].astype(np.float32))),
    }
    columns |= {task_column(name): pa.array(values.astype(np.float32)) for name, values in scores.tasks.items()}
    columns |= {
        EMBEDDING: pa.FixedSizeListArray.from_arrays(vectors, width),
        NUM_EVENTS: pa.array(num_events),
        MODEL_VERSION: pa.repeat(pa.scalar(model_version), sequences.num_users),
    }
    return pa.table(columns)


def seen_pairs(sequences: Sequences, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """(row of the batch, item) of every known item in the whole history of each example, before its span's end."""
    begin = sequences.starts[examples.row]
    lengths = examples.end - begin
    row = np.repeat(np.arange(len(examples)), lengths)
    places = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begin, lengths)
    items = sequences.item_index[places]
    known = items >= FIRST_INDEX
    return row[known], items[known]
