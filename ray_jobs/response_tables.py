"""What is kept of each pair of user and shown item: the response, its probability, and what there was before.

A row for every pair that is asked about, at the validation and the test cutoff. Invariant: that an item is shown is
given; all else but the response is known at the moment of prediction.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_io.responses import by_user, pair_features, response_examples
from data_io.schema import ITEM_INDEX, USER_ID
from data_io.sequences import Sequences
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.checkpoint import SavedModel
from model.response import ClickformerForResponse
from model.scoring import UserBatches, predict_responses
from model.task_config import ResponseTask
from ray_jobs.loading import known_to
from ray_jobs.outcome_tables import BEFORE, OUTCOME, PREDICTED, STAGE, STAGES
from ray_jobs.response_learning import shown_items


@dataclass(frozen=True, kw_only=True)
class AskedResponse:
    """A published task of responses and its settings."""

    saved: SavedModel
    task: ResponseTask

    @classmethod
    def of(cls, saved: SavedModel) -> "AskedResponse":
        """By what its manifest says."""
        return cls(saved=saved, task=ResponseTask.model_validate(saved.manifest["task"]))


def response_table(
    asked: AskedResponse, store: SequenceStore, sequences: Sequences, split: Cutoffs, batches: UserBatches
) -> pa.Table:
    """Pairs of the users of a bucket, as the task's network knows their items."""
    model = asked.saved.model
    assert isinstance(model, ClickformerForResponse), "other tasks have tables of their own"
    sequences = known_to(model.encoder, sequences)
    shown, length = shown_items(asked.task, store), model.encoder.config.sequence_length
    parts = []
    for stage in STAGES:
        examples = response_examples(sequences, np.array([split.of(stage)]), length, shown)
        users, place = by_user(examples)
        columns = {
            USER_ID: sequences.user_id.take(pa.array(examples.row)),
            ITEM_INDEX: examples.candidate,
            OUTCOME: examples.target[:, 0].astype(np.int32),
            PREDICTED: predict_responses(model, sequences, users, batches)[place],
            BEFORE: np.expm1(pair_features(sequences, examples)[:, 0]).round().astype(np.int32),
            STAGE: pa.array([stage] * len(examples), pa.string()),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
