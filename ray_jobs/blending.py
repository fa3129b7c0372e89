"""What is fitted once a task's network is trained: trees beside it, and how both make one probability.

Learned on users at the validation cutoff, some thousands of whom the driver reads. Invariant: nothing here has seen an
event from the test cutoff on.
"""

import numpy as np

from data_io.features import history_features
from data_io.questions import with_numbers_for
from model.blend import Blend, fit_blend
from model.checkpoint import load_model
from model.scoring import UserBatches, predict_answers
from model.trees import Rows
from ray_jobs.learning import VALIDATION_BATCH
from ray_jobs.loading import find_device, known_to, outcome_model, with_inputs
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.tree_baseline import fit_trees

MOST_USERS = 20_000
"""That blends are learned from: more change three weights by little."""


def fit_blends(learning: OutcomeLearning, url: str, seed: int) -> dict[str, Blend]:
    """The blend of each question about whether, for the network published at a URL; none where answers do not differ.

    Args:
        learning: of the task.
        url: of the network.
        seed: of what is drawn.
    """
    binary = [question for question in learning.questions if question.answer == "binary"]
    if not binary:
        return {}
    trees = fit_trees(learning.store, learning.split, binary, learning.moments, seed)
    labels, predicted, features = _validation_users(learning, url, seed)
    blends = {}
    for place, question in enumerate(learning.questions):
        if question.name in trees:
            column = sum(other.width for other in learning.questions[:place])
            known = ~np.isnan(labels[:, column])
            probability = predicted[question.name][known, 0]
            own = labels[known, column]
            blends[question.name] = fit_blend(own, probability, features[known], trees[question.name])
    return blends


def _validation_users(
    learning: OutcomeLearning, url: str, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Labels [N, L], predictions [N, P] by question and features [N, F] of users of some buckets."""
    saved = load_model(url)
    model = outcome_model(saved)
    model.to(find_device())  # pyright: ignore[reportArgumentType]
    store = with_numbers_for(with_inputs(learning.store, [saved.encoder]), learning.questions)
    parts: list[tuple[Rows, dict[str, np.ndarray]]] = []
    for bucket in np.random.default_rng(seed).permutation(store.num_buckets).tolist():
        if sum(len(rows[1]) for rows, _ in parts) >= MOST_USERS:
            break
        sequences = known_to(saved.encoder, store.read_sequences(bucket))
        examples = learning.validation_examples(sequences)
        examples = examples.take(np.arange(min(len(examples), MOST_USERS)))
        predicted = predict_answers(model, sequences, examples, UserBatches(VALIDATION_BATCH))
        parts.append(((history_features(sequences, examples), examples.target), predicted))
    names = list(parts[0][1])
    return (
        np.concatenate([labels for (_, labels), _ in parts]),
        {name: np.concatenate([predicted[name] for _, predicted in parts]) for name in names},
        np.concatenate([features for (features, _), _ in parts]),
    )
