"""Gradient-boosted trees on the counts of histories: what a shop would have without a network.

Pure functions on arrays; which users they learn from is in `ray_jobs.tree_baseline`.

Source:
    Friedman 2001, "Greedy function approximation: a gradient boosting machine"; Ke et al. 2017, "LightGBM".
"""

from typing import Any

import lightgbm
import numpy as np

from data_io.features import FEATURE_NAMES

_PARAMETERS = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_OBJECTIVES = {
    "binary": {"objective": "binary", "metric": "binary_logloss"},
    "classes": {"objective": "multiclass", "metric": "multi_logloss"},
    "amount": {"objective": "regression", "metric": "l2"},
    "value": {"objective": "regression", "metric": "l2"},
}
_MOST_TREES, _PATIENCE = 1_000, 50

Rows = tuple[np.ndarray, np.ndarray]
"""Features [N, F] and labels [N]."""


def grow_trees(training: Rows, validation: Rows, answer: str, num_classes: int, seed: int) -> str:
    """Trees as LightGBM's text; how many there are is chosen on validation rows."""
    names = list(FEATURE_NAMES)
    parameters: dict[str, Any] = _PARAMETERS | _OBJECTIVES[answer] | {"seed": seed}
    if answer == "classes":
        parameters["num_class"] = num_classes
    data = lightgbm.Dataset(training[0], training[1], feature_name=names)
    booster = lightgbm.train(
        parameters,
        data,
        _MOST_TREES,
        valid_sets=[lightgbm.Dataset(validation[0], validation[1], reference=data, feature_name=names)],
        callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
    )
    return booster.model_to_string(num_iteration=booster.best_iteration)


def load_trees(text: str) -> lightgbm.Booster:
    """Trees from LightGBM's text."""
    return lightgbm.Booster(model_str=text)


def predict_trees(trees: lightgbm.Booster, features: np.ndarray) -> np.ndarray:
    """[N, P] float32 predictions, from features [N, F]: probabilities, or numbers."""
    width = trees.num_model_per_iteration()
    if not len(features):
        return np.zeros((0, width), np.float32)
    return np.asarray(trees.predict(features, num_threads=1)).astype(np.float32).reshape(-1, width)
