"""What the network sees by the settings, from the store to scores: columns, the action that is asked for, refusals."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from data_io.batch import COLUMN, TARGET_ACTION_INDEX, TARGET_ITEM_INDEX, Batch, merge_batches
from data_io.buckets import BucketWriter
from data_io.columns import missing_column
from data_io.config import SettingsError
from data_io.examples import history_examples
from data_io.schema import store_schema
from data_io.sequences import Sequences
from data_io.splits import LastTargets
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.config import MaskedItem
from model.embed import Event, embed
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.scoring import iter_batches, rank_items
from ray_jobs.config import Settings
from ray_jobs.item_learning import ItemLearning
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.scorer import Scorer
from ray_jobs.tasks import finetuning, pretraining
from tests.ray_jobs.conftest import BUY, ENCODER, SPLIT, USERS, MakeSettings, MakeStore, count_bucket, make_score_run

COLUMNS = {"price": "float", "query": "string", "device": "string"}
INPUTS = ("action", "gap", "elapsed", "asked_action", "calendar", *COLUMNS)
CPU = torch.device("cpu")


def value_of(kind: str, row: int, place: int) -> object:
    """Of an event's column: one in three is missing, of the others some are equal."""
    if (row + place) % 3 == 0:
        return None
    return float(place) if kind == "float" else f"value {place % 2}"


@pytest.fixture
def wide_store(make_store: MakeStore) -> SequenceStore:
    """The store of USERS with a price, a query and a device of each event, of which some are missing."""
    plain = make_store()
    rows = plain.read_rows(0)
    schema = store_schema("string", COLUMNS)
    for name, kind in COLUMNS.items():
        values = [[value_of(kind, row, place) for place in range(len(events))] for row, events in enumerate(USERS)]
        rows = rows.append_column(schema.field(name), pa.array(values, schema.field(name).type))
    writer = BucketWriter(url=plain.url, fingerprint="wide")
    facts = {name: plain.manifest[name] for name in ("num_buckets", "num_users", "actions", "last_minute")}
    writer.publish([writer.commit(0, 1, rows, {})], facts | {"carried": COLUMNS})
    return SequenceStore.open(plain.url)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    features = {"features": {"device": "categorical"}}
    return make_settings(encoder=ENCODER | {"inputs": INPUTS}, events=features, target_actions=["buy"])


@pytest.fixture
def learning(wide_store: SequenceStore, settings: Settings) -> ItemLearning:
    return pretraining(settings, wide_store, SPLIT)


def batch_of(learning: ItemLearning | OutcomeLearning) -> tuple[Sequences, Batch]:
    sequences = learning.store.read_sequences(0)
    return sequences, learning.make_batch(sequences, learning.make_examples(sequences))


def event_at_hand(day: float, item: int, action: int) -> Event:
    """An event as `embed` takes it, from its indices."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return f"i{item}" if item else None, ["view", "buy"][action - 2], time


def publish(learning: ItemLearning, settings: Settings, objective: nn.Module | None = None) -> ClickformerEncoder:
    sequences = learning.store.read_sequences(0)
    encoder = learning.model_of(objective or learning.build(count_bucket(learning, sequences))).eval()
    manifest = learning.describe() | {"fingerprint": "f", "actions": learning.store.actions}
    save_model(encoder, learning.store.vocabulary, settings.model_url("encoder"), manifest)
    return encoder


def test_training_with_every_kind_of_input_lowers_the_loss(learning: ItemLearning) -> None:
    sequences, batch = batch_of(learning)
    assert {name for name in batch if name.startswith(COLUMN)} == {f"{COLUMN}{name}" for name in COLUMNS}
    torch.manual_seed(0)
    objective = learning.build(count_bucket(learning, sequences))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.01)
    tensors = to_tensors(merge_batches([batch, learning.empty_batch()]), CPU)
    losses = []
    for step in range(30):
        loss = objective(tensors, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    values = learning.validate(learning.model_of(objective).eval(), sequences, learning.validation_examples(sequences))
    assert values.shape == (1, 1)


def test_what_can_be_asked_for_trains_on_every_action_and_validates_on_wanted_ones(
    learning: ItemLearning, wide_store: SequenceStore, make_settings: MakeSettings
) -> None:
    sequences, batch = batch_of(learning)
    every = pretraining(make_settings(), wide_store, SPLIT)
    assert batch[TARGET_ITEM_INDEX].tolist() == batch_of(every)[1][TARGET_ITEM_INDEX].tolist()
    assert count_bucket(learning, sequences).item_counts.tolist() == count_bucket(every, sequences).item_counts.tolist()
    assert set(batch[TARGET_ACTION_INDEX][batch[TARGET_ITEM_INDEX] > 0].tolist()) == {2, BUY}
    validation = learning.validation_examples(sequences)
    assert (validation.row.tolist(), validation.target.tolist()) == ([1], [5])
    only = pretraining(make_settings(target_actions=["buy"]), wide_store, SPLIT)
    assert only.num_targets(batch_of(only)[1]) == 2, "as ever where it cannot be asked"
    assert TARGET_ACTION_INDEX not in batch_of(only)[1]


@pytest.mark.parametrize(("actions", "asked"), [(["buy"], BUY), (["buy", "view"], 0), (None, 0)])
def test_one_wanted_action_is_asked_for(
    wide_store: SequenceStore, make_settings: MakeSettings, actions: list[str] | None, asked: int
) -> None:
    chosen = make_settings(encoder=ENCODER | {"inputs": ["asked_action"]}, target_actions=actions)
    assert pretraining(chosen, wide_store, SPLIT).encoder_config["asked_action"] == asked
    plain = make_settings(target_actions=actions)
    assert pretraining(plain, wide_store, SPLIT).encoder_config["asked_action"] == 0


def test_the_folder_scores_and_embeds_as_the_network_that_was_trained(
    learning: ItemLearning, settings: Settings, wide_store: SequenceStore
) -> None:
    torch.manual_seed(0)
    encoder = publish(learning, settings)
    assert encoder.config.asked_action == BUY
    url = settings.model_url("encoder")
    scorer = Scorer(make_score_run(wide_store, url, batch_size=3))
    sequences = scorer.store.read_sequences(0)
    assert list(sequences.columns) == sorted(COLUMNS)
    examples = history_examples(sequences, None, 4)
    ((_, batch),) = iter_batches(sequences, examples, 10)
    found, (vectors, scores) = scorer.score(0, sequences, np.arange(4)), rank_items(encoder, batch)
    np.testing.assert_allclose(found.embedding, vectors.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.item_score, scores.topk(3).values.numpy(), atol=1e-5)
    # Histories at hand have item, action and time only: the rest is missing.
    missing = {name: missing_column(column.kind, len(column.code)) for name, column in sequences.columns.items()}
    ((_, bare),) = iter_batches(replace(sequences, columns=missing), examples, 10)
    histories = [[event_at_hand(*event) for event in events] for events in USERS]
    expected = rank_items(encoder, bare)[0].numpy()
    np.testing.assert_allclose(embed(load_model(url), histories), expected, atol=1e-5)


def test_tasks_go_on_with_the_inputs_of_the_encoder(
    learning: ItemLearning, settings: Settings, wide_store: SequenceStore
) -> None:
    encoder = publish(learning, settings)
    finetune = {"task": {"kind": "outcome", "horizon_days": 2, "num_cutoffs": 2, "actions": ["buy"]}}
    outcome = finetuning(Settings.model_validate(settings.model_dump() | {"finetune": finetune}), wide_store, SPLIT)
    assert isinstance(outcome, OutcomeLearning)
    sequences, batch = batch_of(outcome)
    model = outcome.model_of(outcome.build(outcome.count(sequences, outcome.make_examples(sequences))))
    assert model.config.inputs == encoder.config.inputs
    assert model.config.asked_action == BUY
    merged = merge_batches([batch, outcome.empty_batch()])
    assert model(to_tensors(merged, CPU)).isfinite().all()
    other = {"finetune": {"task": {"kind": "next_item", "softmax": {"kind": "full"}}}, "target_actions": ["view"]}
    following = finetuning(Settings.model_validate(settings.model_dump() | other), wide_store, SPLIT)
    assert isinstance(following, ItemLearning)
    asking = following.model_of(following.build(count_bucket(following, following.store.read_sequences(0))))
    assert asking.config.asked_action == 2


def test_masked_items_train_with_every_input(wide_store: SequenceStore, settings: Settings) -> None:
    masked = pretraining(settings, wide_store, SPLIT)
    config = masked.encoder_config | {"attention": "bidirectional"}
    masked = replace(masked, objective=MaskedItem(mask_share=0.5), encoder_config=config)
    sequences, batch = batch_of(masked)
    objective = masked.build(count_bucket(masked, sequences))
    assert objective(to_tensors(batch, CPU), seed=1).isfinite()
    examples = masked.validation_examples(sequences)
    assert masked.validate(masked.model_of(objective).eval(), sequences, examples).shape == (len(examples), 1)


def test_held_out_targets_are_neither_trained_on_nor_counted(wide_store: SequenceStore, settings: Settings) -> None:
    learning = pretraining(settings, wide_store, LastTargets(actions=(BUY,)))
    sequences = learning.store.read_sequences(0)
    windows, validation = learning.make_examples(sequences), learning.validation_examples(sequences)
    assert (validation.row.tolist(), validation.target.tolist()) == ([1], [4]), "the purchase before the last"
    assert (windows.end[windows.row == 1] - sequences.starts[1]).tolist() == [1]
    counts = count_bucket(learning, sequences).item_counts
    naive = np.zeros(6, np.int64)
    for row, events in enumerate(USERS):
        for _, item, _ in events[:2] if row == 1 else events:
            naive[item] += item >= 2
    assert counts.tolist() == naive.tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["prize"], "encoder.inputs names prize, which is unknown; known are action"),
        (["gap", "gap"], "names gap twice"),
    ],
)
def test_unknown_inputs_are_refused_with_the_settings(
    make_settings: MakeSettings, inputs: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(encoder=ENCODER | {"inputs": inputs})


def test_a_column_the_log_did_not_have_is_refused_before_training(
    wide_store: SequenceStore, make_settings: MakeSettings
) -> None:
    with pytest.raises(SettingsError, match=r"names rating, a column that the log .* there are: price, query, device"):
        pretraining(make_settings(encoder=ENCODER | {"inputs": ["rating"]}), wide_store, SPLIT)
