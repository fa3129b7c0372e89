"""Gradient-boosted trees on the counts of histories: what a shop would have without a network.

They learn what the head of a task learns: the same features, users and moments before the validation cutoff. How many
trees there are is chosen on the users at the validation cutoff. Invariant: at most `MOST_EXAMPLES` are held at once.
"""

import lightgbm
import numpy as np

from data_io.examples import outcome_examples
from data_io.features import FEATURE_NAMES, history_features
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.config import OutcomeTask
from ray_jobs.bucket_map import map_buckets

MOST_EXAMPLES = 1_000_000
"""68 MB of features; more users than that add little to so few columns."""
_PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_MOST_TREES, _PATIENCE = 1_000, 50

Rows = tuple[np.ndarray, np.ndarray]
"""Features [N, F] and outcomes [N]."""


def fit_trees(store: SequenceStore, split: Cutoffs, task: OutcomeTask, seed: int) -> str | None:
    """The trees as LightGBM's text; None: the users there are have but one outcome, so that there is nothing to learn.

    Source:
        Friedman 2001, "Greedy function approximation: a gradient boosting machine"; Ke et al. 2017, "LightGBM".
    """
    moments = split.training_moments(task.num_cutoffs, task.horizon_days)
    share = min(1.0, MOST_EXAMPLES / max(store.num_users * (task.num_cutoffs + 1), 1))
    actions = store.action_indices(task.actions)

    def read(bucket: int) -> tuple[int, Rows, Rows]:
        sequences, chance = store.read_sequences(bucket), np.random.default_rng([seed, bucket])
        parts = []
        for cutoffs in (moments, np.array([split.validation])):
            examples = outcome_examples(sequences, cutoffs, task.horizon_days, 1, actions)
            examples = examples.take(np.flatnonzero(chance.random(len(examples)) < share))
            parts.append((history_features(sequences, examples), examples.target))
        return bucket, parts[0], parts[1]

    found = sorted(map_buckets(read, range(store.num_buckets)), key=lambda part: part[0])
    training, validation = _together([part[1] for part in found]), _together([part[2] for part in found])
    if any(len(np.unique(outcome)) < 2 for _, outcome in (training, validation)):
        return None
    return _fit(training, validation, seed)


def load_trees(text: str) -> lightgbm.Booster:
    """Trees from LightGBM's text."""
    return lightgbm.Booster(model_str=text)


def predict_trees(trees: lightgbm.Booster, features: np.ndarray) -> np.ndarray:
    """[N] float32 probabilities, from features [N, F]."""
    if not len(features):
        return np.zeros(0, np.float32)
    return np.asarray(trees.predict(features, num_threads=1)).astype(np.float32)


def _together(parts: list[Rows]) -> Rows:
    return np.concatenate([features for features, _ in parts]), np.concatenate([outcome for _, outcome in parts])


def _fit(training: Rows, validation: Rows, seed: int) -> str:
    names = list(FEATURE_NAMES)
    data = lightgbm.Dataset(training[0], training[1], feature_name=names)
    booster = lightgbm.train(
        _PARAMETERS | {"seed": seed},
        data,
        _MOST_TREES,
        valid_sets=[lightgbm.Dataset(validation[0], validation[1], reference=data, feature_name=names)],
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    return booster.model_to_string(num_iteration=booster.best_iteration)
