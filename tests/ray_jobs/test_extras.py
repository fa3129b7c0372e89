"""Auxiliary losses, changed windows and worst steps, from settings through a few steps of training to a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_io.batch import TARGET_ACTION_INDEX, TARGET_ITEM_INDEX, merge_batches
from data_io.sequences import Sequences
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.engine import to_tensors
from model.objectives import ItemObjective
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import count_items
from ray_jobs.tasks import pretraining
from tests.ray_jobs.conftest import SPLIT, MakeSettings, count_bucket

CPU = torch.device("cpu")
SECTION = {
    "softmax": {"kind": "full"},
    "auxiliary": {"next_action": 0.5, "time_to_next": 0.5, "contrastive": 0.5},
    "augmentation": {"crop": 0.25, "mask": 0.25, "reorder": 0.5},
    "adversarial": 0.1,
}


@pytest.fixture
def learning(store: SequenceStore, make_settings: MakeSettings) -> ItemLearning:
    return pretraining(make_settings(pretrain=SECTION), store, SPLIT)


def train(learning: ItemLearning, sequences: Sequences, num_steps: int) -> tuple[ItemObjective, list[float]]:
    """Full-batch steps, and the mean loss of each."""
    torch.manual_seed(0)
    objective = learning.build(count_bucket(learning, sequences))
    assert isinstance(objective, ItemObjective)
    batch = learning.make_batch(sequences, learning.make_examples(sequences))
    batch = merge_batches([batch, learning.empty_batch()])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.02)
    losses = []
    for step in range(num_steps):
        loss = objective(to_tensors(batch, CPU), seed=step) / learning.num_targets(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return objective, losses


def test_all_of_it_together_is_learned_and_leaves_an_encoder_like_any_other(
    learning: ItemLearning, sequences: Sequences, tmp_path: Path
) -> None:
    objective, losses = train(learning, sequences, 30)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    url = str(tmp_path / "encoder")
    save_model(learning.model_of(objective), learning.store.vocabulary, url, learning.describe())
    loaded = load_model(url).encoder
    assert loaded.state_dict().keys() == learning.model_of(objective).state_dict().keys()
    assert any(name.startswith("auxiliary.") for name in objective.state_dict())
    values = learning.validate(loaded.eval(), sequences, learning.validation_examples(sequences))
    assert ((values >= 0) & (values <= 1)).all()


def test_nothing_extra_is_the_loss_without_extras(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings
) -> None:
    off = {"auxiliary": {"next_action": 0}, "augmentation": {"mask": 0}, "adversarial": 0}
    plain, zero = (
        pretraining(make_settings(pretrain={"softmax": {"kind": "full"}} | section), store, SPLIT)
        for section in ({}, off)
    )
    assert train(plain, sequences, 3)[1] == train(zero, sequences, 3)[1]
    assert TARGET_ACTION_INDEX not in plain.make_batch(sequences, plain.make_examples(sequences))


def test_the_action_of_the_next_event_is_asked_whatever_its_item(learning: ItemLearning, sequences: Sequences) -> None:
    examples = learning.make_examples(sequences)
    batch = learning.make_batch(sequences, examples)
    for row, (start, end) in enumerate(zip(examples.start, examples.end, strict=True)):
        assert (
            batch[TARGET_ACTION_INDEX][row, : end - start].tolist()
            == sequences.action_index[start + 1 : end + 1].tolist()
        )
        assert not batch[TARGET_ACTION_INDEX][row, end - start :].any()
    assert int((batch[TARGET_ITEM_INDEX] > 0).sum()) < int((batch[TARGET_ACTION_INDEX] > 0).sum())


def test_an_event_stands_for_the_share_of_events_that_are_item_targets(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings
) -> None:
    learning = pretraining(make_settings(pretrain=SECTION, target_actions=["buy"]), store, SPLIT)
    index = count_bucket(learning, sequences)
    objective = learning.build(index)
    assert isinstance(objective, ItemObjective)
    assert objective.auxiliary is not None
    every = int(count_items(sequences, sequences.starts + np.array([6, 3, 3, 0]), 6).sum())
    assert (index.num_events, every) == (12, 10), "two events of the history have no known item"
    assert objective.auxiliary.rates == (2 / 12, 2 / len(learning.make_examples(sequences)))
