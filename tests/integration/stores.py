"""Stores for the tests of jobs: settings, files of a log, and what a store holds, read the way readers do."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.schema import FIRST_INDEX, PADDING_INDEX, TIME_TYPE, UNKNOWN_INDEX
from data_io.snapshots import bucket_files, file_names
from data_io.store import SequenceStore
from ray_jobs import append
from ray_jobs.config import Settings
from tests.integration.plain import CARRIED, FEATURES, MINUTE_US, START_US, UNKNOWN, Event, PlainStore

KEY_VARIABLE = "CLICKFORMER_TEST_PSEUDONYM_KEY"
"""Environment variable that holds a key of pseudonyms on the driver and on every worker of `ray_cluster`."""


def make_settings(run_dir: Path | str, **sections: Any) -> Settings:
    """Settings of a run whose log is in RUN_DIR/events."""
    return Settings.model_validate({"run_dir": str(run_dir), "store": {"num_buckets": 4}} | sections)


def change(settings: Settings, section: str, **changes: Any) -> Settings:
    """The same settings but for some of one section."""
    content = settings.model_dump()
    return Settings.model_validate(content | {section: content[section] | changes})


def kill_before_publishing(settings: Settings, job: Any = append) -> None:
    """Run an append (or build) that dies when all is written but the manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.ingest.make_report", _die)
        with pytest.raises(KeyboardInterrupt):
            job.run(settings)


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


def write_batch(settings: Settings, name: str, table: pa.Table, *, rows_per_group: int = 40) -> str:
    """Put a file of the log in place, of several row groups; returns its URL."""
    url = storage.join(storage.absolute(settings.events_url), f"{name}.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_per_group)
    storage.write_bytes(url, sink.getvalue())
    return url


def users_of(store: SequenceStore) -> dict[Any, list[Event]]:
    """Events of each user as the store has them, items and actions decoded by the tables of the store."""
    numbers = [None, UNKNOWN, *store.item_table["item_id"].to_list()]
    names = [name for name in (*CARRIED, *FEATURES) if name in store.manifest["carried"]]
    users: dict[Any, list[Event]] = {}
    for row in rows_of(store):
        columns = [
            [numbers[number] for number in row["item_index"]],
            [store.actions[index - FIRST_INDEX] for index in row["action_index"]],
            [_micros(time) for time in row["event_time"]],
            *(row[name] for name in names),
        ]
        assert row["user_id"] not in users, "a user has one row"
        users[row["user_id"]] = list(zip(*columns, strict=True))
        assert row["num_events"] == len(users[row["user_id"]])
        assert (row["first_event_time"], row["last_event_time"]) == (row["event_time"][0], row["event_time"][-1])
    return users


def rows_of(store: SequenceStore) -> Iterator[dict[str, Any]]:
    """Rows of all buckets, merged."""
    for bucket in range(store.num_buckets):
        yield from store.read_rows(bucket).to_pylist()


def _micros(time: Any) -> int:
    return round(time.timestamp() * 1e6)


def known_items_of(store: SequenceStore) -> dict[Any, list[Any]]:
    """Items of each user as a model sees them: the id, UNKNOWN, or None where an event has no item."""
    names = {PADDING_INDEX: None, UNKNOWN_INDEX: UNKNOWN}
    names |= dict(enumerate(store.vocabulary.item_ids.to_pylist(), start=FIRST_INDEX))
    found: dict[Any, list[Any]] = {}
    for bucket in range(store.num_buckets):
        sequences = store.read_sequences(bucket)
        for user, first, last in zip(sequences.user_id.to_pylist(), sequences.starts, sequences.ends, strict=True):
            found[user] = [names[index] for index in sequences.item_index[first:last].tolist()]
    return found


def check_store(store: SequenceStore, plain: PlainStore, min_item_count: int = 1) -> None:
    """Hold a store against what it must hold: content in order, counts, tables."""
    assert users_of(store) == plain.users
    known = {item for item, count in plain.items.items() if count >= min_item_count}
    assert set(store.vocabulary.item_ids.to_pylist()) == known
    shown = {None, *known}
    expected = {user: [e[0] if e[0] in shown else UNKNOWN for e in events] for user, events in plain.users.items()}
    assert known_items_of(store) == expected
    assert dict(store.item_table.select("item_id", "count").iter_rows()) == dict(plain.items)
    assert dict(zip(*(column.tolist() for column in store.read_time_histogram()), strict=True)) == plain.minutes
    check_counts(store, plain, len(known))
    check_buckets(store)


def check_counts(store: SequenceStore, plain: PlainStore, num_items: int) -> None:
    """Hold the counts of the manifest against a plain recount, and against each other."""
    found = store.manifest
    assert found["num_rows"] == plain.num_rows
    assert found["num_users"] == len(plain.users)
    assert found["num_events"] == sum(map(len, plain.users.values()))
    assert found["num_items"] == num_items
    assert found["num_quarantined"] == plain.reasons.total()
    assert found["reasons"] == plain.reasons
    assert found["num_forgotten"] == plain.num_forgotten
    # A repeat of an event that was cut before counts as cut again: only its sum with the duplicates is fixed.
    left_out = plain.num_duplicates + plain.num_truncated
    assert found["num_duplicates"] + found["num_truncated"] == left_out
    assert plain.num_truncated or found["num_duplicates"] == plain.num_duplicates
    assert found["action_counts"] == plain.actions
    assert (found["first_minute"], found["last_minute"]) == (min(plain.minutes), max(plain.minutes))
    check_conservation(store)


def check_conservation(store: SequenceStore) -> None:
    """Rows of the log = events kept + all that were left out, and quarantine holds what is counted."""
    found = store.manifest
    left_out = ("num_quarantined", "num_duplicates", "num_truncated", "num_forgotten")
    assert found["num_rows"] == found["num_events"] + sum(found[name] for name in left_out)
    quarantine = [storage.read_parquet(storage.join(store.url, file["name"])) for file in found["quarantine"]]
    assert sum(table.num_rows for table in quarantine) == found["num_quarantined"]


def check_buckets(store: SequenceStore) -> None:
    """Hold what the manifest says of each bucket against the bucket, and every file it names against the folder."""
    for bucket in range(store.num_buckets):
        rows, entry = store.read_rows(bucket), store.manifest["buckets"][str(bucket)]
        assert (entry["num_users"], entry["num_events"]) == (rows.num_rows, sum(rows.column("num_events").to_pylist()))
    totals = Counter[str]()
    for entry in store.manifest["buckets"].values():
        totals.update({name: entry[name] for name in ("num_users", "num_events")})
    assert totals == Counter({name: store.manifest[name] for name in ("num_users", "num_events")})
    assert file_names(store.manifest) <= set(storage.list_tree(store.url))


def files_a_bucket(store: SequenceStore) -> list[int]:
    """Number of files of each bucket."""
    return [len(bucket_files(store.manifest["buckets"][str(bucket)])) for bucket in range(store.num_buckets)]


def files_with(place: str, ids: Iterable[str | int]) -> dict[str, list[str | int]]:
    """Files below a folder that hold one of the ids, each with those: in their bytes, or in a value of Parquet."""
    found: dict[str, list[str | int]] = {}
    for name in storage.list_tree(place):
        content = storage.read_bytes(storage.join(place, name))
        if content[:4] == b"PAR1":
            table = pq.read_table(pa.BufferReader(content))
            content += str(table.to_pydict()).encode("utf-8", "surrogateescape")
        held = [one for one in ids if any(trace in content for trace in _traces(one)) or str(one) in name]
        if held:
            found[name] = held
    return found


def _traces(one: str | int) -> list[bytes]:
    """What an id looks like in a file: its text, as JSON writes it too, or the bytes of a number."""
    if isinstance(one, int):
        return [str(one).encode(), one.to_bytes(8, "little", signed=True)]
    return [one.encode(), json.dumps(one)[1:-1].encode(), repr(one)[1:-1].encode()]


def simple_log(users: Sequence[Any], items: Sequence[Any], *, minute: int = 0, **columns: Any) -> pa.Table:
    """Views of users, one a minute from `minute` on, the items taking turns; columns may be given."""
    times = pa.array([START_US + (minute + row) * MINUTE_US for row in range(len(users))], pa.int64())
    table: dict[str, Any] = {
        "user_id": pa.array(users),
        "item_id": pa.array([items[row % len(items)] for row in range(len(users))]),
        "action": ["view"] * len(users),
        "event_time": times.cast(TIME_TYPE),
    }
    return pa.table(table | columns)
