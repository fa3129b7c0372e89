"""The sequence store: what was published is what is read, and what the manifest says of it holds."""

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter
from data_io.config import SettingsError
from data_io.schema import DataContractError, store_schema
from data_io.store import SequenceStore, write_time_histogram
from data_io.vocabulary import write_vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
START_MINUTE = START_US // 60_000_000


@pytest.fixture
def store(tmp_path: Path) -> SequenceStore:
    """Three users in two of three buckets, with a price that readers of sequences never see."""
    schema = store_schema("int", ("price",))
    users = [
        {"user_id": 7, "item_index": [2, 0], "action_index": [3, 2], "event_time": [0, 1], "price": [1.0, None]},
        {"user_id": 8, "item_index": [1], "action_index": [3], "event_time": [90], "price": [None]},
        {"user_id": 9, "item_index": [3], "action_index": [4], "event_time": [5], "price": [2.0]},
    ]
    rows = [
        user | {"event_time": [START + timedelta(seconds=second) for second in user["event_time"]]} for user in users
    ]
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    parts = [rows[:2], [], rows[2:]]
    marks = [writer.commit(bucket, 3, pa.Table.from_pylist(part, schema), {}) for bucket, part in enumerate(parts)]
    write_vocabulary(str(tmp_path), pl.DataFrame({"item_id": ["a", "b"], "count": [2, 1]}))
    histogram = pl.DataFrame({"minute": [START_MINUTE + 1, START_MINUTE], "count": [1, 3]})
    write_time_histogram(str(tmp_path), histogram)
    facts = {"num_buckets": 3, "num_users": 3, "actions": ["buy", "view", "search"], "last_minute": START_MINUTE + 1}
    writer.publish(marks, facts)
    return SequenceStore.open(str(tmp_path))


def test_an_opened_store_says_what_its_manifest_says(store: SequenceStore) -> None:
    assert (store.fingerprint, store.num_buckets, store.num_users) == ("this", 3, 3)
    assert store.actions == ["buy", "view", "search"]
    assert store.vocabulary.item_ids.to_pylist() == ["a", "b"]


def test_sequences_of_a_bucket_are_its_rows(store: SequenceStore) -> None:
    sequences = store.read_sequences(0)
    assert sequences.user_id.to_pylist() == [7, 8]
    assert sequences.offsets.tolist() == [0, 2, 3]
    assert sequences.item_index.tolist() == [2, 0, 1]
    assert sequences.action_index.tolist() == [3, 2, 3]
    assert (sequences.event_time - START_US).tolist() == [0, 1_000_000, 90_000_000]


def test_a_bucket_without_users_reads_as_such(store: SequenceStore) -> None:
    sequences = store.read_sequences(1)
    assert (sequences.num_users, sequences.offsets.tolist(), len(sequences.event_time)) == (0, [0], 0)


def test_the_end_of_the_log_is_just_after_every_event(store: SequenceStore) -> None:
    assert store.end_time == START_US + 120_000_000
    latest = max(store.read_sequences(bucket).event_time.max(initial=0) for bucket in range(store.num_buckets))
    assert latest < store.end_time


def test_the_time_histogram_comes_back_by_minute(store: SequenceStore) -> None:
    minutes, counts = store.read_time_histogram()
    assert minutes.tolist() == [START_MINUTE, START_MINUTE + 1]
    assert counts.tolist() == [3, 1]


def test_action_names_become_indices_in_the_order_asked_for(store: SequenceStore) -> None:
    indices = store.action_indices(["search", "buy"])
    assert isinstance(indices, np.ndarray)
    assert indices.tolist() == [4, 2]
    assert store.action_indices(None) is None


def test_an_action_the_log_does_not_have_is_named_with_those_it_has(store: SequenceStore) -> None:
    with pytest.raises(SettingsError, match="action purchase is not in the log; it has buy, view, search"):
        store.action_indices(["view", "purchase"])


def test_a_store_survives_the_way_to_a_worker(store: SequenceStore) -> None:
    assert store.vocabulary.size == 4
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read_sequences(2).user_id.to_pylist() == [9]


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="nothing is published here yet"):
        SequenceStore.open(str(tmp_path))
