"""Embedding histories at hand: the same vectors as from a store, in a process that has neither Ray nor DeepSpeed."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_io.batch import collate
from data_io.examples import history_examples
from data_io.schema import DataContractError
from data_io.sequences import Sequences
from data_io.vocabulary import Vocabulary
from model.checkpoint import SavedModel, load_model, save_model
from model.embed import Event, embed
from model.encoder import ClickformerEncoder
from model.engine import to_tensors

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = Vocabulary(pa.array([f"i{index}" for index in range(2, 12)], pa.large_string()))
ACTIONS = ["view", "buy", "came up after training"]


def at(hour: int) -> datetime:
    return START + timedelta(hours=hour)


HISTORIES: list[list[Event]] = [
    [("i5", "buy", at(9)), ("i2", "view", at(1)), ("i3", "view", at(1))],
    [],
    [("never seen", "buy", at(2)), (None, "view", at(3)), ("i11", "came up after training", at(4))],
]


@pytest.fixture
def saved(make_encoder: Callable[..., ClickformerEncoder]) -> SavedModel:
    return SavedModel(make_encoder(), ITEMS, {"actions": ACTIONS})


def test_vectors_are_those_of_the_same_events_in_a_store(saved: SavedModel) -> None:
    hours = np.array([1, 1, 9, 2, 3, 4])
    sequences = Sequences(
        user_id=pa.array(["a", "b", "c"]),
        offsets=np.array([0, 3, 3, 6]),
        item_index=np.array([2, 3, 5, 1, 0, 11], np.int32),
        action_index=np.array([2, 2, 3, 3, 2, 1], np.int16),
        event_time=(int(START.timestamp()) + hours * 3_600) * 1_000_000,
    )
    for now in (None, at(5)):
        examples = history_examples(sequences, None if now is None else int(now.timestamp()) * 1_000_000, 8)
        with torch.no_grad():
            expected = saved.encoder.user_states(to_tensors(collate(sequences, examples), torch.device("cpu")))
        np.testing.assert_allclose(embed(saved, HISTORIES, now), expected.numpy(), atol=1e-6)


def test_what_comes_later_changes_nothing_and_times_without_a_zone_are_utc(saved: SavedModel) -> None:
    naive = [(item, action, time.replace(tzinfo=None)) for item, action, time in HISTORIES[0]]
    later = [*naive, ("i7", "buy", datetime(2024, 2, 1))]
    np.testing.assert_array_equal(embed(saved, [later], at(20)), embed(saved, [HISTORIES[0]], at(20)))


def test_no_history_gives_no_vector(saved: SavedModel) -> None:
    assert embed(saved, []).shape == (0, 8)


def test_ids_of_another_type_are_named(saved: SavedModel) -> None:
    with pytest.raises(DataContractError, match="item ids of this model are large_string"):
        embed(saved, [[(5, "buy", START)]])


def test_a_folder_is_enough_in_a_process_without_ray_and_deepspeed(saved: SavedModel, tmp_path: Path) -> None:
    url = str(tmp_path / "encoder")
    save_model(saved.encoder, ITEMS, url, {"kind": "next_item", "fingerprint": "f", "actions": ACTIONS})
    program = f"""
import sys
from datetime import datetime
from transformers import AutoModel
from model.checkpoint import load_model
from model.embed import embed
vectors = embed(load_model({url!r}), [[("i5", "buy", datetime(2024, 1, 1))]])
assert AutoModel.from_pretrained({url!r}).config.hidden_size == vectors.shape[1] == 8
assert not {{"ray", "deepspeed"}} & set(sys.modules), "neither is imported"
print(vectors.tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = embed(load_model(url), [[("i5", "buy", START)]])
    np.testing.assert_allclose(np.array(eval(done.stdout.splitlines()[-1])), expected, atol=1e-6)
