"""A response task from settings to scores: what is asked, a training without Ray, and the column beside the items."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from data_io.batch import merge_batches
from data_io.config import SettingsError
from data_io.examples import history_examples
from data_io.sequences import Sequences
from data_io.splits import DAY_US
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.response import ClickformerForResponse, ResponseObjective
from model.scoring import UserBatches, predict_responses
from ray_jobs.models import find_recommender, find_tasks
from ray_jobs.response_learning import ResponseLearning
from ray_jobs.response_tables import AskedResponse, response_table
from ray_jobs.scorer import Scorer
from ray_jobs.tasks import finetuning
from tests.ray_jobs.conftest import SPLIT, MakeSettings, SaveEncoder, count_bucket, make_score_run
from tests.ray_jobs.test_scorer import read_marked

TASK = {"kind": "response", "shown": ["view", "buy"], "actions": ["buy"], "horizon_days": 2, "num_cutoffs": 2}
BUY = {"name": "buy", "task": TASK, "trainable": {"kind": "frozen"}}


def make_learning(store: SequenceStore, make_settings: MakeSettings, **finetune: Any) -> ResponseLearning:
    learning = finetuning(make_settings(finetune=BUY | finetune), store, SPLIT)
    assert isinstance(learning, ResponseLearning)
    return learning


@pytest.fixture
def learning(store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder) -> ResponseLearning:
    save_encoder(store)
    return make_learning(store, make_settings)


@pytest.fixture
def url(learning: ResponseLearning, sequences: Sequences, make_settings: MakeSettings) -> str:
    """A published task that has learned a few steps."""
    objective = learning.build(count_bucket(learning, sequences))
    take_steps(learning, objective, sequences, num_steps=5)
    url = make_settings().model_url("buy")
    facts = {"fingerprint": "f", "actions": learning.store.actions}
    save_model(learning.model_of(objective), learning.store.vocabulary, url, learning.describe() | facts)
    return url


def take_steps(
    learning: ResponseLearning, objective: torch.nn.Module, sequences: Sequences, num_steps: int
) -> list[float]:
    batch = to_tensors(learning.make_batch(sequences, learning.make_examples(sequences)), torch.device("cpu"))
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = objective.train()(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_items_shown_after_training_moments_are_asked_about(learning: ResponseLearning, sequences: Sequences) -> None:
    assert learning.moments.tolist() == [2 * DAY_US, 4 * DAY_US]
    examples = learning.make_examples(sequences)
    asked = zip(examples.row.tolist(), (examples.now // DAY_US).tolist(), examples.candidate.tolist(),
                examples.target[:, 0].tolist(), strict=True)  # fmt: skip
    assert list(asked) == [(0, 2, 4, 0), (0, 2, 5, 0), (0, 4, 2, 0), (0, 4, 3, 0), (1, 4, 4, 1), (2, 4, 5, 0)]
    validation = learning.validation_examples(sequences)
    assert set(validation.now.tolist()) == {SPLIT.validation}


def test_a_training_lowers_the_loss_from_the_mean_rate_on(learning: ResponseLearning, sequences: Sequences) -> None:
    index = count_bucket(learning, sequences)
    assert index.label_sums[:2, 0].tolist() == [6, 1]
    objective = learning.build(index)
    assert isinstance(objective, ResponseObjective)
    assert learning.model_of(objective).head.bias.item() == pytest.approx(np.log(1.5 / 5.5), abs=0.3)
    losses = take_steps(learning, objective, sequences, num_steps=30)
    assert losses[-1] < losses[0] / 2
    batch, empty = learning.make_batch(sequences, learning.make_examples(sequences)), learning.empty_batch()
    assert learning.num_targets(merge_batches([batch, empty])) == learning.num_targets(batch) == 6
    both = to_tensors(merge_batches([batch, empty]), torch.device("cpu"))
    alone = to_tensors(batch, torch.device("cpu"))
    torch.testing.assert_close(objective(both, 0), objective(alone, 0))


def test_validation_gives_label_and_probability_of_each_pair(learning: ResponseLearning, sequences: Sequences) -> None:
    model = learning.model_of(learning.build(count_bucket(learning, sequences))).eval()
    examples = learning.validation_examples(sequences)
    values = learning.validate(model, sequences, examples)
    assert values.shape == (len(examples), 2)
    assert ((values[:, 1] > 0) & (values[:, 1] < 1)).all()
    assert learning.validate(model, sequences, examples.take(np.zeros(0, int))).shape == (0, 2)
    assert learning.metric(np.array([[0, 0.1], [1, 0.9]])) == ("auc", 1.0)
    assert learning.metric(np.zeros((0, 2))) == ("auc", 0.5)
    assert pickle.loads(pickle.dumps(learning)).describe() == learning.describe()


def test_few_responses_leave_the_encoder_frozen(
    learning: ResponseLearning, store: SequenceStore, sequences: Sequences, make_settings: MakeSettings
) -> None:
    index = count_bucket(learning, sequences)
    for few, learns in ((1_000, False), (0, True)):
        auto = make_learning(store, make_settings, trainable={"kind": "auto", "few_labels": few})
        model = auto.model_of(auto.build(index))
        assert model.config.deep_heads is learns
        assert any(parameter.requires_grad for parameter in model.encoder.parameters()) is learns


def test_actions_that_the_log_has_not_are_refused(
    store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    save_encoder(store)
    with pytest.raises(SettingsError, match="action cart is not in the log; it has view, buy"):
        make_learning(store, make_settings, task=TASK | {"actions": ["cart"]})


@pytest.mark.usefixtures("url")
def test_a_published_task_is_found_and_does_not_rank(store: SequenceStore, make_settings: MakeSettings) -> None:
    assert {name: folder.is_response for name, folder in find_tasks(make_settings(), store, None).items()} == {
        "buy": True
    }
    with pytest.raises(SettingsError, match="buy predicts responses and cannot rank items"):
        find_recommender(make_settings(), store, "buy")
    with pytest.raises(SettingsError, match=r"finetune\.encoder buy predicts responses; name an encoder"):
        make_learning(store, make_settings, name="again", encoder="buy")


def test_scores_tell_how_probable_a_response_to_each_item_is(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings, url: str
) -> None:
    run = make_score_run(store, make_settings().model_url("encoder"), tasks={"buy": url}, k=4)
    (mark,) = Scorer(run)([0])
    frame = read_marked(store, mark)
    saved = load_model(url)
    assert isinstance(saved.model, ClickformerForResponse)
    examples = history_examples(sequences, store.end_time, 4)
    every = np.tile(np.arange(2, 6), (4, 1))
    expected = predict_responses(saved.model, sequences, examples.with_candidates(every), UserBatches(1))
    for row, (items, found) in enumerate(zip(frame["item_ids"], frame["response_buy"], strict=True)):
        places = [int(item[1:]) - 2 for item in items]
        np.testing.assert_allclose(found.to_list(), expected[row, places], rtol=1e-5)
    assert "score_buy" not in frame.columns


def test_an_item_that_a_task_does_not_know_is_answered_as_unknown(
    store: SequenceStore, sequences: Sequences, url: str
) -> None:
    model = load_model(url).model
    assert isinstance(model, ClickformerForResponse)
    examples = history_examples(sequences, store.end_time, 4)
    new, unknown = (
        predict_responses(model, sequences, examples.with_candidates(np.full((4, 1), item)), UserBatches(4))
        for item in (99, 1)
    )
    np.testing.assert_array_equal(new, unknown)


def test_adapters_of_a_task_are_loaded_with_their_base(
    store: SequenceStore, sequences: Sequences, make_settings: MakeSettings, save_encoder: SaveEncoder
) -> None:
    encoder = save_encoder(store)
    base = make_settings().model_url("encoder")
    save_model(encoder, store.vocabulary, base, {"kind": "next_item", "fingerprint": "base"})
    learning = make_learning(store, make_settings, trainable={"kind": "lora", "rank": 2})
    objective = learning.build(count_bucket(learning, sequences))
    take_steps(learning, objective, sequences, num_steps=3)
    model = learning.model_of(objective).eval()
    url = make_settings().model_url("adapted")
    save_model(model, store.vocabulary, url, learning.describe() | {"fingerprint": "f"})
    again = load_model(url).model
    assert isinstance(again, ClickformerForResponse)
    assert isinstance(again.encoder, ClickformerEncoder)
    examples = history_examples(sequences, store.end_time, 4).with_candidates(np.tile(np.arange(2, 6), (4, 1)))
    before, after = (predict_responses(own, sequences, examples, UserBatches(4)) for own in (model, again))
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_pairs_of_both_cutoffs_are_kept_for_the_report(store: SequenceStore, sequences: Sequences, url: str) -> None:
    asked = AskedResponse.of(load_model(url))
    table = response_table(asked, store, sequences, SPLIT, UserBatches(2)).to_pydict()
    told = zip(table["stage"], table["user_id"], table["item_index"], table["outcome"], table["before"], strict=True)
    expected = [("validation", "a", 4, 0, 1), ("validation", "a", 5, 0, 1), ("validation", "b", 5, 1, 0)]
    test = [("test", "a", 2, 0, 2), ("test", "a", 3, 0, 2), ("test", "b", 2, 0, 1)]
    assert list(told) == expected + test
    assert all(0 < probability < 1 for probability in table["probability"])
