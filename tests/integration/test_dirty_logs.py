"""A log with all that real logs hold besides events, from files to the report: counted, put aside, named."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences
from ray_jobs.config import Settings
from tests.integration.plain import MINUTE_US, START_US
from tests.integration.stores import (
    change,
    check_buckets,
    check_conservation,
    files_with,
    make_settings,
    simple_log,
    users_of,
    write_batch,
)

LATEST = datetime(2030, 1, 1, tzinfo=UTC)
ITEM_NAMES = ["a/../b", "p=1/%2F", "\u202eevil", "🛒", "e\u0301", "é"]
HOSTILE = ["../../etc/passwd", "bucket=00001", "user\x00nul", "👤", "e\u0301", "é", "a=b/../c%2F", " spaced ", "x" * 60]
GOOD = [f"odd-{number}@example.org" for number in range(8)]
LONG = "much-too-long-" * 8
NOW_S = START_US // 10**6

BAD: dict[str, list[dict[str, Any]]] = {
    "empty_user_id": [{"user_id": one} for one in (None, "", " \t", "NaN", "null")],
    "empty_item_id": [{"item_id": None}, {"item_id": "None"}],
    "empty_action": [{"action": None}, {"action": " "}],
    "unknown_action": [{"action": "teleport"}],
    "user_id_too_long": [{"user_id": LONG}],
    "item_id_too_long": [{"item_id": LONG}],
    "query_too_long": [{"query": LONG * 10}],
    "invalid_utf8": [{"user_id": b"odd-\xff\xfe"}, {"query": b"caf\xe9"}],
    "empty_event_time": [{"event_time": None}],
    "event_time_wrong_unit": [{"event_time": NOW_S}, {"event_time": NOW_S * 1000}],
    "event_time_too_early": [{"event_time": START_US - 40 * 365 * 86_400 * 10**6}],
    "event_time_too_late": [{"event_time": int(LATEST.timestamp()) * 10**6 + 1}],
}
"""Rows with one fault, by the reason they must get; the rest of them is good."""


def dirty_rows() -> list[tuple[dict[str, Any], str]]:
    """Bad rows with their reasons, in file order."""
    good = {"user_id": "odd-bad-rows", "item_id": "é", "action": "view", "event_time": START_US, "query": "words"}
    return [(good | fault, reason) for reason, faults in BAD.items() for fault in faults]


def dirty_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table as a careless writer leaves it: texts of whatever bytes there were."""
    texts = {
        name: pa.array([_bytes(row[name]) for row in rows], pa.binary()).view(pa.string())
        for name in ("user_id", "item_id", "action", "query")
    }
    times = pa.array([row["event_time"] for row in rows], pa.int64()).cast(pa.timestamp("us"))
    return pa.table(texts | {"event_time": times})


def _bytes(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def with_query(log: pa.Table) -> pa.Table:
    return log.append_column("query", pa.array([f"secret words of {user}" for user in log["user_id"].to_pylist()]))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a run with a dirty log: 54 good rows and 3 duplicates around bad rows, and a file that is none."""
    events = {
        "max_bad_share": 0.5,
        "max_bad_files": 1,
        "max_string_bytes": 64,
        "latest_time": LATEST.replace(tzinfo=None),
        "allowed_actions": ["view", "search"],
    }
    settings = make_settings(tmp_path, events=events)
    good = with_query(simple_log([*GOOD, *HOSTILE] * 3 + ["odd-x"] * 3, ITEM_NAMES))
    write_batch(settings, "00", good)
    write_batch(settings, "01", dirty_table([row for row, _ in dirty_rows()]), rows_per_group=7)
    write_batch(settings, "02", pa.concat_tables([good.slice(0, 3), good.slice(0, 0)]))
    (tmp_path / "events/03.parquet").write_bytes(b"PAR1 that never was")
    return settings


def quarantine_of(store: SequenceStore) -> list[dict[str, Any]]:
    files = [storage.join(store.url, file["name"]) for file in store.manifest["quarantine"]]
    return [row for file in files for row in storage.read_parquet(file).to_pylist()]


@pytest.mark.usefixtures("ray_cluster")
def test_a_dirty_log_becomes_a_store_a_quarantine_and_a_report(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_sequences.run(settings)
    said = capsys.readouterr().out
    expected = dirty_rows()
    manifest = store.manifest
    assert manifest["reasons"] == Counter(reason for _, reason in expected)
    assert (manifest["num_rows"], manifest["num_events"], manifest["num_duplicates"]) == (57 + len(expected), 54, 3)
    check_conservation(store)
    check_buckets(store)
    assert f"{57 + len(expected)} rows = 54 kept + {len(expected)} quarantined + 3 duplicates + 0 truncated" in said

    found = {(row["source_file"], row["source_row"]): row["reason"] for row in quarantine_of(store)}
    place = str(tmp_path / "events/01.parquet")
    assert found == {(place, row): reason for row, (_, reason) in enumerate(expected)}

    (refused,) = manifest["refused_files"]
    assert refused["file"] == str(tmp_path / "events/03.parquet")
    assert "not a readable Parquet file" in refused["problem"]
    assert f"left out: {refused['file']}: not a readable Parquet file" in said
    assert not any("03.parquet" in file for file in store.read_inputs())

    events = users_of(store)
    assert set(events) == {*GOOD, *HOSTILE, "odd-x"}, "ids come through byte by byte"
    assert set(store.vocabulary.item_ids.to_pylist()) == set(ITEM_NAMES)
    assert sorted(event[2] for user in events.values() for event in user) == [
        START_US + minute * MINUTE_US for minute in range(54)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"events", "store"}, "no id led out of the store"


@pytest.mark.usefixtures("ray_cluster")
def test_the_report_tells_what_was_found_and_names_nobody(settings: Settings, tmp_path: Path) -> None:
    store = build_sequences.run(settings)
    report = json.loads((tmp_path / "store/quality_report.json").read_text())
    assert report["num_quarantined"] == len(dirty_rows())
    assert report["reasons"] == store.manifest["reasons"]
    texts = [finding["text"] for finding in report["findings"]]
    assert any("invalid_utf8" in text or "UTF-8" in text for text in texts), texts
    assert any("unit" in text for text in texts), texts
    page = (tmp_path / "store/quality_report.html").read_text()
    assert "<svg" in page
    shown = files_with(str(tmp_path / "store"), [*GOOD, "odd-x", "odd-bad-rows", "secret words", "evil", LONG])
    assert {name for name in shown if name.endswith((".json", ".html"))} == set()


@pytest.mark.usefixtures("on_threads")
def test_the_report_lists_files_that_were_left_out(settings: Settings, tmp_path: Path) -> None:
    build_sequences.run(settings)
    report = json.loads((tmp_path / "store/quality_report.json").read_text())
    assert [file["file"] for file in report["files_left_out"]] == [str(tmp_path / "events/03.parquet")]
    assert any("1 file is left out" in finding["text"] for finding in report["findings"])


@pytest.mark.usefixtures("on_threads")
def test_a_dirty_batch_is_added_to_what_was_counted(settings: Settings) -> None:
    store = build_sequences.run(settings)
    rows = [row for row, _ in dirty_rows()]
    write_batch(settings, "04", with_query(simple_log(GOOD * 4, ["é"], minute=500)))
    write_batch(settings, "05", dirty_table(rows))
    grown = append.run(settings)
    assert grown.manifest["num_rows"] == store.manifest["num_rows"] + 32 + len(rows)
    assert grown.manifest["reasons"] == Counter(reason for _, reason in dirty_rows() * 2)
    assert len(quarantine_of(grown)) == 2 * len(rows)
    check_conservation(grown)
    check_buckets(grown)
    (refused,) = grown.manifest["refused_files"]
    assert refused["file"].endswith("03.parquet"), "still not there"


@pytest.mark.usefixtures("on_threads")
def test_more_bad_files_than_allowed_are_refused_with_a_verdict_for_each(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "events/04.parquet").write_bytes(b"")
    numbers = simple_log([1, 2], ["é"]).append_column("query", pa.nulls(2, pa.string()))
    write_batch(settings, "05", numbers)
    with pytest.raises(DataContractError, match=r"3 of 6 files break the contract, more than events\.max_bad_files 1"):
        build_sequences.run(settings)
    with pytest.raises(DataContractError) as refused:
        build_sequences.run(change(settings, "events", max_bad_files=0))
    for file, problem in [
        ("03", "not a readable"),
        ("04", "not a readable Parquet file (0 bytes"),
        ("05", "user_id is int, but string in most"),
    ]:
        assert f"{tmp_path}/events/{file}.parquet: {problem}" in str(refused.value)
    assert not (tmp_path / "store").exists()
    store = build_sequences.run(change(settings, "events", max_bad_files=3))
    assert len(store.manifest["refused_files"]) == 3


@pytest.mark.usefixtures("on_threads")
def test_a_refused_build_may_be_repeated_with_another_share_or_a_mended_log(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"more than events\.max_bad_share"):
        build_sequences.run(change(settings, "events", max_bad_share=0.001))
    seen = [pq.read_table(file) for file in (tmp_path / "store/quarantine").glob("*.parquet")]
    assert sum(table.num_rows for table in seen) == len(dirty_rows()), "for a person to look at"
    with pytest.raises(DataContractError, match="nothing is published"):
        SequenceStore.open(settings.store_url)
    (tmp_path / "events/01.parquet").unlink()
    store = build_sequences.run(change(settings, "events", max_bad_share=0.001))
    assert store.manifest["num_quarantined"] == 0
    assert not list((tmp_path / "store").glob("quarantine/*"))
