"""Trees on the counts of histories, fitted to what the heads of a task learn.

They learn the same questions from the same features, users and moments before the validation cutoff. How many trees
there are is chosen on the users at the validation cutoff. Invariant: at most `MOST_EXAMPLES` are held at once.
"""

from collections.abc import Sequence

import numpy as np

from data_io.examples import question_examples
from data_io.features import history_features
from data_io.label_table import Asked
from data_io.labels import Question
from data_io.questions import with_numbers_for
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from model.trees import Rows, grow_trees
from ray_jobs.bucket_map import map_buckets

MOST_EXAMPLES = 1_000_000
"""68 MB of features; more users than that add little to so few columns."""


def fit_trees(
    store: SequenceStore, split: Cutoffs, questions: Sequence[Question], moments: np.ndarray, seed: int
) -> dict[str, str]:
    """Trees as LightGBM's text, by question; none where answers do not differ, or are several at once.

    Args:
        store: whose users are asked.
        split: of the run.
        questions: of a task.
        moments: [C] at which training users are asked.
        seed: of what is drawn.
    """
    store = with_numbers_for(store.with_columns({}), questions)
    share = min(1.0, MOST_EXAMPLES / max(store.num_users * (len(moments) + 1), 1))

    def read(bucket: int) -> tuple[int, Rows, Rows]:
        sequences, chance = store.read_sequences(bucket), np.random.default_rng([seed, bucket])
        parts: list[Rows] = []
        stages: list[tuple[np.ndarray, Asked]] = [(moments, "training"), (np.array([split.validation]), "validation")]
        for cutoffs, asked in stages:
            examples = question_examples(sequences, cutoffs, 1, questions, asked)
            examples = examples.take(np.flatnonzero(chance.random(len(examples)) < share))
            parts.append((history_features(sequences, examples), examples.target))
        return bucket, parts[0], parts[1]

    found = sorted(map_buckets(read, range(store.num_buckets)), key=lambda part: part[0])
    training, validation = _together([part[1] for part in found]), _together([part[2] for part in found])
    fitted: dict[str, str] = {}
    column = 0
    for question in questions:
        if question.answer != "labels":
            rows = [_known(part, column) for part in (training, validation)]
            if all(len(np.unique(labels)) > 1 for _, labels in rows):
                trees = grow_trees(rows[0], rows[1], question.answer, len(question.classes), seed)
                fitted[question.name] = trees
        column += question.width
    return fitted


def _together(parts: list[Rows]) -> Rows:
    return np.concatenate([features for features, _ in parts]), np.concatenate([labels for _, labels in parts])


def _known(rows: Rows, column: int) -> Rows:
    """The rows that have a label in a column, and these."""
    features, labels = rows
    known = ~np.isnan(labels[:, column])
    return features[known], labels[known, column]
