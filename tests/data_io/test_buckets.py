"""Buckets: hashes that never change, and committed files that are whole, verified or refused."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import storage
from data_io.buckets import (
    BUCKET_MARKS,
    MANIFEST_NAME,
    BucketWriter,
    bucket_of,
    fingerprint,
    hash64,
    is_published,
    iter_buckets,
    read_bucket,
    read_manifest,
)
from data_io.config import SettingsError
from data_io.schema import DataContractError

GOLDEN_INTEGERS = {
    0: 0xE220A8397B1DCDAF,
    1: 0x910A2DEC89025CC1,
    -1: 0xE4D971771B652C20,
    42: 0xBDD732262FEB6E95,
    1234567: 0x599ED017FB08FC85,
    2**63 - 1: 0x2A67D7552E039EA7,
    -(2**63): 0x481EC0A212A9F3DB,
}
"""0 and 1234567 are the published first outputs of SplitMix64 for these seeds."""
GOLDEN_STRINGS = {
    "": 0xE220A8397B1DCDAF,
    "a": 0x5E025F9ADE9EAF3E,
    "user_1": 0x6B27BBEAB6E20ED8,
    "12345678": 0x83DBEC76B33F9CA3,
    "123456789": 0x7CF46F00F45FA22A,
    "Ünïcödé-🛒": 0xD89E0F5B1FFD5BC8,
    "xxxxxxxxxxxxxxxxx": 0x9AFE7B7CE7C3CC33,
    "\0": 0x5E41AB087439611E,
    "\0\0": 0x64684C4F0FD784B4,
}
STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view()]
MASK = 2**64 - 1


def mix_slowly(value: int) -> int:
    """SplitMix64 on Python integers."""
    mixed = (value + 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def hash_slowly(text: str) -> int:
    data = text.encode()
    mixed = mix_slowly(len(data))
    for place in range(0, len(data), 8):
        mixed = mix_slowly(mixed ^ int.from_bytes(data[place : place + 8], "little"))
    return mixed


def make_table(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


def publish_two_buckets(folder: Path) -> BucketWriter:
    writer = BucketWriter(url=str(folder), fingerprint="this")
    marks = [writer.commit(bucket, 2, make_table(bucket, bucket + 10), {"num_users": 2}) for bucket in (1, 0)]
    writer.publish(marks, {"num_buckets": 2})
    return writer


@pytest.mark.parametrize("data_type", [pa.int64(), pa.int32(), pa.int8(), pa.uint16()], ids=str)
def test_hash_of_an_integer_does_not_depend_on_its_width(data_type: pa.DataType) -> None:
    assert hash64(pa.array([0, 1, 42], data_type)).tolist() == [GOLDEN_INTEGERS[key] for key in (0, 1, 42)]


def test_hash64_golden_values_of_integers() -> None:
    keys = pa.array(list(GOLDEN_INTEGERS), pa.int64())
    assert hash64(keys).tolist() == list(GOLDEN_INTEGERS.values())
    assert hash64(keys.slice(2, 3)).tolist() == list(GOLDEN_INTEGERS.values())[2:5]


@pytest.mark.parametrize("data_type", STRING_TYPES, ids=str)
def test_hash64_golden_values_of_strings(data_type: pa.DataType) -> None:
    keys = pa.array(list(GOLDEN_STRINGS), data_type)
    assert hash64(keys).tolist() == list(GOLDEN_STRINGS.values())
    assert hash64(keys.slice(3, 4)).tolist() == list(GOLDEN_STRINGS.values())[3:7]


@pytest.mark.parametrize("data_type", [pa.int64(), *STRING_TYPES], ids=str)
def test_hash_of_no_keys_is_empty(data_type: pa.DataType) -> None:
    assert hash64(pa.array([], data_type)).tolist() == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8))
@settings(max_examples=50, deadline=None)
def test_vectorised_string_hash_equals_a_naive_loop(texts: list[str]) -> None:
    assert hash64(pa.array(texts, pa.large_string())).tolist() == [hash_slowly(text) for text in texts]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8))
@settings(max_examples=50, deadline=None)
def test_vectorised_integer_hash_equals_a_naive_loop(numbers: list[int]) -> None:
    assert hash64(pa.array(numbers, pa.int64())).tolist() == [mix_slowly(number & MASK) for number in numbers]


def test_null_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="hash64 takes no null keys; quarantine them first"):
        hash64(pa.array(["a", None]))


@given(st.lists(st.text(max_size=9), min_size=1, max_size=12), st.integers(1, 64), st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_user_never_spans_buckets(users: list[str], num_buckets: int, random) -> None:
    shuffled = random.sample(users, len(users))
    first = dict(zip(users, bucket_of(pa.array(users, pa.string()), num_buckets).tolist(), strict=True))
    again = dict(zip(shuffled, bucket_of(pa.array(shuffled, pa.large_string()), num_buckets).tolist(), strict=True))
    assert first == again
    assert all(0 <= bucket < num_buckets for bucket in first.values())


def test_buckets_are_about_equally_full() -> None:
    for keys in (pa.array(range(8_000)), pa.array([f"user_{number}" for number in range(8_000)])):
        counts = np.bincount(bucket_of(keys, 8), minlength=8)
        assert counts.min() > 900
        assert counts.max() < 1_100


def test_fingerprint_is_of_the_content_and_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) == "ae8a9a5052464275"
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_published_buckets_come_back_in_order(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    assert [table.column("number").to_pylist() for table in iter_buckets(str(tmp_path))] == [[0, 10], [1, 11]]
    assert read_manifest(str(tmp_path))["num_buckets"] == 2


def test_columns_may_be_chosen(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    table = make_table(1).append_column("other", pa.array(["x"]))
    writer.publish([writer.commit(0, 1, table, {})], {})
    assert next(iter_buckets(str(tmp_path), columns=["other"])).column_names == ["other"]


def test_a_commit_done_twice_leaves_each_row_once(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    writer.commit(0, 1, make_table(7), {})
    writer.commit(0, 1, make_table(7), {})
    marks = writer.committed(1)
    writer.publish(list(marks.values()), {})
    assert [table.column("number").to_pylist() for table in iter_buckets(str(tmp_path))] == [[7]]


def test_committed_buckets_are_found_again_with_their_facts(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    assert writer.committed(4) == {}
    mark = writer.commit(2, 4, make_table(1, 2), {"num_users": 2})
    assert writer.committed(4) == {2: mark}
    assert (mark["num_users"], mark["file"]["num_rows"]) == (2, 2)


def test_a_writer_with_another_fingerprint_names_both(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    other = BucketWriter(url=str(tmp_path), fingerprint="that")
    message = r"its fingerprint this, this run's that\); choose another run_dir or delete that folder"
    with pytest.raises(DataContractError, match=message):
        other.committed(2)
    with pytest.raises(DataContractError, match=message):
        is_published(str(tmp_path), "that")


def test_another_number_of_buckets_is_refused(tmp_path: Path) -> None:
    writer = publish_two_buckets(tmp_path)
    with pytest.raises(DataContractError, match="holds output of other settings or input"):
        writer.committed(3)


def test_is_published_only_once_the_manifest_stands(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    mark = writer.commit(0, 1, make_table(1), {})
    assert not is_published(str(tmp_path), "this")
    writer.publish([mark], {})
    assert is_published(str(tmp_path), "this")


def test_a_temporary_mark_of_a_killed_writer_is_no_mark(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    mark = writer.commit(0, 2, make_table(1), {})
    # What a process killed inside the atomic write leaves: the temporary name, with part of the content.
    (tmp_path / BUCKET_MARKS / ".00001.json.0123456789abcdef").write_text('{"bucket": 1,')
    assert writer.committed(2) == {0: mark}


def test_a_corrupted_bucket_file_is_detected(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    path = next((tmp_path / "bucket=00001").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    url, manifest = str(tmp_path), read_manifest(str(tmp_path))
    assert read_bucket(url, manifest, 0).num_rows == 2
    with pytest.raises(DataContractError, match=r"bucket=00001.*differs from what was committed .* rebuild"):
        read_bucket(url, manifest, 1)


def test_a_missing_bucket_file_is_detected(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    next((tmp_path / "bucket=00000").iterdir()).unlink()
    with pytest.raises(DataContractError, match=r"bucket=00000.*named in the manifest but missing; rebuild"):
        next(iter_buckets(str(tmp_path)))


def test_nothing_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataContractError, match=rf"nothing is published here yet \(no {MANIFEST_NAME}\); run the job that makes"
    ):
        read_manifest(str(tmp_path))


def test_writing_leaves_no_temporary_files(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    assert not list(tmp_path.rglob(".*"))
    assert storage.list_folders(str(tmp_path)) == [BUCKET_MARKS, "bucket=00000", "bucket=00001"]


@pytest.mark.parametrize("kind", [DataContractError, SettingsError])
def test_exceptions_survive_a_pickle_round_trip(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(copy) is kind
    assert str(copy) == "what is wrong"


def test_publishing_removes_what_a_killed_attempt_left_in_a_bucket(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    for _ in range(2):
        mark = writer.commit(0, 1, make_table(1), {})
    (tmp_path / "vocabulary.parquet").write_bytes(b"kept")
    writer.publish([mark], {})
    assert [path.name for path in (tmp_path / "bucket=00000").iterdir()] == [mark["file"]["name"].split("/")[1]]
    assert (tmp_path / "vocabulary.parquet").exists()
    assert sum(table.num_rows for table in iter_buckets(str(tmp_path))) == make_table(1).num_rows
