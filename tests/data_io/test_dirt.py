"""Dirt: what real logs hold besides events, written to Parquet, read, and parted from the good rows.

T-numbers are faults that the project lists and must survive.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.config import EventSettings
from data_io.events import EMPTY_IDS, part_events, quarantine_table, read_fragment
from data_io.scan import Fragment, scan_log
from data_io.schema import DataContractError

EARLIEST, LATEST = datetime(2000, 1, 1), datetime(2030, 1, 1)
OPTIONS = EventSettings(earliest_time=EARLIEST, max_string_bytes=20)
NOON = datetime(2024, 1, 1, 12)
NOON_S = int(NOON.replace(tzinfo=UTC).timestamp())
END_OF_TIME = (2**63 - 1) // 10**6 * 10**6
"""The last second that fits 64 bits of microseconds: what lies in it or beyond can only be of another unit."""
BROKEN = b"\xff\xfe"


def texts(values: list[str | bytes | None]) -> pa.Array:
    """Text as a careless writer leaves it: whatever bytes there were."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return pa.array(raw, pa.binary()).view(pa.string())


def ticks(values: Sequence[int | None], unit: str) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp(unit))


def only_fragment(
    file: Path, table: pa.Table, options: EventSettings = OPTIONS, **writing: Any
) -> tuple[Fragment, dict]:
    pq.write_table(table, file, **writing)
    log = scan_log(str(file), options)
    return log.fragments[0], log.kinds


def sift(file: Path, table: pa.Table, options: EventSettings = OPTIONS, **writing: Any) -> tuple[pa.Table, pa.Table]:
    """Good and quarantined rows of a log that is one row group."""
    fragment, kinds = only_fragment(file, table, options, **writing)
    good, bad = part_events(read_fragment(fragment, kinds, options), options, LATEST)
    return good, quarantine_table(bad, fragment)


def reasons(file: Path, table: pa.Table, options: EventSettings = OPTIONS) -> list[str | None]:
    """Why each row is quarantined; None for a good one."""
    good, bad = sift(file, table, options)
    found = dict.fromkeys(good.column("source_row").to_pylist()) | dict(
        zip(bad.column("source_row").to_pylist(), bad.column("reason").to_pylist(), strict=True)
    )
    assert good.num_rows + bad.num_rows == table.num_rows
    return [found[row] for row in range(table.num_rows)]


def test_t12_a_file_deleted_after_the_scan_is_named(tmp_path: Path, make_events: Callable) -> None:
    fragment, kinds = only_fragment(tmp_path / "log.parquet", make_events())
    (tmp_path / "log.parquet").unlink()
    message = r"log\.parquet, row group 0: the file is gone since it was scanned; restore it, or build anew"
    with pytest.raises(DataContractError, match=message):
        read_fragment(fragment, kinds, OPTIONS)


def test_t12_a_file_replaced_after_the_scan_is_named(tmp_path: Path, make_events: Callable) -> None:
    file = tmp_path / "log.parquet"
    fragment, kinds = only_fragment(file, make_events())
    for table, problem in [
        (make_events(num_users=9), r"[\d,]+ bytes when it was scanned and now [\d,]+; files of a log must not change"),
        (make_events(num_users=1), "6 rows when it was scanned and now 3;"),
        (make_events(user_id=None), r"cannot be read under the contract \(.*user_id.* does not exist"),
    ]:
        pq.write_table(table, file)
        same_size = fragment if "bytes" in problem else replace(fragment, file_bytes=file.stat().st_size)
        with pytest.raises(DataContractError, match=rf"log\.parquet, row group 0: {problem}"):
            read_fragment(same_size, kinds, OPTIONS)
    with pytest.raises(DataContractError, match=r"log\.parquet, row group 7: 6 rows when it was scanned and now 0;"):
        read_fragment(replace(same_size, row_group=7), kinds, OPTIONS)


def test_t12_flipped_bits_are_found_by_page_checksums(tmp_path: Path, make_events: Callable) -> None:
    """A bit in every byte before the footer: an error with file and row group, or rows as they were."""
    file = tmp_path / "log.parquet"
    fragment, kinds = only_fragment(file, make_events(), write_page_checksum=True, compression="zstd")
    whole = read_fragment(fragment, kinds, OPTIONS)
    content = file.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    caught = 0
    for place in range(4, len(content) - footer):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            assert read_fragment(fragment, kinds, OPTIONS).equals(whole)
        except DataContractError as error:
            assert f"{file}, row group 0: cannot be read under the contract (" in str(error)  # noqa: PT017
            caught += 1
    assert caught > (len(content) - footer) / 2


@pytest.mark.parametrize("empty", [None, "", " ", "\t\n", "\u00a0\u3000", "None", "nan", " NaN ", "NULL", "<na>"])
def test_t14_ids_that_stand_for_nothing_are_quarantined(
    tmp_path: Path, make_events: Callable, empty: str | None
) -> None:
    ids = ["a", empty, "b"]
    events = make_events(num_users=3, user_id=[*ids, *"uuuuuu"], item_id=[*"iii", *ids, *"iii"], action=None)
    events = events.append_column("action", pa.array([*["view"] * 6, *ids]))
    empty_at = {1: "empty_user_id", 4: "empty_item_id", 7: "empty_action"}
    assert reasons(tmp_path / "log.parquet", events) == [empty_at.get(row) for row in range(9)]


def test_t14_one_null_in_one_file_splits_no_user(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    """F1: with a null beside it, an integer id stays the same integer."""
    user = 2**53 + 1
    url = write_log(tmp_path, make_events(user_id=[user] * 6), make_events(user_id=[user, None, *[user] * 4]))
    log = scan_log(url, OPTIONS)
    parted = [part_events(read_fragment(part, log.kinds, OPTIONS), OPTIONS, LATEST) for part in log.fragments]
    assert pa.concat_tables([good for good, _ in parted]).column("user_id").to_pylist() == [user] * 11
    assert pa.concat_tables([bad for _, bad in parted]).column("reason").to_pylist() == ["empty_user_id"]


TIMES: dict[str, tuple[datetime | int | None, str | None]] = {
    "noon": (NOON, None),
    "none": (None, "empty_event_time"),
    "epoch 0": (0, "event_time_too_early"),
    "negative": (-1, "event_time_too_early"),
    "far negative": (-(2**62), "event_time_too_early"),
    "a year ahead": (LATEST + timedelta(days=365), "event_time_too_late"),
    "just too early": (EARLIEST - timedelta(microseconds=1), "event_time_too_early"),
    "just early enough": (EARLIEST, None),
    "just late enough": (LATEST, None),
    "just too late": (LATEST + timedelta(microseconds=1), "event_time_too_late"),
    "seconds": (NOON_S, "event_time_wrong_unit"),
    "milliseconds": (NOON_S * 10**3, "event_time_wrong_unit"),
    "nanoseconds": (NOON_S * 10**9, "event_time_wrong_unit"),
}


@pytest.mark.parametrize(("moment", "reason"), TIMES.values(), ids=TIMES)
def test_t16_times_outside_the_bounds_are_quarantined(
    tmp_path: Path, make_events: Callable, moment: datetime | int | None, reason: str | None
) -> None:
    time = pa.array([moment], pa.timestamp("us")) if isinstance(moment, datetime) else ticks([moment], "us")
    assert reasons(tmp_path / "log.parquet", make_events(1, 1, event_time=time)) == [reason]


@pytest.mark.parametrize("power", [0, 6, 9], ids=["seconds", "microseconds", "nanoseconds"])
def test_t16_ticks_taken_for_milliseconds_are_told(tmp_path: Path, make_events: Callable, power: int) -> None:
    """Nanoseconds taken for milliseconds do not fit 64 bits of microseconds."""
    events = make_events(1, 1, event_time=ticks([NOON_S * 10**power], "ms"))
    assert reasons(tmp_path / "log.parquet", events) == ["event_time_wrong_unit"]


def test_t16_no_tick_of_any_unit_wraps_round_into_the_valid_range(tmp_path: Path, make_events: Callable) -> None:
    """The ticks that 64-bit arithmetic would carry to noon: multiples of 2**64 away from it."""
    noon_us = NOON_S * 10**6
    wrapping = [(noon_us + lap * 2**64) // 1_000 for lap in range(-400, 401) if lap]
    times = [tick for tick in wrapping if abs(tick) < 2**63][:300]
    assert len(times) == 300
    table = make_events(100, 3, event_time=ticks(times, "ms"))
    assert set(reasons(tmp_path / "log.parquet", table)) <= {"event_time_wrong_unit", "event_time_too_early"}


def test_t16_old_timestamps_do_not_wrap_round_either(tmp_path: Path, make_events: Callable) -> None:
    """INT96, read as nanoseconds, would carry the year 2608 to 2023."""
    times = pa.array([datetime(2608, 1, 1), NOON, datetime(9999, 1, 1)], pa.timestamp("us"))
    fragment, kinds = only_fragment(
        tmp_path / "log.parquet", make_events(1, 3, event_time=times), use_deprecated_int96_timestamps=True
    )
    good, bad = part_events(read_fragment(fragment, kinds, OPTIONS), OPTIONS, LATEST)
    assert good.column("event_time").to_pylist() == [NOON.replace(tzinfo=UTC)]
    assert bad.column("reason").to_pylist() == ["event_time_too_late"] * 2


def test_t16_bounds_near_1970_do_not_turn_every_late_time_into_a_wrong_unit(
    tmp_path: Path, make_events: Callable
) -> None:
    options = EventSettings(earliest_time=datetime(1960, 1, 1))
    times = pa.array([LATEST + timedelta(days=1), datetime(1959, 1, 1), datetime(1970, 1, 2)], pa.timestamp("us"))
    found = reasons(tmp_path / "log.parquet", make_events(1, 3, event_time=times), options)
    assert found == ["event_time_too_late", "event_time_too_early", None]


def test_t16_events_out_of_order_stay_where_they_are(tmp_path: Path, make_events: Callable) -> None:
    """Order is made when a bucket is merged; until then the place in the file is what equal times are told apart by."""
    times = pa.array([NOON, NOON - timedelta(days=1), NOON, NOON], pa.timestamp("us"))
    good, _ = sift(tmp_path / "log.parquet", make_events(1, 4, event_time=times))
    assert good.column("source_row").to_pylist() == [0, 1, 2, 3]


def test_t18_a_log_all_bad_is_all_quarantined(tmp_path: Path, make_events: Callable) -> None:
    good, bad = sift(tmp_path / "log.parquet", make_events(user_id=pa.array([None] * 6, pa.string())))
    assert good.num_rows == 0
    assert bad.column("reason").to_pylist() == ["empty_user_id"] * 6
    assert set(bad.column("source_file").to_pylist()) == {str(tmp_path / "log.parquet")}


STRANGE = {
    "NFC": "é",
    "NFD": "e\u0301",
    "right to left": "מוצר\u202eabc",
    "emoji": "👩‍👩‍👧",
    "zero width": "a\u200bb",
    "zero width only": "\u200b",
    "NUL": "a\0b",
    "NUL only": "\0",
    "path": "a=b/../c",
    "escaped path": "%2F",
    "root": "/etc/passwd",
    "line": "a\nb",
    "case": "É",
    "blank": " é",
    "byte order mark": "\ufeffé",
}


def test_t20_strange_ids_pass_unchanged_and_distinct(tmp_path: Path, make_events: Callable) -> None:
    ids = list(STRANGE.values())
    names = dict.fromkeys(("user_id", "item_id", "session_id", "event_id", "query"), ids)
    good, bad = sift(tmp_path / "log.parquet", make_events(1, len(ids), **names))
    assert bad.num_rows == 0
    assert all(good.column(name).to_pylist() == ids for name in names)
    assert len(good.column("user_id").unique()) == len(ids)


@pytest.mark.parametrize("column", ["user_id", "item_id", "action", "session_id", "event_id", "query", "device"])
def test_t20_texts_of_too_many_bytes_are_quarantined(tmp_path: Path, make_events: Callable, column: str) -> None:
    """Bytes count, not letters; a query may have ten times as many."""
    times = 10 if column == "query" else 1
    columns = {"device": ["phone"] * 5} | {
        column: ["a" * 20 * times, "é" * 10 * times, "é" * 11 * times, "x" * 10_000, "i"]
    }
    options = OPTIONS.model_copy(update={"features": {"device": "categorical"}})
    found = reasons(tmp_path / "log.parquet", make_events(1, 5, **columns), options)
    assert found == [None, None, f"{column}_too_long", f"{column}_too_long", None]


@pytest.mark.parametrize("column", ["user_id", "item_id", "action", "session_id", "event_id", "query", "device"])
@pytest.mark.parametrize("broken", [BROKEN, b"a\x80", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_t20_bytes_that_are_not_utf8_are_quarantined_as_null(
    tmp_path: Path, make_events: Callable, column: str, broken: bytes
) -> None:
    """The second half of a letter in the next row does not make the first half whole."""
    columns = {"device": ["phone"] * 5} | {column: texts(["ok", broken, b"\xa9", None, "é"])}
    options = OPTIONS.model_copy(update={"features": {"device": "categorical"}})
    good, bad = sift(tmp_path / "log.parquet", make_events(1, 5, **columns), options)
    marked = dict(zip(bad.column("source_row").to_pylist(), bad.column("reason").to_pylist(), strict=True))
    required = column in ("user_id", "item_id", "action")
    assert marked == {1: "invalid_utf8", 2: "invalid_utf8"} | ({3: f"empty_{column}"} if required else {})
    assert bad.column(column).to_pylist()[:2] == [None, None]
    good.validate(full=True)
    bad.validate(full=True)
    assert good.column(column).to_pylist() == ["ok", "é"] if required else ["ok", None, "é"]


IDS = [None, *EMPTY_IDS, " NaN", "u", "é", "e\u0301", "x" * 20, "x" * 21, "a\0", BROKEN, b"\xc3"]
ACTIONS = ["view", "buy", "search", "search", "", None, "VIEW", BROKEN, "v" * 21]
MOMENTS = [NOON_S * 10**power for power in range(0, 10, 3)]
DIRTY_TICKS = [None, *MOMENTS, *MOMENTS, 0, -1, -(2**63), 2**63 - 1, 2**53, -NOON_S * 10**9]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(IDS),
        st.sampled_from(IDS),
        st.sampled_from(ACTIONS),
        st.sampled_from(DIRTY_TICKS) | st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([None, "q" * 200, "q" * 201, BROKEN]),
        st.sampled_from([None, "", "nan", "e", "e" * 21, b"\x80"]),
    ),
    min_size=1,
    max_size=12,
)


def is_empty(value: str | bytes | None) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in EMPTY_IDS)


def reason_of(row: tuple[Any, ...], unit: str, options: EventSettings) -> str | None:
    """What `part_events` says of a row, one row at a time and in Python's integers without end."""
    user, item, action, tick, query, event = row
    sizes = {"user_id": user, "item_id": item, "action": action, "query": query, "event_id": event}
    if any(isinstance(value, bytes) for value in sizes.values()):
        return "invalid_utf8"
    if is_empty(user):
        return "empty_user_id"
    if is_empty(action):
        return "empty_action"
    if is_empty(item) and action != "search":
        return "empty_item_id"
    for name, value in sizes.items():
        if len((value or "").encode()) > options.max_string_bytes * (10 if name == "query" else 1):
            return f"{name}_too_long"
    if options.allowed_actions is not None and action not in options.allowed_actions:
        return "unknown_action"
    return time_reason(tick, 1_000 if unit == "ms" else 1)


def time_reason(tick: int | None, factor: int) -> str | None:
    if tick is None:
        return "empty_event_time"
    first, last = (int(moment.replace(tzinfo=UTC).timestamp()) * 10**6 for moment in (EARLIEST, LATEST))
    time = tick * factor
    if first <= time <= last:
        return None
    fits = [first <= time * unit <= last or first * unit <= time <= last * unit for unit in (10**3, 10**6)]
    if any(fits) or time >= END_OF_TIME:
        return "event_time_wrong_unit"
    return "event_time_too_early" if time < first else "event_time_too_late"


@given(rows=ROWS, unit=st.sampled_from(["ms", "us"]), actions=st.sampled_from([None, ["view", "search"]]))
@settings(max_examples=150, deadline=None)
def test_any_dirt_is_parted_as_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], unit: str, actions: list[str] | None
) -> None:
    """T14, T16, T20: the reasons of a naive reference, no row lost or doubled, and good rows as they were."""
    user, item, action, tick, query, event = (list(column) for column in zip(*rows, strict=True))
    options = EventSettings(earliest_time=EARLIEST, max_string_bytes=20, allowed_actions=actions)
    table = pa.table(
        {
            "user_id": texts(user),
            "item_id": texts(item),
            "action": texts(action),
            "event_time": ticks(tick, unit),
            "query": texts(query),
            "event_id": texts(event),
        }
    )
    file = tmp_path_factory.getbasetemp() / "dirt.parquet"
    assert reasons(file, table, options) == [reason_of(row, unit, options) for row in rows]
    good, bad = sift(file, table, options)
    bad.validate(full=True)
    kept = [rows[place] for place in good.column("source_row").to_pylist()]
    assert good.column("user_id").to_pylist() == [row[0] for row in kept]
    assert good.column("item_id").to_pylist() == [None if is_empty(row[1]) else row[1] for row in kept]
    assert good.column("event_id").to_pylist() == [None if is_empty(row[5]) else row[5] for row in kept]
    assert good.column("query").to_pylist() == [row[4] for row in kept]
