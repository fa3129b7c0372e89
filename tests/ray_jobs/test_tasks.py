"""Tasks from settings: what does not suit is refused before any training."""

from typing import Any

import numpy as np
import pytest
import torch

from data_io.config import SettingsError
from data_io.sequences import Sequences
from data_io.store import SequenceStore
from model.checkpoint import CheckpointError, save_model
from model.encoder import ClickformerConfig
from model.engine import to_tensors
from model.heads import ClickformerForOutcome
from model.neighbour_choice import NeighbourTable
from model.outcome_objective import OutcomeObjective
from model.rewarded import RewardedObjective
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import StoreIndex
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.tasks import finetuning, pretraining
from tests.ray_jobs.conftest import ENCODER, SPLIT, MakeSettings, MakeStore, SaveEncoder, count_bucket


@pytest.mark.parametrize("kind", ["sampled", "gbce"])
def test_negatives_need_two_items(make_store: MakeStore, make_settings: MakeSettings, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"softmax kind {kind} needs at least two items in the vocabulary; use"):
        pretraining(make_settings(pretrain={"softmax": {"kind": kind}}), make_store(num_items=1), SPLIT)


def test_binary_loss_is_refused_with_repeats_before_training(store: SequenceStore, make_settings: MakeSettings) -> None:
    section = {"softmax": {"kind": "gbce"}}
    with pytest.raises(SettingsError, match=r"kind gbce gives no probability .* set encoder\.repeats to false"):
        pretraining(make_settings(pretrain=section), store, SPLIT)
    settings = make_settings(pretrain=section, encoder=ENCODER | {"repeats": False})
    learning = pretraining(settings, store, SPLIT)
    objective = learning.build(StoreIndex(num_examples=np.array([1]), item_counts=np.ones(store.vocabulary.size)))
    assert learning.model_of(objective).repeat_choice is None


def test_binary_loss_is_refused_with_neighbours_too(store: SequenceStore, make_settings: MakeSettings) -> None:
    encoder = ENCODER | {"repeats": False, "neighbours": 5}
    with pytest.raises(SettingsError, match=r"set encoder\.repeats to false and encoder\.neighbours to 0"):
        pretraining(make_settings(pretrain={"softmax": {"kind": "gbce"}}, encoder=encoder), store, SPLIT)


def test_default_loss_suits_any_catalogue(make_store: MakeStore, make_settings: MakeSettings) -> None:
    store = make_store(num_items=1)
    learning = pretraining(make_settings(pretrain={}), store, SPLIT)
    index = StoreIndex(num_examples=np.array([1]), item_counts=np.ones(store.vocabulary.size))
    assert learning.build(index).item_loss.softmax.kind == "full"


def test_an_unknown_target_action_is_refused_before_training(store: SequenceStore, make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match="action buys is not in the log; it has view, buy"):
        pretraining(make_settings(target_actions=["buys"]), store, SPLIT)


def test_finetuning_needs_an_encoder(store: SequenceStore, make_settings: MakeSettings) -> None:
    with pytest.raises(CheckpointError, match="encoder: nothing is published here yet"):
        finetuning(make_settings(), store, SPLIT)


def test_a_task_starts_from_the_encoder_it_names(
    store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store, name="gru")
    settings = make_settings(finetune={"encoder": "gru", "task": {"kind": "outcome", "horizon_days": 2}})
    learning = finetuning(settings, store, SPLIT)
    assert isinstance(learning, OutcomeLearning)
    assert learning.pretrained_url == settings.place("tasks", "gru")


def test_an_encoder_may_know_fewer_items_than_the_store_but_no_others(
    store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store, items=["i3", "i2"])
    with pytest.raises(SettingsError, match=r"encoder was trained on vocabulary [0-9a-f]{12}, the store .*: train it"):
        finetuning(make_settings(), store, SPLIT)
    save_encoder(store, items=["i2", "i3"])
    assert finetuning(make_settings(finetune={"task": {"kind": "outcome", "horizon_days": 2}}), store, SPLIT)


def test_next_items_need_a_causal_encoder(
    store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store, attention="bidirectional")
    with pytest.raises(
        SettingsError, match="next_item needs a causal encoder, and this one was pretrained with masked"
    ):
        finetuning(make_settings(finetune={"task": {"kind": "next_item"}}), store, SPLIT)


def test_a_next_item_task_goes_on_from_the_encoder(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    encoder = save_encoder(store)
    section = {"task": {"kind": "next_item", "softmax": {"kind": "full"}}, "trainable": {"kind": "full"}}
    learning = finetuning(make_settings(finetune=section), store, SPLIT)
    assert isinstance(learning, ItemLearning)
    built = learning.model_of(learning.build(count_bucket(learning, sequences))).state_dict()
    assert all(torch.equal(weight, built[name]) for name, weight in encoder.state_dict().items())


LLAMA = ENCODER | {"backbone": {"kind": "hugging_face", "model_type": "llama"}}


def test_a_backbone_that_sees_one_way_only_is_refused_before_training(
    store: SequenceStore, make_settings: MakeSettings
) -> None:
    section = {"objective": {"kind": "masked_item"}, "softmax": {"kind": "full"}}
    with pytest.raises(SettingsError, match="llama sees earlier events only, and objective masked_item needs both"):
        pretraining(make_settings(encoder=LLAMA, pretrain=section), store, SPLIT)


def test_a_backbone_is_pretrained_published_and_given_a_head(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings
) -> None:
    learning = pretraining(make_settings(encoder=LLAMA), store, SPLIT)
    objective = learning.build(count_bucket(learning, sequences))
    batch = to_tensors(learning.make_batch(sequences, learning.make_examples(sequences)), torch.device("cpu"))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.02)
    losses = []
    for _ in range(5):
        loss = objective(batch, seed=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    encoder = learning.model_of(objective)
    save_model(encoder, store.vocabulary, make_settings().model_url("encoder"), learning.describe())
    task = finetuning(make_settings(finetune={"task": {"kind": "outcome", "horizon_days": 2}}), store, SPLIT)
    built = task.model_of(task.build(count_bucket(task, sequences)))
    assert all(torch.equal(weight, built.encoder.state_dict()[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("finetune", "rule"),
    [
        ({"task": {"kind": "outcome", "actions": ["buys"]}}, "action buys is not in the log; it has view, buy"),
        ({"trainable": {"kind": "top", "num_layers": 3}}, "num_layers is 3, but the encoder has 1 blocks"),
    ],
    ids=["unknown action", "more free blocks than there are"],
)
def test_a_task_that_does_not_suit_is_refused_before_training(
    store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder, finetune: dict[str, Any], rule: str
) -> None:
    save_encoder(store)
    with pytest.raises(SettingsError, match=rule):
        finetuning(make_settings(finetune=finetune), store, SPLIT)


def test_a_task_does_not_start_from_an_outcome(store: SequenceStore, make_settings: MakeSettings) -> None:
    settings = make_settings(finetune={"name": "churn", "encoder": "purchase"})
    model = ClickformerForOutcome(ClickformerConfig(vocabulary_size=6, num_actions=4, num_features=1, **ENCODER))
    save_model(model, store.vocabulary, settings.model_url("purchase"), {"kind": "outcome"})
    with pytest.raises(SettingsError, match=r"finetune\.encoder purchase predicts an outcome; name an encoder"):
        finetuning(settings, store, SPLIT)


def test_a_fresh_encoder_starts_from_the_vectors_and_neighbours_of_the_index(
    store: SequenceStore, make_settings: MakeSettings
) -> None:
    learning = pretraining(make_settings(encoder=ENCODER | {"neighbours": 2}), store, SPLIT)
    size, width = store.vocabulary.size, ENCODER["hidden_size"]
    vectors = np.eye(size, width, dtype=np.float32) + np.float32(1e-3)
    table = NeighbourTable(item_index=np.full((size, 2), 2, np.int32), weight=np.full((size, 2), 0.5, np.float32))
    index = StoreIndex(num_examples=np.array([1]), item_counts=np.ones(size), item_vectors=vectors, neighbours=table)
    encoder = learning.model_of(learning.build(index))
    assert encoder.neighbour_choice is not None
    assert torch.equal(encoder.neighbour_choice.weight, torch.from_numpy(table.weight))
    weight = encoder.item_table.weight[2:].detach()
    expected = torch.nn.functional.normalize(torch.from_numpy(vectors[2:]), dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(weight, dim=1), expected)


def test_rewards_take_the_pretrained_encoder_as_a_model_of_the_log(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store)
    task = {"kind": "next_item", "softmax": {"kind": "full"}, "rewards": {"actions": {"buy": 1, "view": 0.1}}}
    learning = finetuning(make_settings(finetune={"task": task, "trainable": {"kind": "full"}}), store, SPLIT)
    assert isinstance(learning, ItemLearning)
    objective = learning.build(count_bucket(learning, sequences))
    assert isinstance(objective, RewardedObjective)
    assert objective.rewards.tolist() == pytest.approx([0, 0, 0.1, 1])
    batch = learning.make_batch(sequences, learning.make_examples(sequences))
    loss = objective(to_tensors(batch, torch.device("cpu")), seed=0)
    assert loss.isfinite()
    assert learning.model_of(objective) is objective.encoder


@pytest.mark.parametrize(
    ("softmax", "actions", "message"),
    [
        ({"kind": "sampled"}, {"buy": 1}, r"finetune\.task\.rewards weighs items by their probability"),
        ({"kind": "full"}, {"sell": 1}, "action sell is not in the log"),
    ],
)
def test_rewards_that_cannot_be_are_refused(
    store: SequenceStore,
    make_settings: MakeSettings,
    save_encoder: SaveEncoder,
    softmax: dict[str, str],
    actions: dict[str, int],
    message: str,
) -> None:
    save_encoder(store)
    task = {"kind": "next_item", "softmax": softmax, "rewards": {"actions": actions}}
    with pytest.raises(SettingsError, match=message):
        finetuning(make_settings(finetune={"task": task, "trainable": {"kind": "full"}}), store, SPLIT)


def test_several_questions_are_learned_at_once_with_few_labels_on_a_frozen_encoder(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store)
    questions = {
        "buys": {"kind": "event", "horizon_days": 2, "actions": ["buy"]},
        "gone": {"kind": "churn", "horizon_days": 1},
    }
    task = {"kind": "questions", "num_cutoffs": 2, "questions": questions, "learned_weights": True}
    learning = finetuning(make_settings(finetune={"task": task}), store, SPLIT)
    assert isinstance(learning, OutcomeLearning)
    objective = learning.build(count_bucket(learning, sequences))
    model = learning.model_of(objective)
    assert isinstance(objective, OutcomeObjective)
    assert objective.log_variance is not None
    assert model.questions == ["buys", "gone"]
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert not model.config.deep_heads
    described = learning.describe()
    assert [question["answer"] for question in described["questions"]] == ["binary", "binary"]
    assert learning.moments.tolist() == described["moments"]
    plenty = {"task": task, "trainable": {"kind": "auto", "few_labels": 0}}
    many = finetuning(make_settings(finetune=plenty), store, SPLIT)
    assert isinstance(many, OutcomeLearning)
    deep = many.model_of(many.build(count_bucket(many, sequences)))
    assert deep.config.deep_heads
    assert any(parameter.requires_grad for parameter in deep.encoder.parameters())
