"""Events: fragments read under the contract, and bad rows parted from good. Dirtier data: test_dirt.py."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data_io.config import EventSettings
from data_io.events import latest_time, part_events, quarantine_table, read_fragment
from data_io.scan import Fragment, scan_log
from data_io.schema import TIME_TYPE, DataContractError

DEFAULTS = EventSettings()
EARLIEST, LATEST = datetime(2000, 1, 1), datetime(2030, 1, 1)
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def part(events: pa.Table, **options: Any) -> tuple[pa.Table, pa.Table]:
    return part_events(events, EventSettings(earliest_time=EARLIEST, **options), LATEST)


def read_all(url: str, options: EventSettings = DEFAULTS) -> pa.Table:
    log = scan_log(url, options)
    return pa.concat_tables([read_fragment(fragment, log.kinds, options) for fragment in log.fragments])


def make_rows(**columns: Any) -> pa.Table:
    """Events as read_fragment gives them: a good row unless a column says otherwise."""
    size = max((len(values) for values in columns.values()), default=1)
    defaults = {
        "user_id": ["u"] * size,
        "item_id": ["i"] * size,
        "action": ["view"] * size,
        "event_time": [NOON] * size,
    }
    merged = defaults | columns
    table = pa.table(
        {
            name: values
            if isinstance(values, pa.Array)
            else pa.array(values, TIME_TYPE if name == "event_time" else pa.large_string())
            for name, values in merged.items()
        }
    )
    place = table.column_names.index("action")
    return table.set_column(place, "action", table.column("action").dictionary_encode())


def test_a_missing_action_column_names_the_default_too(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(action=None))
    with pytest.raises(DataContractError, match=r"no column action.* or set events\.default_action"):
        scan_log(url, DEFAULTS)
    events = read_all(url, EventSettings(default_action="view"))
    assert events.column("action").to_pylist() == ["view"] * 6


def test_a_row_group_torn_inside_is_named(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events())
    log = scan_log(url, DEFAULTS)
    path = tmp_path / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(DataContractError, match=r"part-00000\.parquet, row group 0: cannot be read under the contract"):
        read_fragment(log.fragments[0], log.kinds, DEFAULTS)


def test_an_id_too_large_for_int64_is_named(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(user_id=pa.array([2**64 - 1] * 6, pa.uint64())))
    with pytest.raises(
        DataContractError, match=r"row group 0: cannot be read under the contract .*18446744073709551615"
    ):
        read_all(url)


def test_mapped_columns_come_under_contract_names(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(user_id=None, customer=["c"] * 6, other=[1] * 6))
    events = read_all(url, EventSettings(columns={"user_id": "customer"}))
    assert sorted(events.column_names) == ["action", "event_time", "item_id", "user_id"]
    assert events.column("user_id").to_pylist() == ["c"] * 6


def test_types_become_canonical(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    events = make_events(
        user_id=pa.array([1] * 6, pa.int32()),
        item_id=pa.array(["a"] * 6).dictionary_encode(),
        session_id=pa.array([7] * 6),
        price=pa.array([Decimal("1.50")] * 6),
        quantity=pa.array([2] * 6),
    )
    log_events = read_all(write_log(tmp_path, events))
    assert {field.name: str(field.type) for field in log_events.schema} == {
        "user_id": "int64",
        "item_id": "large_string",
        "action": "dictionary<values=large_string, indices=int32, ordered=0>",
        "event_time": "timestamp[us, tz=UTC]",
        "session_id": "large_string",
        "price": "float",
        "quantity": "float",
    }
    assert log_events.column("price").to_pylist() == [1.5] * 6
    assert scan_log(str(tmp_path), DEFAULTS).carried == {"session_id": "string", "price": "float", "quantity": "float"}


@pytest.mark.parametrize(
    ("ids", "data_type"),
    [
        (pa.array([1, 2, None], pa.int32()), pa.int64()),
        (pa.array(["a", "b", None]), pa.large_string()),
        (pa.array(["a", "b", None]).dictionary_encode(), pa.large_string()),
    ],
    ids=["int", "text", "dictionary"],
)
def test_event_ids_are_read_and_do_not_enter_the_store(
    tmp_path: Path, make_events: Callable, write_log: Callable, ids: pa.Array, data_type: pa.DataType
) -> None:
    url = write_log(tmp_path, make_events(num_users=1, event_id=ids))
    log = scan_log(url, DEFAULTS)
    assert log.carried == {}
    events = read_all(url)
    assert events.schema.field("event_id").type == data_type
    good, bad = part(events)
    assert good.column("event_id").to_pylist() == ids.to_pylist()
    assert bad.num_rows == 0


def test_texts_that_stand_for_no_event_id_become_null() -> None:
    good, bad = part(make_rows(event_id=["e", "", "NaN", None]))
    assert good.column("event_id").to_pylist() == ["e", None, None, None]
    assert bad.num_rows == 0


def test_declared_features_come_as_text_or_number(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    options = EventSettings(
        features={"device": "categorical", "shop": "categorical", "heat": "numeric", "age": "numeric"}
    )
    columns = {
        "device": pa.array(["phone", None, "web"]).dictionary_encode(),
        "shop": pa.array([7, None, -1], pa.int8()),
        "heat": [Decimal("1.5"), None, Decimal("2.5")],
        "age": pa.array([1, None, 3], pa.uint8()),
    }
    events = read_all(write_log(tmp_path, make_events(num_users=1, **columns)), options)
    found = {name: (str(events.schema.field(name).type), events.column(name).to_pylist()) for name in columns}
    assert found == {
        "device": ("large_string", ["phone", None, "web"]),
        "shop": ("large_string", ["7", None, "-1"]),
        "heat": ("float", [1.5, None, 2.5]),
        "age": ("float", [1.0, None, 3.0]),
    }
    good, bad = part(events)
    assert good.drop_columns("source_row").equals(events)
    assert bad.num_rows == 0


@pytest.mark.parametrize("column", ["price", "quantity", "rating", "heat"])
def test_numbers_that_are_not_finite_become_null(
    tmp_path: Path, make_events: Callable, write_log: Callable, column: str
) -> None:
    options = EventSettings(features={} if column != "heat" else {"heat": "numeric"})
    numbers = [1.0, float("nan"), float("inf"), -1e300, None, -2.0]
    events = read_all(write_log(tmp_path, make_events(**{column: numbers})), options)
    assert events.column(column).to_pylist() == [1.0, None, None, None, None, -2.0]


@pytest.mark.parametrize(
    ("times", "data_type"),
    [
        ([datetime(2024, 1, 1, 12)], pa.timestamp("us")),
        ([datetime(2024, 1, 1, 12)], pa.timestamp("s")),
        ([datetime(2024, 1, 1, 12)], pa.timestamp("ns")),
        ([NOON], pa.timestamp("ms", tz="America/New_York")),
    ],
    ids=str,
)
def test_times_of_any_unit_and_zone_become_utc(
    tmp_path: Path, make_events: Callable, write_log: Callable, times: list[datetime], data_type: pa.DataType
) -> None:
    events = make_events(num_users=1, events_per_user=1, event_time=pa.array(times, data_type))
    assert read_all(write_log(tmp_path, events)).column("event_time").to_pylist() == [NOON]


@pytest.mark.parametrize("empty", [None, "", "  ", "nan", "NaN", " NULL ", "None", "<NA>"])
@pytest.mark.parametrize("column", ["user_id", "item_id", "action"])
def test_empty_string_ids_are_quarantined(column: str, empty: str | None) -> None:
    good, bad = part(make_rows(**{column: ["x", empty]}))
    assert good.column(column).to_pylist() == ["x"]
    assert bad.column("reason").to_pylist() == [f"empty_{column}"]
    assert bad.column("source_row").to_pylist() == [1]


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_empty_integer_ids_are_quarantined(column: str) -> None:
    good, bad = part(make_rows(**{column: pa.array([5, None, 0])}))
    assert good.column(column).to_pylist() == [5, 0]
    assert bad.column("reason").to_pylist() == [f"empty_{column}"]


def test_words_that_only_contain_an_empty_id_are_good() -> None:
    good, bad = part(make_rows(user_id=["nanna", "nonesuch", "null-1"]))
    assert (good.num_rows, bad.num_rows) == (3, 0)


@pytest.mark.parametrize("empty", [None, "", "NaN"])
def test_a_search_needs_no_item_and_its_item_becomes_null(empty: str | None) -> None:
    good, bad = part(make_rows(item_id=[empty, "x"], action=["search", "search"]))
    assert good.column("item_id").to_pylist() == [None, "x"]
    assert bad.num_rows == 0


def test_times_outside_the_bounds_are_quarantined() -> None:
    moments = [None, EARLIEST - timedelta(seconds=1), EARLIEST, LATEST, LATEST + timedelta(seconds=1)]
    times = [moment and moment.replace(tzinfo=UTC) for moment in moments]
    good, bad = part(make_rows(event_time=times))
    assert good.column("source_row").to_pylist() == [2, 3]
    assert bad.column("reason").to_pylist() == ["empty_event_time", "event_time_too_early", "event_time_too_late"]


def test_bounds_with_a_zone_mean_the_same_moment() -> None:
    early, late = (moment.replace(tzinfo=UTC).astimezone() for moment in (EARLIEST, LATEST))
    zoned = datetime.fromisoformat("2024-01-01T13:00:00+02:00")
    events = make_rows(event_time=[NOON, NOON - timedelta(hours=2)])
    assert part_events(events, EventSettings(earliest_time=early), late)[0].num_rows == 2
    assert part_events(events, EventSettings(earliest_time=zoned), late)[0].column("source_row").to_pylist() == [0]


def test_a_row_with_many_faults_is_quarantined_once_by_the_first() -> None:
    good, bad = part(make_rows(user_id=[""], item_id=[None], event_time=[None]))
    assert good.num_rows == 0
    assert bad.column("reason").to_pylist() == ["empty_user_id"]


def test_good_rows_come_back_as_they_were_read() -> None:
    events = make_rows(user_id=["a", "b"], session_id=["", None], item_id=["i", None], action=["view", "search"])
    good, bad = part(events)
    assert good.drop_columns("source_row").equals(events)
    assert good.schema.equals(part(make_rows(user_id=["a", ""], session_id=["", None]))[0].schema)
    assert bad.schema.equals(part(make_rows(user_id=["a", ""], session_id=["", None]))[1].schema)


def test_no_rows_are_parted_into_none() -> None:
    good, bad = part(make_rows(user_id=[]))
    assert (good.num_rows, bad.num_rows, bad.column_names[-1]) == (0, 0, "reason")


def test_actions_that_are_not_allowed_are_quarantined() -> None:
    good, bad = part(make_rows(action=["view", "View", "view ", "buy"]), allowed_actions=["view", "buy"])
    assert good.column("action").to_pylist() == ["view", "buy"]
    assert bad.column("reason").to_pylist() == ["unknown_action"] * 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"allowed_actions": []}, "at least 1 item"),
        ({"allowed_actions": ["buy"], "default_action": "view"}, r"default_action view is not among allowed_actions"),
        ({"earliest_time": NOON, "latest_time": EARLIEST}, "earliest_time .* must lie before latest_time"),
        ({"features": {"device": "text"}}, "Input should be 'categorical' or 'numeric'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EventSettings(**options)


def test_quarantined_rows_know_file_and_row() -> None:
    fragment = Fragment(file="log/part-3.parquet", file_bytes=9, row_group=1, first_row=100, num_rows=3)
    _, bad = part(make_rows(user_id=["a", "", ""]))
    table = quarantine_table(bad, fragment)
    assert table.column("source_row").to_pylist() == [101, 102]
    assert set(table.column("source_file").to_pylist()) == {"log/part-3.parquet"}
    assert table.column("reason").to_pylist() == ["empty_user_id"] * 2


def test_latest_time_is_as_set_or_a_day_after_now() -> None:
    assert latest_time(EventSettings(latest_time=LATEST)) == LATEST
    left = latest_time(DEFAULTS) - datetime.now(UTC).replace(tzinfo=None)
    assert timedelta(hours=23) < left <= timedelta(days=1)


@pytest.mark.parametrize("kind", ["plain", "dictionary", "doubled dictionary", "large", "no dictionary page"])
def test_actions_are_codes_of_different_names_however_they_were_written(
    tmp_path: Path, make_events: Callable, kind: str
) -> None:
    names = ["view", "buy", "view", None, "é", "view"]
    codes = pa.array([0, 1, 0, None, 3, 2], pa.int32())
    actions = {
        "plain": pa.array(names),
        "large": pa.array(names, pa.large_string()),
        "no dictionary page": pa.array(names),
        "dictionary": pa.array(names).dictionary_encode(),
        "doubled dictionary": pa.DictionaryArray.from_arrays(codes, pa.array(["view", "buy", "view", "é"])),
    }[kind]
    table = make_events(2, action=actions)
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=kind != "no dictionary page", row_group_size=3)
    events = read_all(str(tmp_path))
    assert events.column("action").to_pylist() == names
    for chunk in events.column("action").chunks:
        assert chunk.type == pa.dictionary(pa.int32(), pa.large_string())
        assert len(set(chunk.dictionary.to_pylist())) == len(chunk.dictionary)
    good, bad = part(events)
    assert good.column("action").to_pylist() == ["view", "buy", "view", "é", "view"]
    assert bad.column("reason").to_pylist() == ["empty_action"]
