"""Compacting, and readers that opened the store before: what they opened they read to the end, or they are told."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_io import storage
from data_io.schema import DataContractError
from data_io.snapshots import bucket_files, publish_manifest
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact
from ray_jobs.config import Settings
from tests.integration.plain import LogShape, plain_store, random_batches
from tests.integration.stores import change, check_store, files_a_bucket, make_settings, users_of, write_batch

SHAPE = LogShape(event_ids=True, min_item_count=3)
BATCHES = random_batches(3, SHAPE)


@pytest.fixture
def settings(tmp_path: Path, on_threads: None) -> Settings:
    """Settings of a run whose store has grown once, and whose log has one more file."""
    settings = make_settings(tmp_path, **SHAPE.sections)
    write_batch(settings, "00", BATCHES[0])
    build_sequences.run(settings)
    write_batch(settings, "01", BATCHES[1])
    append.run(settings)
    write_batch(settings, "02", BATCHES[2])
    return settings


@pytest.fixture
def hasty(settings: Settings) -> Settings:
    """The same, keeping nothing that is superseded."""
    return change(settings, "store", retain_hours=0)


def bucket_paths(store: SequenceStore) -> set[str]:
    return {file["name"] for entry in store.manifest["buckets"].values() for file in bucket_files(entry)}


def parquet_files(store: SequenceStore) -> set[str]:
    return {name for name in storage.list_tree(store.url) if name.startswith("bucket=")}


@pytest.mark.parametrize("job", [append, compact], ids=["append", "compact"])
def test_a_reader_reads_what_it_opened_while_a_job_runs_and_after(
    settings: Settings, job: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = users_of(SequenceStore.open(settings.store_url))
    reader = SequenceStore.open(settings.store_url)
    read = reader.read_rows(0).to_pylist()

    def read_on(*given: Any, **named: Any) -> dict[str, Any]:
        read.extend(reader.read_rows(1).to_pylist())
        manifest = publish_manifest(*given, **named)
        read.extend(reader.read_rows(2).to_pylist())
        return manifest

    monkeypatch.setattr(f"ray_jobs.{'ingest' if job is append else 'compact'}.publish_manifest", read_on)
    after = job.run(settings)
    read.extend(reader.read_rows(3).to_pylist())
    assert len(read) == len(expected)
    assert {row["user_id"]: row["num_events"] for row in read} == {user: len(es) for user, es in expected.items()}
    assert users_of(reader) == expected, "and its tables too"
    assert reader.manifest["snapshot"] + 1 == after.manifest["snapshot"]


def test_a_reader_of_what_was_removed_is_told_to_open_the_store_anew(hasty: Settings) -> None:
    reader = SequenceStore.open(hasty.store_url)
    compacted = compact.run(hasty)
    assert parquet_files(compacted) == bucket_paths(compacted)
    many = next(bucket for bucket in range(4) if len(bucket_files(reader.manifest["buckets"][str(bucket)])) > 1)
    with pytest.raises(DataContractError, match=rf"named in the manifest but missing; open {reader.url} anew if"):
        reader.read_rows(many)
    check_store(SequenceStore.open(hasty.store_url), plain_store(BATCHES[:2], SHAPE), SHAPE.min_item_count)


def test_a_reader_of_a_table_that_was_removed_is_told_to_open_the_store_anew(hasty: Settings) -> None:
    reader = SequenceStore.open(hasty.store_url)
    append.run(hasty)
    with pytest.raises(DataContractError, match="anew if a job has replaced it since"):
        _ = reader.vocabulary


def test_what_is_superseded_goes_when_its_time_is_over(settings: Settings, hasty: Settings) -> None:
    before = SequenceStore.open(settings.store_url)
    compacted = compact.run(settings)
    assert bucket_paths(before) <= parquet_files(compacted)
    snapshots = storage.list_files(storage.join(before.url, "_snapshots"))
    assert len(snapshots) == 3
    assert compact.run(hasty).manifest == compacted.manifest
    assert parquet_files(compacted) == bucket_paths(compacted)
    assert storage.list_files(storage.join(before.url, "_snapshots")) == snapshots[-1:]
    check_store(compacted, plain_store(BATCHES[:2], SHAPE), SHAPE.min_item_count)


def test_an_append_after_a_compaction_meets_what_was_merged(settings: Settings) -> None:
    compact.run(settings)
    grown = append.run(settings)
    check_store(grown, plain_store(BATCHES, SHAPE), SHAPE.min_item_count)
    assert max(files_a_bucket(grown)) == 2


def test_a_killed_compaction_is_not_seen_and_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = SequenceStore.open(settings.store_url)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compact, "update_profiles", die)
        with pytest.raises(KeyboardInterrupt):
            compact.run(settings)
    assert SequenceStore.open(settings.store_url).manifest == before.manifest
    written = parquet_files(before)
    compacted = compact.run(settings)
    assert parquet_files(compacted) == written, "what was merged before the end is not merged again"
    assert files_a_bucket(compacted) == [1] * 4
    check_store(compacted, plain_store(BATCHES[:2], SHAPE), SHAPE.min_item_count)


def test_an_append_drops_what_a_killed_compaction_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compact, "update_profiles", die)
        with pytest.raises(KeyboardInterrupt):
            compact.run(settings)
    append.run(settings)
    compacted = compact.run(settings)
    check_store(compacted, plain_store(BATCHES, SHAPE), SHAPE.min_item_count)
    assert files_a_bucket(compacted) == [1] * 4


@pytest.mark.parametrize("job", [append, compact], ids=["append", "compact"])
def test_there_must_be_a_store(tmp_path: Path, job: ModuleType) -> None:
    message = r"nothing is published here yet \(no _MANIFEST\.json\); run clickformer build_sequences first"
    with pytest.raises(DataContractError, match=message):
        job.run(make_settings(tmp_path))
    assert not (tmp_path / "store").exists(), "and nothing is left behind"
