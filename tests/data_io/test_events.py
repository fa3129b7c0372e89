"""Events: the contract checked on footers, fragments that know their place, and bad rows parted from good."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.config import EventSettings, SettingsError
from data_io.events import EMPTY_IDS, Fragment, latest_time, part_events, quarantine_table, read_fragment, scan_log
from data_io.schema import TIME_TYPE, DataContractError

DEFAULTS = EventSettings()
EARLIEST, LATEST = datetime(2000, 1, 1), datetime(2030, 1, 1)
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def part(events: pa.Table) -> tuple[pa.Table, pa.Table]:
    return part_events(events, EARLIEST, LATEST)


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
    types = {"action": pa.large_string(), "event_time": TIME_TYPE}
    merged = defaults | columns
    return pa.table(
        {
            name: values if isinstance(values, pa.Array) else pa.array(values, types.get(name, pa.large_string()))
            for name, values in merged.items()
        }
    )


def test_fragments_cover_the_log_in_name_order(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(), make_events(num_users=1), rows_per_group=4)
    log = scan_log(url, DEFAULTS)
    places = [(Path(f.file).name, f.row_group, f.first_row, f.first_position, f.num_rows) for f in log.fragments]
    assert places == [
        ("part-00000.parquet", 0, 0, 0, 4),
        ("part-00000.parquet", 1, 4, 4, 2),
        ("part-00001.parquet", 0, 0, 6, 3),
    ]
    assert log.num_rows == 9
    assert log.inputs[1] == (f"{url}/part-00001.parquet", (tmp_path / "part-00001.parquet").stat().st_size)


def test_files_without_rows_are_passed_over(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    events = make_events()
    log = scan_log(write_log(tmp_path, events.slice(0, 0), events), DEFAULTS)
    assert [fragment.num_rows for fragment in log.fragments] == [6]
    assert len(log.inputs) == 2


def test_a_log_without_rows_is_refused(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    with pytest.raises(DataContractError, match="the log has 1 Parquet files and not one row"):
        scan_log(write_log(tmp_path, make_events().slice(0, 0)), DEFAULTS)


def test_a_missing_column_names_file_and_remedy(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events(user_id=None, customer=["c"] * 6))
    message = r"part-00000\.parquet: no column user_id for user_id; it has .*customer.*; set events\.columns .*user_id"
    with pytest.raises(DataContractError, match=message):
        scan_log(url, DEFAULTS)


def test_a_missing_action_column_names_the_default_too(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(action=None))
    with pytest.raises(DataContractError, match=r"no column action.* or set events\.default_action"):
        scan_log(url, DEFAULTS)
    events = read_all(url, EventSettings(default_action="view"))
    assert events.column("action").to_pylist() == ["view"] * 6


def test_a_column_lacking_in_the_second_file_names_that_file(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(), make_events(item_id=None))
    with pytest.raises(DataContractError, match=r"part-00001\.parquet: no column item_id"):
        scan_log(url, DEFAULTS)


def test_a_mapped_optional_column_must_be_there(tmp_path: Path, make_events: Callable, write_log: Callable) -> None:
    url = write_log(tmp_path, make_events())
    with pytest.raises(DataContractError, match="no column amount for price"):
        scan_log(url, EventSettings(columns={"price": "amount"}))


def test_mapping_a_column_the_contract_does_not_know_is_refused(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events())
    with pytest.raises((SettingsError, DataContractError), match=r"events\.columns.*prize"):
        scan_log(url, EventSettings(columns={"prize": "amount"}))


@pytest.mark.parametrize(
    ("column", "values", "found", "expected"),
    [
        ("user_id", pa.array([1.0] * 6), "double", "string or int"),
        ("item_id", pa.array([True] * 6), "bool", "string or int"),
        ("action", pa.array([1] * 6), "int64", "string"),
        ("event_time", pa.array(["2024-01-01"] * 6), "string", "timestamp"),
        ("event_time", pa.array([1_700_000_000] * 6), "int64", "timestamp"),
        ("price", pa.array(["9.99"] * 6), "string", "float or int"),
    ],
)
def test_a_wrong_type_names_file_column_found_and_expected(
    tmp_path: Path, make_events: Callable, write_log: Callable, column: str, values: pa.Array, found: str, expected: str
) -> None:
    url = write_log(tmp_path, make_events(**{column: values}))
    message = rf"part-00000\.parquet: column {column} .* has type {found}, expected {expected}; cast it in the log"
    with pytest.raises(DataContractError, match=message):
        scan_log(url, DEFAULTS)


def test_types_that_differ_between_files_name_both_files(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(), make_events(user_id=list(range(6))))
    message = r"part-00001\.parquet: user_id is int, but string in .*part-00000\.parquet; all files of a log must agree"
    with pytest.raises(DataContractError, match=message):
        scan_log(url, DEFAULTS)


def test_an_optional_column_in_one_file_only_is_refused(
    tmp_path: Path, make_events: Callable, write_log: Callable
) -> None:
    url = write_log(tmp_path, make_events(), make_events(price=[1.0] * 6))
    with pytest.raises(DataContractError, match=r"part-00001\.parquet: price is float, but absent in "):
        scan_log(url, DEFAULTS)


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda good: good[:-20], lambda _: b"user_id,item_id\nu,i\n" * 20])
def test_an_empty_torn_or_foreign_file_is_named(
    tmp_path: Path, make_events: Callable, write_log: Callable, spoil: Callable[[bytes], bytes]
) -> None:
    url = write_log(tmp_path, make_events(), make_events())
    path = tmp_path / "part-00001.parquet"
    path.write_bytes(spoil(path.read_bytes()))
    message = r"part-00001\.parquet: not a readable Parquet file \(.+\); replace or remove it"
    with pytest.raises(DataContractError, match=message) as caught:
        scan_log(url, DEFAULTS)
    assert "\n" not in str(caught.value)


def test_no_such_path_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="nowhere: no such file or folder"):
        scan_log(str(tmp_path / "nowhere"), DEFAULTS)
    with pytest.raises(DataContractError, match="no Parquet file"):
        scan_log(str(tmp_path), DEFAULTS)


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
        "action": "large_string",
        "event_time": "timestamp[us, tz=UTC]",
        "session_id": "large_string",
        "price": "float",
        "quantity": "float",
    }
    assert log_events.column("price").to_pylist() == [1.5] * 6
    assert scan_log(str(tmp_path), DEFAULTS).carried == ("session_id", "price", "quantity")


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
    assert part_events(events, early, late)[0].num_rows == 2
    assert part_events(events, zoned, late)[0].column("source_row").to_pylist() == [0]


def test_a_row_with_many_faults_is_quarantined_once_by_the_first() -> None:
    good, bad = part(make_rows(user_id=[""], item_id=[None], event_time=[None]))
    assert good.num_rows == 0
    assert bad.column("reason").to_pylist() == ["empty_user_id"]


def test_quarantined_rows_know_file_and_row() -> None:
    fragment = Fragment(file="log/part-3.parquet", row_group=1, first_row=100, first_position=900, num_rows=3)
    _, bad = part(make_rows(user_id=["a", "", ""]))
    table = quarantine_table(bad, fragment)
    assert table.column("source_row").to_pylist() == [101, 102]
    assert set(table.column("source_file").to_pylist()) == {"log/part-3.parquet"}
    assert table.column("reason").to_pylist() == ["empty_user_id"] * 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u", "v", None, *EMPTY_IDS]),
            st.sampled_from(["i", None, "nan"]),
            st.sampled_from(["view", "search", None]),
            st.sampled_from([NOON, None, datetime(1970, 1, 1, tzinfo=UTC)]),
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=50, deadline=None)
def test_rows_read_are_rows_kept_plus_rows_quarantined(rows: list[tuple[Any, ...]]) -> None:
    users, items, actions, times = (list(column) for column in zip(*rows, strict=True))
    good, bad = part(make_rows(user_id=users, item_id=items, action=actions, event_time=times))
    kept, refused = good.column("source_row").to_pylist(), bad.column("source_row").to_pylist()
    assert sorted(kept + refused) == list(range(len(rows)))
    for row in kept:
        user, item, action, time = rows[row]
        assert user in ("u", "v")
        assert item == "i" or action == "search"
        assert action is not None
        assert time == NOON


def test_latest_time_is_as_set_or_a_day_after_now() -> None:
    assert latest_time(EventSettings(latest_time=LATEST)) == LATEST
    left = latest_time(DEFAULTS) - datetime.now(UTC).replace(tzinfo=None)
    assert timedelta(hours=23) < left <= timedelta(days=1)


def test_a_single_file_is_a_log(tmp_path: Path, make_events: Callable) -> None:
    pq.write_table(make_events(), tmp_path / "log.parquet")
    assert scan_log(str(tmp_path / "log.parquet"), DEFAULTS).num_rows == 6
