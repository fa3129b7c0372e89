"""Surprise: of each event what a ranking of its user just before would have said, whichever ways items are chosen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_io.batch import collate
from data_io.examples import Examples
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from model.encoder import ClickformerEncoder
from model.engine import to_tensors
from model.scoring import UserBatches
from model.surprise import can_surprise, measure_surprise
from tests.model.conftest import NUM_ITEMS
from tests.model.test_neighbour_choice import make_neighbours

LENGTHS = (14, 5, 2, 1, 0)
"""One longer than the network reads, one of whom nothing can be judged, one without events."""


def make_sequences() -> Sequences:
    generator = np.random.default_rng(3)
    size = sum(LENGTHS)
    return Sequences(
        user_id=pa.array([f"u{row}" for row in range(len(LENGTHS))]),
        offsets=np.concatenate([[0], np.cumsum(LENGTHS)]),
        item_index=generator.integers(1, NUM_ITEMS, size).astype(np.int32),
        action_index=generator.integers(2, 4, size).astype(np.int16),
        event_time=generator.integers(0, 10**12, size).cumsum(),
    )


def by_ranking(encoder: ClickformerEncoder, sequences: Sequences, row: int, place: int) -> float:
    """Minus the log-probability of an event's item, ranked for its user just before."""
    start = max(int(sequences.starts[row]), int(sequences.ends[row]) - encoder.config.sequence_length - 1)
    now = sequences.event_time[[place]]
    one = {"row": [row], "start": [start], "end": [place], "target": [0]}
    example = Examples(now=now, **{name: np.array(value) for name, value in one.items()})
    batch = to_tensors(collate(sequences, example), torch.device("cpu"))
    with torch.no_grad():
        _, scores = encoder.rank_items(batch)
    return -float(scores[0, sequences.item_index[place]])


@pytest.mark.parametrize("ways", [{"repeats": False}, {"repeats": True}, {"repeats": True, "neighbours": 4}])
def test_surprise_is_what_a_ranking_just_before_says(
    make_encoder: Callable[..., ClickformerEncoder], ways: dict[str, Any]
) -> None:
    encoder, sequences = make_encoder(attention="causal", **ways), make_sequences()
    if encoder.neighbour_choice is not None:
        encoder.neighbour_choice.set_neighbours(make_neighbours())
    vectors = encoder.item_table.catalogue()
    rows = np.arange(len(LENGTHS))
    found = measure_surprise(encoder, vectors, sequences, rows, None, 4, UserBatches(2))
    expected = [
        (row, place)
        for row, length in enumerate(LENGTHS)
        for place in range(int(sequences.starts[row]) + 1, int(sequences.ends[row]))
        if length > 1 and place >= sequences.ends[row] - 4 and sequences.item_index[place] >= FIRST_INDEX
    ]
    assert found.place.tolist() == [place for _, place in expected]
    np.testing.assert_allclose(
        found.nats, [by_ranking(encoder, sequences, row, place) for row, place in expected], rtol=2e-4
    )


def test_only_judged_actions_and_chosen_users_are_told(make_encoder: Callable[..., ClickformerEncoder]) -> None:
    encoder, sequences = make_encoder(attention="causal"), make_sequences()
    vectors, batches = encoder.item_table.catalogue(), UserBatches(8)
    found = measure_surprise(encoder, vectors, sequences, np.array([0]), np.array([3]), 8, batches)
    assert set(sequences.action_index[found.place].tolist()) == {3}
    assert found.place.max() < LENGTHS[0]
    nobody = measure_surprise(encoder, vectors, sequences, np.array([3, 4]), None, 8, batches)
    assert len(nobody.place) == len(nobody.nats) == 0


def test_a_network_that_looks_at_both_sides_is_not_asked(make_encoder: Callable[..., ClickformerEncoder]) -> None:
    assert can_surprise(make_encoder(attention="causal"))
    assert not can_surprise(make_encoder(attention="full"))
