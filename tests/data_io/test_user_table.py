"""The user table: laid out by bucket, joined to the users of a bucket, sensitive attributes kept apart."""

import math
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_io import storage
from data_io.buckets import bucket_of
from data_io.config import SettingsError, UserSettings
from data_io.runs import read_pieces, write_pieces
from data_io.schema import DataContractError
from data_io.side.rows import JoinFacts, count_reasons, read_side_rows
from data_io.side.tables import SideTable
from data_io.side.users import (
    bucket_user_rows,
    is_sensitive,
    join_users,
    scan_users,
    user_contract,
    user_facts,
    visible,
)

OPTIONS = UserSettings(
    features={"region": "categorical", "age": "numeric"}, sensitive=["age"], columns={"age": "years"}, max_bad_share=1
)


def make_users(*ids: Any, **columns: Any) -> pa.Table:
    size = len(ids)
    return pa.table({"user_id": list(ids), "region": ["north"] * size, "years": list(range(size))} | columns)


def join_all(source: SideTable, users: list[pa.Array], options: UserSettings) -> tuple[list[pa.Table], dict[str, Any]]:
    """The whole way: each part to a file with a piece per bucket, then each bucket from all parts."""
    num_buckets, reasons, files = len(users), Counter[str](), []
    for part in source.parts:
        rows = read_side_rows(part, source.contract)
        reasons += count_reasons(rows.bad)
        buckets = bucket_user_rows(rows.good, num_buckets)
        url = f"{part.file}-{part.row_group}.buckets"
        write_pieces(url, buckets.groups)
        files.append(url)
    tables, facts = [], []
    for bucket, ids in enumerate(users):
        found = [source.contract.schema.empty_table()]
        for url in files:
            found += [piece for piece in read_pieces(url, bucket, bucket + 1) if piece is not None]
        table, joined = join_users(ids, pa.concat_tables(found), options)
        tables.append(table)
        facts.append(joined)
    return tables, user_facts(source, reasons, facts, options)


def test_rows_are_laid_out_by_bucket_in_file_order(tmp_path: Path, write_log: Callable) -> None:
    ids = [f"u{number % 5}" for number in range(20)]
    source = scan_users(write_log(tmp_path, make_users(*ids)), OPTIONS, "string")
    rows = read_side_rows(source.parts[0], source.contract).good
    laid = bucket_user_rows(rows, 3)
    assert laid.bucket_rows.sum() == 20
    for bucket, group in enumerate(laid.groups):
        expected = rows.filter(pa.array(bucket_of(rows.column("user_id").combine_chunks(), 3) == bucket))
        assert group.equals(expected)


def test_users_come_in_the_order_asked_for(tmp_path: Path, write_log: Callable) -> None:
    users = make_users("b", "stranger", "a", region=["north", "x", None], years=[30, 1, math.nan])
    source = scan_users(write_log(tmp_path, users), OPTIONS, "string")
    rows = read_side_rows(source.parts[0], source.contract).good
    table, facts = join_users(pa.array(["c", "b", "a"], pa.large_string()), rows, OPTIONS)
    assert table.to_pydict() == {
        "user_id": ["c", "b", "a"],
        "in_table": [False, True, True],
        "region": [None, "north", None],
        "age": [None, 30.0, None],
    }
    assert [str(field.type) for field in table.schema] == ["large_string", "bool", "large_string", "float"]
    assert facts == JoinFacts(num_matched=2, num_without_row=1, num_duplicates=0, num_without_events=1)


def test_a_bucket_without_rows_and_a_bucket_without_users() -> None:
    empty = user_contract(OPTIONS, "int").schema.empty_table()
    table, facts = join_users(pa.array([5, 3]), empty, OPTIONS)
    assert table.to_pydict() == {
        "user_id": [5, 3],
        "in_table": [False, False],
        "region": [None, None],
        "age": [None, None],
    }
    assert facts == JoinFacts(num_without_row=2)
    nobody, none = join_users(pa.array([], pa.int64()), empty, OPTIONS)
    assert nobody.schema.equals(table.schema, check_metadata=True)
    assert (nobody.num_rows, none) == (0, JoinFacts())


def test_sensitive_marks_survive_parquet_and_readers_must_ask(tmp_path: Path) -> None:
    rows = pa.table(
        {"user_id": [1], "region": pa.array(["x"], pa.large_string()), "age": pa.array([30.0], pa.float32())}
    )
    table, _ = join_users(pa.array([1]), rows, OPTIONS)
    url = str(tmp_path / "users.parquet")
    storage.write_parquet(url, table)
    read = storage.read_parquet(url)
    assert [field.name for field in read.schema if is_sensitive(field)] == ["age"]
    assert visible(read, include_sensitive=False).column_names == ["user_id", "in_table", "region"]
    assert visible(read, include_sensitive=True).column_names == ["user_id", "in_table", "region", "age"]
    joined = pa.concat_tables([read, read]).slice(1).combine_chunks()
    assert visible(joined, include_sensitive=False).column_names == ["user_id", "in_table", "region"]


def test_quarantined_users_show_place_and_reason_but_nothing_sensitive(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, make_users("a"), make_users("b", " ", "c", years=[1.0, 99.0, math.inf]))
    source = scan_users(url, OPTIONS, "string")
    assert read_side_rows(source.parts[0], source.contract).bad.num_rows == 0
    bad = read_side_rows(source.parts[1], source.contract).bad
    assert bad.column_names == ["source_row", "user_id", "region", "reason", "source_file"]
    assert bad.column("source_row").to_pylist() == [1, 2]
    assert bad.column("reason").to_pylist() == ["empty_user_id", "infinite_age"]
    assert set(bad.column("source_file").to_pylist()) == {f"{url}/part-00001.parquet"}


def test_a_bad_share_above_the_setting_fails(tmp_path: Path, write_log: Callable) -> None:
    source = scan_users(write_log(tmp_path, make_users("a", "b", None)), OPTIONS, "string")
    strict = OPTIONS.model_copy(update={"max_bad_share": 0.3})
    joined = [JoinFacts(num_matched=1), JoinFacts(num_matched=1)]
    with pytest.raises(
        DataContractError, match=r"33\.33% of rows are bad \(empty_user_id 1\), more than users\.max_bad"
    ):
        user_facts(source, Counter({"empty_user_id": 1}), joined, strict)
    assert user_facts(source, Counter({"empty_user_id": 1}), joined, OPTIONS)["num_matched"] == 2


def test_lost_rows_are_noticed(tmp_path: Path, write_log: Callable) -> None:
    source = scan_users(write_log(tmp_path, make_users("a", "b")), OPTIONS, "string")
    with pytest.raises(
        DataContractError, match=r"row conservation broken: 2 rows read, 0 quarantined \(no reason\), 1 joined"
    ):
        user_facts(source, Counter(), [JoinFacts(num_matched=1)], OPTIONS)


def test_ids_of_another_kind_than_the_log_are_refused(tmp_path: Path, write_log: Callable) -> None:
    url = write_log(tmp_path, make_users(1, 2))
    message = r"part-00000\.parquet: column user_id \(user_id\) has type int64, expected string, as in the log; cast it"
    with pytest.raises(DataContractError, match=message):
        scan_users(url, OPTIONS, "string")


@pytest.mark.parametrize("name", ["user_id", "in_table", "source_row"])
def test_an_attribute_may_not_take_a_name_of_the_contract(name: str) -> None:
    with pytest.raises(SettingsError, match=f"users.features declares {name}"):
        user_contract(UserSettings(features={name: "numeric"}), "int")


def test_sensitive_must_name_a_feature() -> None:
    with pytest.raises(ValidationError, match="sensitive names agee, which is not among features") as caught:
        UserSettings(features={"age": "numeric"}, sensitive=["agee"])
    assert isinstance(caught.value.errors()[0]["ctx"]["error"], SettingsError)


def test_what_workers_are_sent_survives_pickling(tmp_path: Path, write_log: Callable) -> None:
    source = scan_users(write_log(tmp_path, make_users("a", "b")), OPTIONS, "string")
    assert pickle.loads(pickle.dumps(source)) == source


def test_the_same_from_an_object_store(s3_endpoint: str, tmp_path: Path, write_log: Callable) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="user-table")
    write_log(tmp_path, make_users("a", "b"))
    storage.write_bytes("s3://user-table/users/x.parquet", (tmp_path / "part-00000.parquet").read_bytes())
    source = scan_users("s3://user-table/users", OPTIONS, "string")
    assert read_side_rows(source.parts[0], source.contract).good.column("user_id").to_pylist() == ["a", "b"]


@given(data=st.data(), kind=st.sampled_from(["string", "int"]), num_buckets=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_agrees_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, num_buckets: int
) -> None:
    names: list[Any] = ["u", "v", "ü", "u\u0308", "w"] if kind == "string" else [0, 1, -5, 2**40, 9]
    id_type = pa.large_string() if kind == "string" else pa.int64()
    row = st.tuples(
        st.sampled_from([*names, None]), st.sampled_from([None, "n", "s"]), st.sampled_from([None, 1.5, 2.0])
    )
    files = data.draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=3))
    log_users = pa.array(data.draw(st.lists(st.sampled_from(names), unique=True)), id_type)
    folder = tmp_path_factory.mktemp("users")
    for number, rows in enumerate(files):
        ids, regions, ages = (list(column) for column in zip(*rows, strict=True))
        table = make_users(*ids, user_id=pa.array(ids, id_type), region=pa.array(regions, pa.string()))
        table = table.set_column(2, "years", pa.array(ages, pa.float64()))
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    bucket = bucket_of(log_users, num_buckets)
    users = [log_users.filter(pa.array(bucket == number)) for number in range(num_buckets)]
    tables, facts = join_all(scan_users(str(folder), OPTIONS, kind), users, OPTIONS)
    every = [row for rows in files for row in rows]
    known = {user: (region, age) for user, region, age in every if user is not None}
    for ids, table in zip(users, tables, strict=True):
        assert table.column("user_id").to_pylist() == ids.to_pylist()
        assert table.column("in_table").to_pylist() == [user in known for user in ids.to_pylist()]
        found = zip(table.column("region").to_pylist(), table.column("age").to_pylist(), strict=True)
        assert list(found) == [known.get(user, (None, None)) for user in ids.to_pylist()]
    nobody = sum(row[0] is None for row in every)
    matched = sum(user in known for user in log_users.to_pylist())
    strangers = sum(row[0] is not None and row[0] not in log_users.to_pylist() for row in every)
    assert (facts["num_rows"], facts["num_quarantined"], facts["num_matched"]) == (len(every), nobody, matched)
    assert facts["num_without_row"] == len(log_users) - matched
    assert facts["num_without_events"] == strangers
    assert facts["num_duplicates"] == len(every) - nobody - strangers - matched
