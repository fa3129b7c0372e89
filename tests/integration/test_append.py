"""Appending: a store that grew file by file holds what one built from all files at once holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact
from ray_jobs.config import Settings
from tests.integration.plain import LogShape, plain_store, random_batches
from tests.integration.stores import (
    change,
    check_store,
    files_a_bucket,
    kill_before_publishing,
    make_settings,
    users_of,
    write_batch,
)

SHAPES = {
    "strings": LogShape(),
    "integers": LogShape(int_ids=True),
    "event_ids": LogShape(event_ids=True, min_item_count=3),
    "items_rise": LogShape(min_item_count=3, rows_per_run=70),
    "cut": LogShape(int_ids=True, max_events=5, rows_per_run=70),
    "cut_event_ids": LogShape(event_ids=True, max_events=4, min_item_count=3),
    "duplicates_stay": LogShape(drop_duplicates=False, min_item_count=3),
    "duplicates_stay_cut": LogShape(int_ids=True, drop_duplicates=False, max_events=6, rows_per_run=70),
    "integer_event_ids": LogShape(int_ids=True, event_ids=True, min_item_count=3, rows_per_run=70),
}


def prefix_grew(before: SequenceStore, after: SequenceStore) -> bool:
    """Whether every item, item number and action of a store still has the place it had."""
    items, numbers = before.vocabulary.item_ids.to_pylist(), before.item_table["item_id"].to_list()
    return (
        after.vocabulary.item_ids.to_pylist()[: len(items)] == items
        and after.item_table["item_id"].to_list()[: len(numbers)] == numbers
        and after.actions[: len(before.actions)] == before.actions
    )


def grow(settings: Settings, batches: Sequence[pa.Table], shape: LogShape) -> SequenceStore:
    """Build a store from the first batch and append the others, holding each snapshot against the plain store."""
    write_batch(settings, "00", batches[0])
    store = build_sequences.run(settings)
    for number, batch in enumerate(batches[1:], start=1):
        check_store(store, plain_store(batches[:number], shape), shape.min_item_count)
        write_batch(settings, f"{number:02d}", batch)
        grown = append.run(settings)
        assert prefix_grew(store, grown)
        assert grown.manifest["snapshot"] == number
        store = grown
    check_store(store, plain_store(batches, shape), shape.min_item_count)
    return SequenceStore.open(store.url)


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_appends_equal_one_build_and_compacting_changes_nothing(tmp_path: Path, shape: LogShape, seed: int) -> None:
    batches = random_batches(seed, shape)
    settings = make_settings(tmp_path, **shape.sections)
    store = grow(settings, batches, shape)
    assert max(files_a_bucket(store)) == len(batches)
    compacted = compact.run(settings)
    assert files_a_bucket(compacted) == [1] * 4
    check_store(compacted, plain_store(batches, shape), shape.min_item_count)
    assert compact.run(settings).manifest == compacted.manifest, "there is nothing left to do"
    whole = make_settings(tmp_path / "whole", **shape.sections)
    for number, batch in enumerate(batches):
        write_batch(whole, f"{number:02d}", batch)
    assert users_of(build_sequences.run(whole)) == users_of(compacted)


@pytest.mark.usefixtures("ray_cluster")
def test_appends_and_compacting_by_ray(tmp_path: Path) -> None:
    shape = LogShape(event_ids=True, min_item_count=3, rows_per_run=70)
    batches = random_batches(11, shape)
    settings = make_settings(tmp_path, **shape.sections)
    grow(settings, batches, shape)
    compacted = compact.run(settings)
    assert files_a_bucket(compacted) == [1] * 4
    check_store(compacted, plain_store(batches, shape), shape.min_item_count)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, **LogShape().sections)


@pytest.fixture
def batches() -> list[pa.Table]:
    return random_batches(5, LogShape(), num_batches=2)


@pytest.fixture
def store(on_threads: None, settings: Settings, batches: list[pa.Table]) -> SequenceStore:
    """A store of the first batch."""
    write_batch(settings, "00", batches[0])
    return build_sequences.run(settings)


def test_a_store_that_has_every_file_stays_as_it_is(
    store: SequenceStore, settings: Settings, batches: list[pa.Table], capsys: pytest.CaptureFixture[str]
) -> None:
    assert append.run(settings).manifest == store.manifest
    write_batch(settings, "01", batches[1])
    grown = append.run(settings)
    capsys.readouterr()
    assert append.run(settings).manifest == grown.manifest
    assert capsys.readouterr().out == f"append: {store.url} has every event of {settings.events_url}\n"
    assert SequenceStore.open(store.url).manifest == grown.manifest


def test_a_retried_batch_under_another_name_adds_duplicates_only(
    store: SequenceStore, settings: Settings, batches: list[pa.Table]
) -> None:
    write_batch(settings, "00-retried", batches[0])
    again = append.run(settings)
    check_store(again, plain_store([batches[0]] * 2, LogShape()))
    assert users_of(again) == users_of(store)
    assert files_a_bucket(again) == [1] * 4, "no part without rows"


def test_a_file_that_changed_after_it_came_in_is_refused_with_both_sizes(
    store: SequenceStore, settings: Settings, batches: list[pa.Table], tmp_path: Path
) -> None:
    before = (tmp_path / "events/00.parquet").stat().st_size
    write_batch(settings, "00", batches[1].slice(0, 20))
    write_batch(settings, "01", batches[1])
    after = (tmp_path / "events/00.parquet").stat().st_size
    message = rf"00\.parquet: was ingested with {before:,} bytes and now has {after:,}; files of a log must not change"
    with pytest.raises(DataContractError, match=message):
        append.run(settings)
    assert SequenceStore.open(store.url).manifest == store.manifest


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("store", {"max_events_per_user": 7}, r"store\.max_events_per_user is 7, but \S+ was built with None;"),
        ("store", {"min_item_count": 2}, r"store\.min_item_count is 2, but \S+ was built with 1;"),
        ("store", {"num_buckets": 8}, r"store\.num_buckets is 8, but \S+ has 4;"),
        ("events", {"drop_duplicates": False}, r"events\.drop_duplicates is False, but \S+ was built with True;"),
        ("events", {"features": {"device": "categorical"}}, r"events\.features is {'device'.*}, but .*'discount'"),
        ("privacy", {"pseudonym_key_variable": "K"}, r"privacy\.pseudonym_key_variable is K, but \S+ .*with None;"),
    ],
)
def test_other_rules_than_those_of_the_store_are_refused(
    store: SequenceStore, settings: Settings, section: str, changes: dict[str, Any], message: str
) -> None:
    other = change(settings, section, **changes)
    with pytest.raises(SettingsError, match=message + ".*fixed for the life of a store"):
        append.run(other)
    assert SequenceStore.open(store.url).manifest == store.manifest


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", pa.array([1, 2], pa.int64()), "user_id is int, but string in the store"),
        ("item_id", pa.array([1, 2], pa.int32()), "item_id is int, but string in the store"),
        ("price", None, "price is absent, but float in the store"),
        ("event_id", pa.array(["a", "b"]), "event_id is string, but absent in the store"),
    ],
)
def test_files_of_another_contract_are_refused(
    store: SequenceStore,
    settings: Settings,
    batches: list[pa.Table],
    column: str,
    values: pa.Array | None,
    message: str,
) -> None:
    table = batches[1].slice(0, 2)
    table = table.drop_columns([column]) if column in table.column_names else table
    write_batch(settings, "01", table if values is None else table.append_column(column, values))
    with pytest.raises(DataContractError, match=rf"01\.parquet: {message} {store.url}; all files of a log must agree"):
        append.run(settings)
    assert SequenceStore.open(store.url).manifest == store.manifest


def test_a_batch_with_too_many_bad_rows_is_refused_and_goes_in_once_it_is_mended(
    store: SequenceStore, settings: Settings, batches: list[pa.Table]
) -> None:
    users = pa.array([None] * 100 + batches[1].column("user_id").to_pylist()[100:], pa.string())
    write_batch(settings, "01", batches[1].set_column(0, "user_id", users))
    with pytest.raises(DataContractError, match=r"of rows are bad .*, more than events\.max_bad_share 50\.00%"):
        append.run(settings)
    assert SequenceStore.open(store.url).manifest == store.manifest
    check_store(store, plain_store(batches[:1], LogShape()))
    write_batch(settings, "01", batches[1])
    check_store(append.run(settings), plain_store(batches, LogShape()))


@pytest.mark.parametrize("column", ["item_id", "user_id"])
def test_a_batch_without_any_item_or_with_a_run_of_bad_rows_goes_in(
    store: SequenceStore, settings: Settings, batches: list[pa.Table], column: str
) -> None:
    """Searches need no item; and what is in one row group may all be bad."""
    batch = batches[1].set_column(2, "action", pa.array(["search"] * batches[1].num_rows))
    whole = batch.set_column(batch.column_names.index(column), column, pa.nulls(batch.num_rows, pa.string()))
    new = [whole] if column == "item_id" else [batches[1].slice(0, 40), whole.slice(0, 40), batches[1].slice(40)]
    write_batch(settings, "01", pa.concat_tables(new))
    check_store(append.run(change(settings, "store", rows_per_run=40)), plain_store([batches[0], *new], LogShape()))


def test_a_killed_append_goes_on_after_a_compaction_that_had_nothing_to_do(
    store: SequenceStore, settings: Settings, batches: list[pa.Table]
) -> None:
    write_batch(settings, "01", batches[1])
    by_tasks = change(settings, "store", rows_per_run=40)
    kill_before_publishing(by_tasks)
    assert compact.run(settings).manifest == store.manifest
    check_store(append.run(by_tasks), plain_store(batches, LogShape()))


def test_a_refused_file_is_named_even_where_nothing_else_is_new(
    store: SequenceStore, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events/01.parquet").write_bytes(b"no Parquet")
    capsys.readouterr()
    append.run(change(settings, "events", max_bad_files=1))
    assert "01.parquet: not a readable Parquet file" in capsys.readouterr().out


def test_a_file_unlike_the_store_is_left_out_and_not_the_file_that_is_like_it(
    store: SequenceStore, settings: Settings, batches: list[pa.Table]
) -> None:
    numbers = pa.array(range(10), pa.int64())
    write_batch(settings, "01", batches[1].slice(0, 10).set_column(0, "user_id", numbers))
    write_batch(settings, "02", batches[1])
    grown = append.run(change(settings, "events", max_bad_files=1))
    check_store(grown, plain_store(batches, LogShape()))
    assert [file["file"].rsplit("/", 1)[1] for file in grown.manifest["refused_files"]] == ["01.parquet"]
