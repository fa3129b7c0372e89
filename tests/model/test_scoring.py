"""Scoring: every user in order, whatever the size of a batch, and scores that are probabilities."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_io.batch import ITEM_INDEX
from data_io.examples import Examples, history_examples
from data_io.features import FEATURE_NAMES
from data_io.sequences import Sequences
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.scoring import UserBatches, iter_batches, predict_answers, rank_items

USERS = ([3, 4, 3], [5], [], [1, 1], [7, 8, 9, 10, 11])
SHAPE = {"vocabulary_size": 12, "num_actions": 4, "hidden_size": 8, "num_layers": 1}
both_kinds = pytest.mark.parametrize("attention", ["causal", "bidirectional"])


def make_users() -> tuple[Sequences, Examples]:
    """Five users, one without events and one with unknown items only, and their histories."""
    items = np.array([item for user in USERS for item in user], np.int32)
    sequences = Sequences(
        user_id=pa.array([f"u{row}" for row in range(len(USERS))]),
        offsets=np.cumsum([0, *map(len, USERS)]).astype(np.int64),
        item_index=items,
        action_index=np.full(len(items), 2, np.int16),
        event_time=np.arange(len(items)) * 3_600_000_000,
    )
    return sequences, history_examples(sequences, now=None, length=4)


def make_model() -> ClickformerForOutcome:
    torch.manual_seed(0)
    return ClickformerForOutcome(ClickformerConfig(num_features=len(FEATURE_NAMES), **SHAPE)).eval()


def all_scores(encoder: ClickformerEncoder, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [rank_items(encoder, batch) for _, batch in iter_batches(*make_users(), batch_size)]
    return torch.cat([users for users, _ in parts]), torch.cat([scores for _, scores in parts])


def make_encoder(attention: str) -> ClickformerEncoder:
    torch.manual_seed(0)
    return ClickformerEncoder(ClickformerConfig(attention=attention, **SHAPE)).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_batches_hold_every_example_once_and_in_order(batch_size: int) -> None:
    parts = list(iter_batches(*make_users(), batch_size))
    assert np.concatenate([part.row for part, _ in parts]).tolist() == [0, 1, 2, 3, 4]
    assert all(len(part) == len(batch[ITEM_INDEX]) <= batch_size for part, batch in parts)


def test_no_example_gives_no_batch_and_no_probability() -> None:
    sequences, examples = make_users()
    nobody = examples.take(np.zeros(0, np.int64))
    assert list(iter_batches(sequences, nobody, 4)) == []
    assert predict_answers(make_model(), sequences, nobody, UserBatches(4))[""].shape == (0, 1)


@both_kinds
def test_size_of_a_batch_changes_no_vector_and_no_score(attention: str) -> None:
    encoder = make_encoder(attention)
    alone, together = all_scores(encoder, 1), all_scores(encoder, 5)
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[1], together[1], atol=1e-5, rtol=0)


@both_kinds
def test_scores_carry_no_gradient_and_leave_out_padding_and_unknown(attention: str) -> None:
    users, scores = all_scores(make_encoder(attention), 2)
    assert not users.requires_grad
    assert users.isfinite().all()
    assert (scores[:, :2] == float("-inf")).all()
    assert scores[:, 2:].isfinite().all()


@both_kinds
def test_scores_are_probabilities_also_where_there_is_nothing_to_choose_again(attention: str) -> None:
    _, scores = all_scores(make_encoder(attention), 5)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(5), atol=1e-5, rtol=0)


def test_answers_do_not_depend_on_the_size_of_a_batch() -> None:
    sequences, examples = make_users()
    alone, together = (predict_answers(make_model(), sequences, examples, UserBatches(size))[""] for size in (1, 5))
    np.testing.assert_allclose(alone, together, atol=1e-6)
    assert ((together > 0) & (together < 1)).all()
