"""Purchases held out beside a data set: each the last event of its user, a second after the newest."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.config import SettingsError, SourceName, SourceSettings
from data_io.schema import DataContractError
from data_io.sources import read_source

both = pytest.mark.parametrize(("name", "word"), [("retailrocket", "transaction"), ("taobao", "buy")])


def write_set(folder: Path, word: str, held_out: dict[int, int]) -> None:
    """Two users, whose newest events are at 1,005 and 1,007 s and not the last of the file, in two row groups."""
    events = {
        "user_id": pa.array([5, 6, 6, 5, 6], pa.uint32()),
        "item_id": pa.array([1, 2, 3, 4, 5], pa.uint32()),
        "timestamp": [1_001, 1_002, 1_007, 1_005, 1_003],
        "event_type": [word] * 5,
    }
    pq.write_table(pa.table(events), folder / "events.parquet", row_group_size=3)
    columns = {"user_id": pa.array(held_out, pa.uint32()), "test_buy_item": pa.array(held_out.values(), pa.uint32())}
    pq.write_table(pa.table(columns), folder / "test_buy.parquet")


def read(name: SourceName, path: Path) -> list[tuple[int, int, str, float]]:
    tables = pa.concat_tables(read_source(SourceSettings(name=name, path=str(path)))).to_pylist()
    return [(row["user_id"], row["item_id"], row["action"], row["event_time"].timestamp()) for row in tables]


@both
def test_a_held_out_purchase_is_the_last_event_of_its_user(tmp_path: Path, name: SourceName, word: str) -> None:
    write_set(tmp_path, word, {6: 9, 5: 8})
    for path in (tmp_path, tmp_path / "events.parquet"):
        rows = read(name, path)
        assert len(rows) == 7
        assert rows[5:] == [(6, 9, "purchase", 1_008), (5, 8, "purchase", 1_006)]


@both
def test_users_without_one_keep_their_events(tmp_path: Path, name: SourceName, word: str) -> None:
    write_set(tmp_path, word, {6: 9})
    assert read(name, tmp_path)[5:] == [(6, 9, "purchase", 1_008)]


@both
def test_a_purchase_of_nobody_is_named(tmp_path: Path, name: SourceName, word: str) -> None:
    write_set(tmp_path, word, {7: 9})
    with pytest.raises(DataContractError, match=r"test_buy\.parquet: user 7 has no event in the data set"):
        read(name, tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, "buy", {6: 9})
    pq.write_table(pa.table({"user_id": [6]}), tmp_path / "test_buy.parquet")
    with pytest.raises(DataContractError, match=r"test_buy\.parquet: lacks the column\(s\) test_buy_item"):
        read("taobao", tmp_path)


def test_a_set_on_an_object_store_is_refused() -> None:
    with pytest.raises(SettingsError, match="data sets are read from a local disk"):
        read_source(SourceSettings(name="taobao", path="s3://bucket/taobao"))
