"""The sequence store: what was published is what is read, part by part and snapshot by snapshot."""

import pickle
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_io import storage
from data_io.buckets import BucketWriter
from data_io.config import SettingsError
from data_io.hashing import numeric_bucket
from data_io.merging import INDEX_COLUMNS, merge_parts
from data_io.schema import DataContractError, store_schema
from data_io.snapshots import MANIFEST_NAME, publish_manifest, published_manifest, remove_unnamed
from data_io.store import SequenceStore, write_time_histogram
from data_io.vocabulary import write_vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
START_MINUTE = START_US // 60_000_000
SCHEMA = store_schema("int", {"price": "float"})
FOLDERS = ("bucket=", "tables/")
ACTIONS = ["buy", "view", "search"]
ITEMS = pl.DataFrame({"item_id": ["a", "b"], "count": [2, 1], "item_index": pl.Series([2, 3], dtype=pl.Int32)})
HISTOGRAM = pl.DataFrame({"minute": [START_MINUTE + 1, START_MINUTE], "count": [1, 3]})

Events = list[tuple[int, int, int]]
"""Second, item number and action index of each event of a user."""


def to_rows(users: dict[int, Events]) -> pa.Table:
    """Rows of the store, with a price that readers of sequences see only if they ask for it."""
    rows = []
    for user, events in users.items():
        seconds, items, actions = (list(column) for column in zip(*events, strict=True))
        times = [START + timedelta(seconds=second) for second in seconds]
        ends = {"num_events": len(times), "first_event_time": times[0], "last_event_time": times[-1]}
        lists = {
            "item_index": items,
            "action_index": actions,
            "event_time": times,
            "price": [1.0 + second for second in seconds],
        }
        rows.append({"user_id": user} | ends | lists)
    return pa.Table.from_pylist(rows, SCHEMA)


class Builder:
    """Publishes snapshots of a store of two buckets, as the jobs do, but for the log."""

    def __init__(self, folder: Path, max_events: int | None = None) -> None:
        self.url = str(folder)
        self.settings = {"store": {"max_events_per_user": max_events}}

    def _write(self, name: str, write: Callable[..., Any], table: Any) -> dict[str, Any]:
        return asdict(write(self.url, table, name)) | {"name": name}

    def append(self, *buckets: dict[int, Events], items: pl.DataFrame = ITEMS) -> SequenceStore:
        """A snapshot in which each bucket has a part more, unless that would have no rows."""
        base = published_manifest(self.url)
        number = base["snapshot"] + 1 if base else 0
        writer = BucketWriter(url=self.url, fingerprint=f"f{number}")
        entries = dict(base["buckets"]) if base else {str(bucket): {"files": []} for bucket in range(2)}
        for bucket, users in enumerate(buckets):
            if users or not base:
                file = writer.commit(bucket, 2, to_rows(users), {})["file"]
                entries[str(bucket)] = {"files": [*entries[str(bucket)]["files"], file]}
        tables = {
            "vocabulary": self._write(f"tables/vocabulary-{number}.parquet", write_vocabulary, items),
            "time_histogram": self._write(f"tables/minutes-{number}.parquet", write_time_histogram, HISTOGRAM),
        }
        facts = {"num_buckets": 2, "num_users": 3, "actions": ACTIONS, "last_minute": START_MINUTE + 1}
        same = {"fingerprint": writer.fingerprint, "settings": self.settings, "carried": {"price": "float"}}
        publish_manifest(self.url, same | facts | {"tables": tables, "buckets": entries}, after=base)
        writer.delete_work()
        return SequenceStore.open(self.url)

    def compact(self, retain_hours: float) -> SequenceStore:
        """A snapshot with the same content in one part for each bucket."""
        store = SequenceStore.open(self.url)
        writer = BucketWriter(url=self.url, fingerprint="compacted")
        merged = {b: {"files": [writer.commit(b, 2, store.read_rows(b), {})["file"]]} for b in range(2)}
        content = {k: v for k, v in store.manifest.items() if k not in ("snapshot", "published_at")}
        entries = {str(bucket): entry for bucket, entry in merged.items()}
        manifest = publish_manifest(self.url, content | {"buckets": entries}, after=store.manifest)
        writer.delete_work()
        remove_unnamed(self.url, manifest, FOLDERS, retain_hours)
        return SequenceStore.open(self.url)


@pytest.fixture
def store(tmp_path: Path) -> SequenceStore:
    """Three users in the first of two buckets, one with an item nobody knows."""
    return Builder(tmp_path).append({7: [(0, 2, 3), (1, 0, 2)], 8: [(90, 1, 3)], 9: [(5, 3, 4)]}, {})


def test_an_opened_store_says_what_its_manifest_says(store: SequenceStore) -> None:
    assert (store.fingerprint, store.num_buckets, store.num_users, store.max_events) == ("f0", 2, 3, None)
    assert store.actions == ACTIONS
    assert store.vocabulary.item_ids.to_pylist() == ["a", "b"]
    assert store.item_table.equals(ITEMS)


def test_columns_that_are_asked_for_come_along_in_the_order_of_the_events(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.append({7: [(0, 2, 3), (8, 0, 2)], 8: [(5, 3, 2)]}, {})
    store = builder.append({7: [(3, 2, 3)], 9: [(1, 2, 3)]}, {})
    assert store.event_columns == {"price": "numeric"}
    assert store.read_sequences(0).columns == {}
    seeing = pickle.loads(pickle.dumps(store.with_columns({"price": "numeric"}))).seen_by(3, 3)
    sequences = seeing.read_sequences(0)
    seconds = (sequences.event_time - START_US) // 1_000_000
    assert seconds.tolist() == [0, 3, 8, 5, 1]
    assert sequences.columns["price"].code.tolist() == numeric_bucket(1.0 + seconds).tolist()
    assert seeing.read_sequences(1).columns["price"].code.shape == (0,)


def test_a_column_the_store_lacks_is_named(store: SequenceStore) -> None:
    with pytest.raises(SettingsError, match=r"names rating, a column that the log .* did not have; .* are: price"):
        store.with_columns({"rating": "numeric"})


def test_sequences_of_a_bucket_are_its_rows(store: SequenceStore) -> None:
    sequences = store.read_sequences(0)
    assert sequences.user_id.to_pylist() == [7, 8, 9]
    assert sequences.offsets.tolist() == [0, 2, 3, 4]
    assert sequences.item_index.tolist() == [2, 0, 1, 3]
    assert sequences.action_index.tolist() == [3, 2, 3, 4]
    assert (sequences.event_time - START_US).tolist() == [0, 1_000_000, 90_000_000, 5_000_000]


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
    assert copy.read_sequences(0).user_id.to_pylist() == [7, 8, 9]


def test_a_folder_without_a_manifest_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"nothing is published here yet .* run clickformer build_sequences fi"):
        SequenceStore.open(str(tmp_path))


def test_parts_of_a_bucket_are_merged_when_they_are_read(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.append({7: [(0, 2, 2), (5, 2, 2)]}, {8: [(0, 2, 2)]})
    store = builder.append({6: [(1, 3, 2)], 7: [(3, 3, 3), (5, 3, 3)]}, {})
    sequences = store.read_sequences(0)
    assert sequences.user_id.to_pylist() == [6, 7]
    assert ((sequences.event_time - START_US) // 1_000_000).tolist() == [1, 0, 3, 5, 5]
    assert sequences.item_index.tolist() == [3, 2, 3, 2, 3], "what came earlier stands before what ties with it"
    assert [len(store.read_parts(bucket)) for bucket in range(2)] == [2, 1]
    assert store.read_rows(0).equals(merge_parts(store.read_parts(0), None))


def test_readers_see_the_newest_events_a_store_keeps(tmp_path: Path) -> None:
    builder = Builder(tmp_path, max_events=2)
    builder.append({7: [(0, 2, 2), (5, 2, 2)]}, {})
    store = builder.append({7: [(3, 3, 2)]}, {})
    assert store.max_events == 2
    assert ((store.read_sequences(0).event_time - START_US) // 1_000_000).tolist() == [3, 5]


def test_items_below_the_least_count_are_unknown_until_they_have_events_enough(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    rare = ITEMS.with_columns(pl.Series("item_index", [1, 2], dtype=pl.Int32))
    store = builder.append({7: [(0, 2, 2), (1, 3, 2), (2, 0, 2)]}, {}, items=rare)
    assert store.read_sequences(0).item_index.tolist() == [1, 2, 0]
    assert store.vocabulary.item_ids.to_pylist() == ["b"]
    assert store.read_rows(0).column("item_index").to_pylist() == [[2, 3, 0]], "the store has its numbers"
    risen = rare.with_columns(pl.Series("item_index", [3, 2], dtype=pl.Int32))
    store = builder.append({}, {}, items=risen)
    assert store.read_sequences(0).item_index.tolist() == [3, 2, 0]
    assert store.vocabulary.item_ids.to_pylist() == ["b", "a"]


def test_a_model_sees_the_items_and_actions_it_was_trained_with(store: SequenceStore) -> None:
    seen = store.seen_by(vocabulary_size=3, num_actions=4)
    assert seen.vocabulary.item_ids.to_pylist() == ["a"]
    sequences = seen.read_sequences(0)
    assert sequences.item_index.tolist() == [2, 0, 1, 1]
    assert sequences.action_index.tolist() == [3, 2, 3, 1]
    assert pickle.loads(pickle.dumps(seen)).read_sequences(0).item_index.tolist() == [2, 0, 1, 1]
    assert store.read_sequences(0).item_index.tolist() == [2, 0, 1, 3]


def test_columns_are_read_alone_and_those_there_are_not_are_left_out(store: SequenceStore) -> None:
    (part,) = store.read_columns(0, [*INDEX_COLUMNS, "event_key"])
    assert part.column_names == INDEX_COLUMNS
    assert part.column("num_events").to_pylist() == [2, 1, 1]


def test_rows_of_some_users_are_those_of_every_part(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    builder.append({7: [(0, 2, 2)], 8: [(0, 2, 2)]}, {})
    store = builder.append({8: [(1, 3, 2)], 9: [(1, 2, 2)]}, {})
    rows = store.rows_of_users(0, pa.array([8, 99]))
    assert rows.column("user_id").to_pylist() == [8, 8]
    assert rows.column("item_index").to_pylist() == [[2], [3]]


def test_a_reader_of_an_old_snapshot_reads_it_to_the_end_while_it_is_retained(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    old = builder.append({7: [(0, 2, 2)]}, {8: [(0, 3, 2)]})
    begun = old.read_rows(0)
    new_item = pl.DataFrame({"item_id": ["c"], "count": [2], "item_index": [4]}, schema=ITEMS.schema)
    more = pl.concat([ITEMS, new_item])
    builder.append({7: [(1, 4, 2)]}, {8: [(1, 4, 2)]}, items=more)
    new = builder.compact(retain_hours=1)
    assert old.read_rows(0).equals(begun)
    assert old.read_sequences(1).item_index.tolist() == [3]
    assert old.vocabulary.item_ids.to_pylist() == ["a", "b"], "tables of the old snapshot stand too"
    assert new.read_sequences(1).item_index.tolist() == [3, 4]
    assert new.vocabulary.item_ids.to_pylist() == ["a", "b", "c"]


def test_a_reader_of_a_snapshot_that_is_gone_is_told_to_open_it_anew(tmp_path: Path) -> None:
    builder = Builder(tmp_path)
    old = builder.append({7: [(0, 2, 2)]}, {8: [(0, 3, 2)]})
    builder.append({7: [(1, 3, 2)]}, {})
    new = builder.compact(retain_hours=0)
    assert len(list(tmp_path.glob("bucket=*/*"))) == 2
    with pytest.raises(DataContractError, match=rf"missing; open {tmp_path} anew if a job has replaced it since"):
        old.read_sequences(0)
    assert new.read_sequences(0).item_index.tolist() == [2, 3]


def test_a_compacted_store_reads_as_before(tmp_path: Path) -> None:
    builder = Builder(tmp_path, max_events=2)
    builder.append({7: [(0, 2, 2), (4, 2, 3)]}, {8: [(0, 3, 2)]})
    before = builder.append({7: [(2, 3, 2)], 9: [(9, 2, 2)]}, {})
    rows = [before.read_rows(bucket) for bucket in range(2)]
    after = builder.compact(retain_hours=0)
    assert [after.read_rows(bucket) for bucket in range(2)] == rows
    assert [len(after.read_parts(bucket)) for bucket in range(2)] == [1, 1]
    assert ((after.read_sequences(0).event_time - START_US) // 1_000_000).tolist() == [2, 4, 9]


def test_a_store_of_format_1_still_reads(tmp_path: Path) -> None:
    """Its buckets had one file each, its tables fixed names, and its vocabulary the known items only."""
    url = str(tmp_path)
    writer = BucketWriter(url=url, fingerprint="old")
    file = writer.commit(0, 1, to_rows({7: [(0, 3, 3), (1, 1, 2)]}), {})["file"]
    storage.write_parquet(f"{url}/vocabulary.parquet", ITEMS.select("item_id", "count").to_arrow())
    write_time_histogram(url, HISTOGRAM)
    facts = {"num_buckets": 1, "num_users": 1, "actions": ACTIONS, "last_minute": START_MINUTE + 1}
    identity = {"format_version": 1, "fingerprint": "old"}
    storage.write_json(f"{url}/{MANIFEST_NAME}", identity | facts | {"buckets": {"0": file}})
    store = SequenceStore.open(url)
    assert store.read_time_histogram()[1].tolist() == [3, 1]
    assert store.max_events is None
    assert store.read_sequences(0).item_index.tolist() == [3, 1]
    assert store.vocabulary.item_ids.to_pylist() == ["a", "b"]
