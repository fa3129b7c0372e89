"""What is learned: examples that stop at the cutoff, counts against naive loops, and tasks that do not suit refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_io.batch import TARGET_ITEM_INDEX, merge_batches
from data_io.features import FEATURE_NAMES
from data_io.sequences import Sequences
from data_io.splits import DAY_US
from data_io.store import SequenceStore
from model.config import MaskedItem
from model.encoder import ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.objectives import MaskedItemObjective, NextItemObjective
from model.outcome_objective import OutcomeObjective
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import count_items, rank_buckets, sample_validation
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.tasks import finetuning, pretraining
from tests.ray_jobs.conftest import SPLIT, USERS, MakeSettings, SaveEncoder, count_bucket


@pytest.fixture
def item_learning(store: SequenceStore, make_settings: MakeSettings) -> ItemLearning:
    return pretraining(make_settings(), store, SPLIT)


@pytest.fixture
def masked_learning(store: SequenceStore, make_settings: MakeSettings) -> ItemLearning:
    section = {"softmax": {"kind": "full"}, "objective": {"kind": "masked_item", "mask_share": 0.5}}
    return pretraining(make_settings(pretrain=section), store, SPLIT)


@pytest.fixture
def outcome_learning(
    store: SequenceStore,
    make_settings: MakeSettings,
    save_encoder: SaveEncoder,
) -> OutcomeLearning:
    save_encoder(store)
    task = {"kind": "outcome", "horizon_days": 2, "num_cutoffs": 2, "actions": ["buy"]}
    learning = finetuning(make_settings(finetune={"task": task, "trainable": {"kind": "frozen"}}), store, SPLIT)
    assert isinstance(learning, OutcomeLearning)
    return learning


def test_no_training_window_touches_an_event_from_the_cutoff_on(
    item_learning: ItemLearning, sequences: Sequences
) -> None:
    examples = item_learning.make_examples(sequences)
    assert len(examples)
    last_read = sequences.event_time[examples.end]  # the target of a window's last input
    assert last_read.max() < SPLIT.validation
    assert set(examples.row) == {0, 1, 2}, "the user without history is not trained on"


def test_the_target_of_an_event_is_the_item_after_it(item_learning: ItemLearning, sequences: Sequences) -> None:
    examples = item_learning.make_examples(sequences)
    batch = item_learning.make_batch(sequences, examples.take(np.flatnonzero(examples.row == 1)))
    assert batch["item_index"].tolist() == [[2, 3]]
    assert batch[TARGET_ITEM_INDEX].tolist() == [[3, 4]]


def test_what_has_no_known_item_is_no_target(item_learning: ItemLearning, sequences: Sequences) -> None:
    examples = item_learning.make_examples(sequences)
    batch = item_learning.make_batch(sequences, examples.take(np.flatnonzero(examples.row == 2)))
    assert batch["item_index"].tolist() == [[0, 1]]
    assert batch[TARGET_ITEM_INDEX].tolist() == [[0, 5]]
    assert item_learning.num_targets(batch) == 1


def test_only_wanted_actions_are_targets(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings
) -> None:
    learning = pretraining(make_settings(target_actions=["buy"]), store, SPLIT)
    batch = learning.make_batch(sequences, learning.make_examples(sequences))
    assert learning.num_targets(batch) == 2
    assert learning.describe() == {"kind": "next_item", "target_actions": ["buy"], "split": SPLIT.describe()}
    validation = learning.validation_examples(sequences)
    assert (validation.row.tolist(), validation.target.tolist()) == ([1], [5])


def test_hidden_items_stand_for_all_known_ones(masked_learning: ItemLearning, sequences: Sequences) -> None:
    examples = masked_learning.make_examples(sequences)
    batch = masked_learning.make_batch(sequences, examples)
    assert masked_learning.num_targets(batch) == int((batch["item_index"] >= 2).sum()) > 0


def test_an_empty_batch_asks_nothing_and_mixes_with_others(
    item_learning: ItemLearning, masked_learning: ItemLearning, outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    for learning in (item_learning, masked_learning, outcome_learning):
        empty = learning.empty_batch()
        batch = learning.make_batch(sequences, learning.make_examples(sequences))
        assert learning.num_targets(empty) == 0
        assert learning.num_targets(merge_batches([batch, empty])) == learning.num_targets(batch)


def test_an_objective_is_built_for_each_kind_of_task(
    item_learning: ItemLearning, masked_learning: ItemLearning, outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    next_item = item_learning.build(count_bucket(item_learning, sequences))
    assert isinstance(next_item, NextItemObjective)
    encoder = item_learning.model_of(next_item)
    assert (encoder.config.attention, encoder.config.vocabulary_size, encoder.config.num_actions) == ("causal", 6, 4)
    masked = masked_learning.build(count_bucket(masked_learning, sequences))
    assert isinstance(masked, MaskedItemObjective)
    assert masked_learning.model_of(masked).config.attention == "bidirectional"
    outcome = outcome_learning.build(count_bucket(outcome_learning, sequences))
    assert isinstance(outcome, OutcomeObjective)
    assert isinstance(outcome_learning.model_of(outcome), ClickformerForOutcome)


def test_items_are_counted_before_the_cutoff_only(item_learning: ItemLearning, sequences: Sequences) -> None:
    naive = np.zeros(6, np.int64)
    for events in USERS:
        for day, item, _ in events:
            naive[item] += day < 6 and item >= 2
    counted = count_bucket(item_learning, sequences)
    assert counted.item_counts.tolist() == naive.tolist()
    assert counted.num_examples.tolist() == [len(item_learning.make_examples(sequences))]


def test_items_are_counted_in_the_windows_that_are_trained_on(
    item_learning: ItemLearning, sequences: Sequences
) -> None:
    learning = replace(
        item_learning, windows_per_user=1, encoder_config=item_learning.encoder_config | {"sequence_length": 1}
    )
    counted = count_bucket(learning, sequences)
    examples = learning.make_examples(sequences)
    newest = sequences.item_index[examples.end]
    assert counted.num_examples.tolist() == [len(examples)]
    assert counted.item_counts[2:].tolist() == np.bincount(newest, minlength=6)[2:].tolist()


def test_items_are_counted_by_the_actions_that_are_predicted(item_learning: ItemLearning, sequences: Sequences) -> None:
    bought = count_bucket(replace(item_learning, target_actions=["buy"]), sequences)
    assert bought.item_counts.tolist() == [0, 0, 0, 1, 1, 0]
    hidden = replace(item_learning, target_actions=["buy"], objective=MaskedItem())
    whole = count_bucket(item_learning, sequences)
    assert count_bucket(hidden, sequences).item_counts.tolist() == whole.item_counts.tolist()


def test_items_are_counted_up_to_each_user_s_own_end(sequences: Sequences) -> None:
    ends = sequences.starts + np.array([3, 0, 3, 1])
    counted = count_items(sequences, ends, vocabulary_size=7)
    assert counted.tolist() == [0, 0, 1, 2, 1, 1, 0]
    assert not count_items(sequences, sequences.starts, vocabulary_size=7).any()


def test_outcomes_are_asked_a_horizon_apart_and_end_with_training(
    outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    assert outcome_learning.moments.tolist() == [2 * DAY_US, 4 * DAY_US]
    assert outcome_learning.moments.max() + 2 * DAY_US == SPLIT.validation
    examples = outcome_learning.make_examples(sequences)
    asked = list(
        zip(examples.row.tolist(), (examples.now // DAY_US).tolist(), examples.target[:, 0].tolist(), strict=True)
    )
    # User 1 buys at day 5.9, inside the second horizon; user 2 is new at the second cutoff; user 3 has no history.
    assert asked == [(0, 2, 0), (1, 2, 0), (0, 4, 0), (1, 4, 1), (2, 4, 0)]


def test_an_outcome_is_validated_at_the_validation_cutoff(
    outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    examples = outcome_learning.validation_examples(sequences)
    assert set(examples.now.tolist()) == {SPLIT.validation}
    assert (examples.row.tolist(), examples.target[:, 0].tolist()) == ([0, 1, 2], [0, 1, 0])


def test_a_head_starts_on_the_pretrained_encoder_with_the_features_scale(
    outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    index = count_bucket(outcome_learning, sequences)
    batch = outcome_learning.make_batch(sequences, outcome_learning.make_examples(sequences))
    model = outcome_learning.model_of(outcome_learning.build(index))
    assert index.feature_sums.shape == (3, len(FEATURE_NAMES))
    torch.testing.assert_close(model.head.feature_mean, torch.from_numpy(batch["features"].mean(axis=0)))
    pretrained = ClickformerEncoder.from_pretrained(outcome_learning.pretrained_url).state_dict()
    assert all(torch.equal(weight, pretrained[name]) for name, weight in model.encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


def test_validation_gives_a_row_for_each_example(
    item_learning: ItemLearning, outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    for learning, width in ((item_learning, 1), (outcome_learning, 2)):
        model = learning.model_of(learning.build(count_bucket(learning, sequences))).eval()
        examples = learning.validation_examples(sequences)
        values = learning.validate(model, sequences, examples)  # pyright: ignore[reportArgumentType]
        assert values.shape == (len(examples), width)
        assert ((values >= 0) & (values <= 1)).all()
        assert learning.validate(model, sequences, examples.take(np.zeros(0, int))).shape == (0, width)  # pyright: ignore


def test_validation_leaves_seen_items_out_only_where_the_report_does(
    item_learning: ItemLearning, sequences: Sequences
) -> None:
    model = item_learning.model_of(item_learning.build(count_bucket(item_learning, sequences))).eval()
    new_only = replace(item_learning, exclude_seen=True)
    examples = new_only.validation_examples(sequences)
    assert set(examples.row) <= set(item_learning.validation_examples(sequences).row)
    with_seen = item_learning.validate(model, sequences, examples)
    without = new_only.validate(model, sequences, examples)
    assert (without >= with_seen).all()
    assert (without > with_seen).any()


def test_where_seen_items_are_left_out_only_new_ones_are_trained_on(
    item_learning: ItemLearning, sequences: Sequences
) -> None:
    new_only = replace(item_learning, exclude_seen=True)
    examples = new_only.make_examples(sequences)
    every, new = (way.make_batch(sequences, examples)[TARGET_ITEM_INDEX] for way in (item_learning, new_only))
    for row, (start, end) in enumerate(zip(examples.start, examples.end, strict=True)):
        begin = sequences.starts[examples.row[row]]
        for place in range(start, end):
            had = sequences.item_index[begin : place + 1].tolist()
            target = every[row, place - start]
            assert new[row, place - start] == (0 if target in had else target)
    counts = np.bincount(new[new > 0], minlength=6)
    first_events = np.bincount(sequences.item_index[sequences.starts[np.unique(examples.row)]], minlength=6)
    assert (count_bucket(new_only, sequences).item_counts[2:] == (counts + first_events)[2:]).all()


def test_metrics_of_known_values(item_learning: ItemLearning, outcome_learning: OutcomeLearning) -> None:
    assert item_learning.metric(np.array([[1.0], [0.0]])) == ("ndcg_at_10", 0.5)
    assert item_learning.metric(np.zeros((0, 2))) == ("ndcg_at_10", 0.0)
    assert outcome_learning.metric(np.array([[0, 0.1], [1, 0.9]])) == ("auc", 1.0)
    assert outcome_learning.metric(np.array([[1, 0.1], [1, 0.9]])) == ("auc", 0.5), "one outcome only"
    assert outcome_learning.metric(np.zeros((0, 2))) == ("auc", 0.5)


def test_what_is_learned_travels_by_pickle(
    item_learning: ItemLearning, outcome_learning: OutcomeLearning, sequences: Sequences
) -> None:
    for learning in (item_learning, outcome_learning):
        copy = pickle.loads(pickle.dumps(learning))
        assert copy.describe() == learning.describe()
        assert len(copy.make_examples(sequences)) == len(learning.make_examples(sequences))


def test_a_validation_sample_is_small_and_always_the_same(item_learning: ItemLearning, sequences: Sequences) -> None:
    every = sample_validation(item_learning, sequences, quota=10, seed=0)
    assert every.row.tolist() == [0, 1]
    first, again = (sample_validation(item_learning, sequences, quota=1, seed=0).row.tolist() for _ in range(2))
    assert first == again
    assert len(first) == 1


@pytest.mark.parametrize(("num_buckets", "world_size"), [(8, 1), (8, 3), (2, 4), (0, 2)])
def test_every_bucket_is_validated_by_one_rank(num_buckets: int, world_size: int) -> None:
    taken = [bucket for rank in range(world_size) for bucket in rank_buckets(num_buckets, rank, world_size)]
    assert sorted(taken) == list(range(num_buckets))
