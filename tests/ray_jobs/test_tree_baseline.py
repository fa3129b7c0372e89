"""Trees on counts: they find what features know, and are the same whenever they are fitted."""

from typing import ClassVar, cast

import numpy as np
import pyarrow as pa
import pytest

from data_io.examples import question_examples
from data_io.features import history_features
from data_io.labels import Question
from data_io.question_config import EventQuestion
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Cutoffs
from data_io.store import SequenceStore
from model.metrics import area_under_curve
from model.trees import load_trees, predict_trees
from ray_jobs import tree_baseline
from ray_jobs.bucket_map import map_on_threads
from ray_jobs.tree_baseline import fit_trees

SPLIT = Cutoffs(validation=60 * DAY_US, test=70 * DAY_US, end=80 * DAY_US)
QUESTION = Question(name="buys", settings=EventQuestion(horizon_days=10))
MOMENTS = SPLIT.training_moments(3, 10)


class Buckets:
    """Users who come often or seldom, and stay as they are."""

    num_buckets, num_users = 3, 600

    def read_sequences(self, bucket: int) -> Sequences:
        rng = np.random.default_rng(bucket)
        gaps = np.where(rng.random(200) < 0.5, 2.0, 40.0)
        times = [np.sort(rng.uniform(0, 80, max(int(80 / gap), 1))) for gap in gaps]
        flat = (np.concatenate(times) * DAY_US).astype(np.int64)
        return Sequences(
            user_id=pa.array([f"{bucket}-{row}" for row in range(200)], pa.large_string()),
            offsets=np.cumsum([0, *map(len, times)]).astype(np.int64),
            item_index=np.full(len(flat), 2, np.int32),
            action_index=np.full(len(flat), 2, np.int16),
            event_time=flat,
        )

    event_columns: ClassVar[dict[str, str]] = {}

    def with_columns(self, _: object) -> "Buckets":
        return self

    def with_numbers(self, _: object) -> "Buckets":
        return self


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_baseline, "map_buckets", lambda work, buckets: map_on_threads(work, [*buckets][::-1]))


def test_trees_tell_users_apart_and_come_out_the_same_again() -> None:
    store = cast(SequenceStore, Buckets())
    trees = fit_trees(store, SPLIT, [QUESTION], MOMENTS, seed=0)
    assert trees == fit_trees(store, SPLIT, [QUESTION], MOMENTS, seed=0)
    sequences = store.read_sequences(0)
    examples = question_examples(sequences, np.array([SPLIT.test]), 1, [QUESTION], "test")
    booster = load_trees(trees["buys"])
    probability = predict_trees(booster, history_features(sequences, examples))
    assert area_under_curve(examples.target[:, 0], probability[:, 0]) > 0.85
    assert len(predict_trees(booster, history_features(sequences, examples.take(np.arange(0))))) == 0


def test_no_more_examples_than_allowed_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(tree_baseline, "MOST_EXAMPLES", 400)
    monkeypatch.setattr(tree_baseline, "grow_trees", lambda training, *_: held.append(len(training[1])) or "")
    fit_trees(cast(SequenceStore, Buckets()), SPLIT, [QUESTION], MOMENTS, seed=0)
    assert 150 < held[0] < 400


def test_one_outcome_only_has_no_trees() -> None:
    never = Question(name="never", settings=EventQuestion(horizon_days=1e-9))
    assert fit_trees(cast(SequenceStore, Buckets()), SPLIT, [never], MOMENTS, seed=0) == {}
