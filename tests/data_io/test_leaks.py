"""The leak check: silent on honest batches, loud on those that know the future."""

from collections.abc import Callable

import numpy as np
import pytest

from data_io.batch import Batch, collate
from data_io.examples import Examples, question_examples
from data_io.features import history_features
from data_io.labels import Question
from data_io.leaks import check_no_leak
from data_io.question_config import EventQuestion
from data_io.schema import DataContractError
from data_io.sequences import Sequences
from data_io.splits import DAY_US

USERS = [[(1, 10, 2), (3, 11, 2), (6, 12, 2)], [(2, 10, 2)], [(5, 11, 2), (7, 13, 2)]]


@pytest.fixture
def asked(make_sequences: Callable) -> tuple[Sequences, Examples]:
    sequences = make_sequences(*USERS, unit_us=DAY_US)
    question = Question(name="", settings=EventQuestion(horizon_days=2))
    return sequences, question_examples(sequences, np.array([4, 6]) * DAY_US, 5, [question], "training")


def honest(sequences: Sequences, examples: Examples) -> Batch:
    return collate(sequences, examples) | {
        "features": history_features(sequences, examples),
        "label": examples.target,
    }


def test_what_knows_the_past_alone_passes(asked: tuple[Sequences, Examples]) -> None:
    check_no_leak(*asked, honest, labels=["label"])


def test_a_count_of_all_events_is_found_out(asked: tuple[Sequences, Examples]) -> None:
    def leaky(sequences: Sequences, examples: Examples) -> Batch:
        return honest(sequences, examples) | {"total": (sequences.ends - sequences.starts)[examples.row]}

    with pytest.raises(DataContractError, match=r"leak: total of user .* at 1970-01-05T00:00:00"):
        check_no_leak(*asked, leaky, labels=["label"])


def test_a_span_that_reaches_beyond_its_moment_is_found_out(asked: tuple[Sequences, Examples]) -> None:
    sequences, examples = asked
    beyond = Examples(
        row=examples.row, start=examples.start, end=examples.end + 1, now=examples.now, target=examples.target
    ).take(np.flatnonzero((examples.row == 0) & (examples.now == 4 * DAY_US)))
    with pytest.raises(DataContractError, match="leak: "):
        check_no_leak(sequences, beyond, honest, labels=["label"])
