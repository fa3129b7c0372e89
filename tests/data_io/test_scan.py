"""Scan: every file of a log gets its verdict from its footer, and is read, refused or known already."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.config import EventSettings, SettingsError
from data_io.events import read_fragment
from data_io.scan import EventLog, FileVerdict, scan_log
from data_io.schema import DataContractError

DEFAULTS = EventSettings()
ONE_BAD = EventSettings(max_bad_files=1)
NOON = datetime(2024, 1, 1, 12)

Spoil = Callable[[bytes], bytes]
SPOILS: dict[str, tuple[Spoil, str]] = {
    "0 bytes": (lambda _: b"", r"0 bytes: an upload that never finished\?"),
    "truncated": (lambda good: good[:-20], "magic bytes not found"),
    "bad magic": (lambda good: good[:-1] + b"?", "magic bytes not found"),
    "cut to its end": (lambda good: good[-12:], "smaller than the size reported by footer"),
    "a torn footer": (lambda good: good[:-40] + b"\xff" * 32 + good[-8:], "."),
    "text": (lambda _: b"user_id,item_id\nu,i\n" * 20, "magic bytes not found"),
    "3 bytes": (lambda _: b"PAR", "3 bytes"),
}
COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "no item_id": ({"item_id": None}, "no column item_id for item_id; it has user_id, action, event_time; set "),
    "float ids": ({"user_id": [1.0] * 6}, r"column user_id \(user_id\) has type double, expected string or int; cast"),
    "decimal ids": ({"item_id": [Decimal(1)] * 6}, "has type decimal128.*, expected string or int"),
    "half float ids": ({"user_id": pa.array([1.0] * 6, pa.float16())}, "has type halffloat, expected string or int"),
    "boolean ids": ({"item_id": [True] * 6}, "has type bool, expected string or int"),
    "bytes for ids": ({"item_id": [b"i"] * 6}, "has type binary, expected string or int"),
    "lists of ids": ({"item_id": [["i"]] * 6}, "has type list<.*>, expected string or int"),
    "a struct": ({"user_id": [{"id": 1}] * 6}, "has type struct<.*>, expected string or int"),
    "numbered actions": ({"action": [1] * 6}, "has type int64, expected string"),
    "a date": ({"event_time": [NOON.date()] * 6}, "has type date32.*, expected timestamp"),
    "times as text": ({"event_time": ["2024-01-01"] * 6}, "has type string, expected timestamp"),
    "times as numbers": ({"event_time": [1_700_000_000] * 6}, "has type int64, expected timestamp"),
    "prices as text": ({"price": ["9.99"] * 6}, "has type string, expected float or int"),
    "other ids": ({"user_id": list(range(6))}, r"user_id is int, but string in most files, such as .*part-00000"),
    "one more column": ({"price": [1.0] * 6}, "price is float, but absent in most files, such as .*part-00000"),
}
HARMLESS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int32 and int64": ({"user_id": pa.array([1] * 6, pa.int32())}, {"user_id": pa.array([1] * 6, pa.int64())}),
    "dictionary and plain": ({"item_id": pa.array(["i"] * 6).dictionary_encode()}, {"item_id": ["i"] * 6}),
    "large and small texts": ({"item_id": pa.array(["i"] * 6, pa.large_string())}, {"item_id": ["i"] * 6}),
    "milli- and nanoseconds": (
        {"event_time": pa.array([NOON] * 6, pa.timestamp("ms"))},
        {"event_time": pa.array([NOON] * 6, pa.timestamp("ns"))},
    ),
    "zones": (
        {"event_time": pa.array([NOON.replace(tzinfo=UTC)] * 6, pa.timestamp("us", tz="Asia/Tokyo"))},
        {"event_time": pa.array([NOON] * 6, pa.timestamp("us"))},
    ),
    "whole and broken prices": ({"price": [1] * 6}, {"price": [1.0] * 6}),
    "columns of its own": ({}, {"other": [[1]] * 6}),
}


def spoil_part(folder: Path, number: int, spoil: Spoil) -> None:
    path = folder / f"part-{number:05d}.parquet"
    path.write_bytes(spoil(path.read_bytes()))


def names_read(log: EventLog) -> list[str]:
    return sorted({Path(fragment.file).name for fragment in log.fragments})


def read_all(log: EventLog, options: EventSettings = DEFAULTS) -> pa.Table:
    return pa.concat_tables([read_fragment(fragment, log.kinds, options) for fragment in log.fragments])


def test_fragments_cover_the_log_in_name_order(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(), make_events(num_users=1), rows_per_group=4)
    log = scan_log(url, DEFAULTS)
    sizes = [(tmp_path / f"part-0000{part}.parquet").stat().st_size for part in range(2)]
    places = [(Path(f.file).name, f.file_bytes, f.row_group, f.first_row, f.num_rows) for f in log.fragments]
    assert places == [
        ("part-00000.parquet", sizes[0], 0, 0, 4),
        ("part-00000.parquet", sizes[0], 1, 4, 2),
        ("part-00001.parquet", sizes[1], 0, 0, 3),
    ]
    assert log.num_rows == 9
    assert log.inputs == ((f"{url}/part-00000.parquet", sizes[0]), (f"{url}/part-00001.parquet", sizes[1]))
    assert log.refused == ()
    assert pickle.loads(pickle.dumps(log)) == log


def test_a_single_file_is_a_log_whatever_its_name(tmp_path: Path, make_events: Callable) -> None:
    """T12, wrong extension: in a folder such a file is no data, but it may be named."""
    pq.write_table(make_events(), tmp_path / "log.csv")
    assert scan_log(str(tmp_path / "log.csv"), DEFAULTS).num_rows == 6
    with pytest.raises(
        DataContractError, match=r"no Parquet file .* in this folder; it holds 1 other files, .*log\.csv"
    ):
        scan_log(str(tmp_path), DEFAULTS)


def test_a_folder_named_like_a_file_is_searched(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """T12, a directory named x.parquet."""
    write_log(tmp_path / "x.parquet", make_events(), make_events())
    assert scan_log(str(tmp_path), DEFAULTS).num_rows == 12
    assert scan_log(str(tmp_path / "x.parquet"), DEFAULTS).num_rows == 12


def test_no_such_path_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    """T18, an empty data set."""
    with pytest.raises(DataContractError, match="nowhere: no such file or folder"):
        scan_log(str(tmp_path / "nowhere"), DEFAULTS)
    with pytest.raises(DataContractError, match="no Parquet file"):
        scan_log(str(tmp_path), DEFAULTS)


def test_files_without_rows_break_nothing(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """T18, empty partitions: writers give their columns any type."""
    untyped = pa.table({"user_id": pa.array([], pa.null()), "item_id": pa.array([], pa.float64())})
    log = scan_log(write_log(tmp_path, untyped, make_events(), make_events().slice(0, 0)), DEFAULTS)
    assert names_read(log) == ["part-00001.parquet"]
    assert (len(log.inputs), log.refused, log.kinds["user_id"]) == (3, (), "string")


def test_a_log_without_rows_is_refused(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """T18, an empty data set."""
    with pytest.raises(DataContractError, match="the log has 1 Parquet files and not one row"):
        scan_log(write_log(tmp_path, make_events().slice(0, 0)), DEFAULTS)


@pytest.mark.parametrize(("spoil", "reason"), SPOILS.values(), ids=SPOILS)
def test_a_file_that_is_not_parquet_is_refused(
    tmp_path: Path, make_events: Callable, write_log: Callable, spoil: Spoil, reason: str
) -> None:
    """T12: named where none is allowed, and else counted and left out."""
    url = write_log(tmp_path, make_events(), make_events())
    spoil_part(tmp_path, 1, spoil)
    message = rf"^{url}/part-00001\.parquet: not a readable Parquet file \(.*{reason}.*\); replace or remove it$"
    with pytest.raises(DataContractError, match=message) as caught:
        scan_log(url, DEFAULTS)
    assert "\n" not in str(caught.value)
    log = scan_log(url, ONE_BAD)
    assert (names_read(log), len(log.inputs)) == (["part-00000.parquet"], 1)
    size = (tmp_path / "part-00001.parquet").stat().st_size
    problem = str(caught.value).removeprefix(f"{url}/part-00001.parquet: ")
    assert log.refused == (FileVerdict(file=f"{url}/part-00001.parquet", num_bytes=size, num_rows=0, problem=problem),)


@pytest.mark.parametrize(("columns", "problem"), COLUMNS.values(), ids=COLUMNS)
def test_a_file_with_other_columns_is_refused(
    tmp_path: Path, make_events: Callable, write_log: Callable, columns: dict[str, Any], problem: str
) -> None:
    """T13: named where none is allowed, and else counted and left out; never cast between families."""
    url = write_log(tmp_path, make_events(), make_events(**columns))
    with pytest.raises(DataContractError, match=rf"^{url}/part-00001\.parquet: .*{problem}"):
        scan_log(url, DEFAULTS)
    log = scan_log(url, ONE_BAD)
    assert names_read(log) == ["part-00000.parquet"]
    assert [(Path(verdict.file).name, verdict.num_rows) for verdict in log.refused] == [("part-00001.parquet", 6)]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """T13: which of the two is meant cannot be told."""
    events = make_events(price=[1.0] * 6)
    url = write_log(tmp_path, events.rename_columns(["user_id", "user_id", "action", "event_time", "item_id"]))
    with pytest.raises(DataContractError, match=r"column user_id \(user_id\) stands 2 times; rename all but one"):
        scan_log(url, DEFAULTS)


@pytest.mark.parametrize(("first", "second"), HARMLESS.values(), ids=HARMLESS)
def test_types_of_one_family_agree(
    tmp_path: Path, make_events: Callable, write_log: Callable, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """T13: safe casts, whichever file comes first."""
    here, there = make_events(**first), make_events(**second)
    for number, tables in enumerate([(here, there), (there, here)]):
        events = read_all(scan_log(write_log(tmp_path / str(number), *tables), DEFAULTS))
        for name in first:
            values = events.column(name).to_pylist()
            assert values[:6] == values[6:]


def test_columns_that_may_not_be_null_agree_with_those_that_may(tmp_path: Path, make_events: Callable) -> None:
    """T13, nullable flip."""
    events = make_events()
    strict = pa.schema([field.with_nullable(False) for field in events.schema])
    pq.write_table(events, tmp_path / "a.parquet")
    pq.write_table(events.cast(strict), tmp_path / "b.parquet")
    assert read_all(scan_log(str(tmp_path), DEFAULTS)).num_rows == 12


def test_what_most_files_have_is_the_rule_not_the_first(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    """T13: one odd file ahead of the others is the one refused."""
    url = write_log(tmp_path, make_events(user_id=list(range(6))), make_events(), make_events())
    message = r"part-00000\.parquet: user_id is int, but string in most files, such as .*part-00001\.parquet; all files"
    with pytest.raises(DataContractError, match=message):
        scan_log(url, DEFAULTS)
    log = scan_log(url, ONE_BAD)
    assert (names_read(log), log.kinds["user_id"]) == (["part-00001.parquet", "part-00002.parquet"], "string")


def test_more_bad_files_than_allowed_are_named_with_their_verdicts(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    """T12 and T13, before any work."""
    url = write_log(tmp_path, *[make_events()] * 3, *[make_events(item_id=None)] * 22)
    spoil_part(tmp_path, 1, lambda _: b"")
    with pytest.raises(DataContractError) as caught:
        scan_log(url, ONE_BAD)
    head, *verdicts = str(caught.value).split("\n  ")
    assert head == (
        f"{url}: 23 of 25 files break the contract, more than events.max_bad_files 1; mend or remove them, or set "
        "events.max_bad_files to leave them out:"
    )
    assert len(verdicts) == 21
    assert verdicts[0].startswith(f"{url}/part-00001.parquet: not a readable Parquet file (0 bytes")
    assert verdicts[1].startswith(f"{url}/part-00003.parquet: no column item_id for item_id")
    assert verdicts[-1] == "and 3 more"


def test_a_log_of_bad_files_only_is_refused_however_many_are_allowed(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(), make_events(item_id=None))
    spoil_part(tmp_path, 0, lambda _: b"")
    with pytest.raises(DataContractError, match="2 of 2 files break the contract, so none is left to read; mend or"):
        scan_log(url, EventSettings(max_bad_files=9))


def test_a_file_that_vanished_is_an_error_and_no_verdict(
    tmp_path: Path, make_events: Callable, write_log: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T12, deleted between listing and scan: a file that cannot be reached may be whole, so it is never left out."""
    url = write_log(tmp_path, make_events())
    files = [*storage.find_parquet_files(url), f"{url}/gone.parquet"]
    monkeypatch.setattr(storage, "find_parquet_files", lambda _: files)
    with pytest.raises(DataContractError, match=r"gone\.parquet: cannot be reached \(.+\); see to the storage and run"):
        scan_log(url, EventSettings(max_bad_files=9))


def test_a_footer_of_many_row_groups_is_read_whole(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(num_users=400), rows_per_group=1)
    footer = int.from_bytes((tmp_path / "part-00000.parquet").read_bytes()[-8:-4], "little")
    assert footer > 1 << 16
    assert len(scan_log(url, DEFAULTS).fragments) == 1_200


def test_files_of_a_store_are_not_scanned_again(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(), make_events(), make_events())
    known = dict(scan_log(url, DEFAULTS).inputs)
    news = f"{url}/part-00002.parquet"
    spoil_part(tmp_path, 0, lambda good: b"?" * len(good))
    del known[news]
    log = scan_log(url, DEFAULTS, ingested=known)
    assert [file for file, _ in log.inputs] == [news]
    assert names_read(log) == ["part-00002.parquet"]


def test_nothing_new_is_a_log_without_fragments(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(), make_events())
    known = dict(scan_log(url, DEFAULTS).inputs)
    assert scan_log(url, DEFAULTS, ingested=known) == EventLog(fragments=(), kinds={}, carried={}, inputs=())
    (tmp_path / "part-00001.parquet").unlink()
    assert scan_log(url, DEFAULTS, ingested=known).num_rows == 0


def test_an_ingested_file_must_not_change(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """T12, replaced after it was read."""
    url = write_log(tmp_path, make_events())
    known = dict(scan_log(url, DEFAULTS).inputs)
    spoil_part(tmp_path, 0, lambda good: good + b"\0")
    size = known[f"{url}/part-00000.parquet"]
    message = (
        rf"part-00000\.parquet: was ingested with {size:,} bytes and now has {size + 1:,}; files of a log must not"
    )
    with pytest.raises(DataContractError, match=message):
        scan_log(url, ONE_BAD, ingested=known)


def test_nothing_ingested_is_as_if_it_were_not_said(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    with pytest.raises(DataContractError, match="not one row"):
        scan_log(write_log(tmp_path, make_events().slice(0, 0)), DEFAULTS, ingested={})


def test_a_mapped_optional_column_must_be_there(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events())
    with pytest.raises(DataContractError, match="no column amount for price"):
        scan_log(url, EventSettings(columns={"price": "amount"}))


def test_mapping_a_column_the_contract_does_not_know_is_refused(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events())
    with pytest.raises(SettingsError, match=r"events\.columns maps prize, .* they are .*event_id"):
        scan_log(url, EventSettings(columns={"prize": "amount"}))


def test_carried_columns_stand_in_one_order(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    size = [1] * 6
    columns = {"shop": size, "rating": size, "event_id": size, "temperature": size, "session_id": size}
    options = EventSettings(features={"temperature": "numeric", "shop": "categorical"})
    log = scan_log(write_log(tmp_path, make_events(**columns)), options)
    assert list(log.carried.items()) == [
        ("session_id", "string"),
        ("rating", "float"),
        ("temperature", "float"),
        ("shop", "string"),
    ]


@pytest.mark.parametrize(
    ("declared", "values", "problem"),
    [
        (
            "categorical",
            None,
            "no column device for device; it has .*; add the column to the file or take it out of ev",
        ),
        ("categorical", [1.5] * 6, "has type double, expected string or int"),
        ("categorical", [["phone"]] * 6, "has type list.*, expected string or int"),
        ("numeric", ["1.5"] * 6, "has type string, expected float or int"),
        ("numeric", [True] * 6, "has type bool, expected float or int"),
    ],
)
def test_a_declared_feature_must_be_in_every_file(
    tmp_path: Path, make_events: Callable, write_log: Callable, declared: Any, values: list[Any] | None, problem: str
) -> None:
    """T13 for declared features."""
    good = ["phone"] * 6 if declared == "categorical" else [1] * 6
    url = write_log(tmp_path, make_events(device=good), make_events(device=values))
    with pytest.raises(DataContractError, match=rf"part-00001\.parquet: .*{problem}"):
        scan_log(url, EventSettings(features={"device": declared}))


@pytest.mark.parametrize("name", ["user_id", "event_id", "price", "item_index", "num_events", "bucket", "source_row"])
def test_a_feature_may_not_have_a_name_that_is_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"events\.features declares {name}, a name of the contract or the store"):
        scan_log(str(tmp_path), EventSettings(features={name: "numeric"}))
