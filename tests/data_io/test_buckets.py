"""Buckets: hashes that never change, and committed files that are whole, verified or refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io import storage
from data_io.buckets import (
    BUCKET_MARKS,
    WORK,
    BucketWriter,
    bucket_of,
    bucket_of_hash,
    fingerprint,
    fingerprint_after,
    hash64,
    is_published,
    iter_buckets,
    read_bucket,
    read_part,
)
from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.snapshots import SNAPSHOTS, read_manifest

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
    assert list(first.values()) == bucket_of_hash(hash64(pa.array(list(first), pa.string())), num_buckets).tolist()


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


def test_another_fingerprint_is_refused_and_both_are_named(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    mark = writer.commit(0, 1, make_table(1), {})
    other = BucketWriter(url=str(tmp_path), fingerprint="that")
    message = r"its fingerprint this, this run's that\); choose another run_dir or delete that folder"
    with pytest.raises(DataContractError, match=message):
        other.committed(2)
    with pytest.raises(DataContractError, match=message):
        other.check_alone()
    writer.publish([mark], {})
    other.check_alone()
    with pytest.raises(DataContractError, match=message):
        is_published(str(tmp_path), "that")


def test_output_of_an_earlier_state_of_its_input_is_replaced_and_of_other_settings_refused(tmp_path: Path) -> None:
    url, first, second = str(tmp_path), fingerprint_after({"k": 1}, "0"), fingerprint_after({"k": 1}, "1")
    writer = BucketWriter(url=url, fingerprint=first)
    mark = writer.commit(0, 1, make_table(1), {})
    BucketWriter(url=url, fingerprint=second).check_alone()
    writer.publish([mark], {})
    assert is_published(url, first)
    assert not is_published(url, second)
    for other in (fingerprint_after({"k": 2}, "1"), fingerprint({"k": 1})):
        with pytest.raises(DataContractError, match="choose another run_dir or delete that folder"):
            is_published(url, other)


def test_a_bucket_may_be_committed_without_a_mark_to_remember_it(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    mark = writer.commit(0, 1, make_table(4), {}, remember=False)
    assert writer.committed(1) == {}
    assert read_part(str(tmp_path), mark["file"]).column("number").to_pylist() == [4]


def test_another_number_of_buckets_is_refused(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    writer.commit(0, 2, make_table(1), {})
    with pytest.raises(DataContractError, match="holds output of other settings or input"):
        writer.committed(3)


def test_nothing_is_left_to_go_on_with_once_it_is_published(tmp_path: Path) -> None:
    writer = publish_two_buckets(tmp_path)
    assert writer.committed(2) == {}
    assert not (tmp_path / WORK).exists()


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
    marks = tmp_path / WORK / "this" / BUCKET_MARKS
    (marks / ".00001.json.0123456789abcdef").write_text('{"bucket": 1,')
    assert writer.committed(2) == {0: mark}


def flip_middle(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_middle, lambda content: content[:-5], lambda content: content + b"x", lambda _: b""],
    ids=["a flipped bit", "truncated", "grown", "emptied"],
)
def test_a_damaged_bucket_file_is_found_and_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    publish_two_buckets(tmp_path)
    path = next((tmp_path / "bucket=00001").iterdir())
    path.write_bytes(damage(path.read_bytes()))
    url, manifest = str(tmp_path), read_manifest(str(tmp_path))
    assert read_bucket(url, manifest, 0).num_rows == 2
    with pytest.raises(DataContractError, match=rf"bucket=00001/{path.name}: differs from what was commi.* rebuild"):
        read_bucket(url, manifest, 1)


def test_a_missing_bucket_file_is_found_and_named(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    path = next((tmp_path / "bucket=00000").iterdir())
    path.unlink()
    message = rf"bucket=00000/{path.name}: named in the manifest but missing; open {tmp_path} anew if a job has"
    with pytest.raises(DataContractError, match=message):
        next(iter_buckets(str(tmp_path)))


def test_a_bucket_of_several_parts_has_their_rows_the_oldest_first(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    files = [writer.commit(0, 1, make_table(number), {})["file"] for number in (3, 1, 2)]
    manifest = {"buckets": {"0": {"files": files, "num_users": 3}}}
    assert read_bucket(str(tmp_path), manifest, 0).column("number").to_pylist() == [3, 1, 2]
    assert read_part(str(tmp_path), files[1]).column("number").to_pylist() == [1]


def test_a_manifest_of_format_1_still_reads(tmp_path: Path) -> None:
    """It named one file for each bucket, without facts beside it, and had no number."""
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    files = {str(bucket): writer.commit(bucket, 2, make_table(bucket), {})["file"] for bucket in (0, 1)}
    old = {"format_version": 1, "fingerprint": "this", "num_buckets": 2, "buckets": files}
    storage.write_json(f"{tmp_path}/_MANIFEST.json", old)
    assert is_published(str(tmp_path), "this")
    assert [table.column("number").to_pylist() for table in iter_buckets(str(tmp_path))] == [[0], [1]]


def test_writing_leaves_no_temporary_files(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    assert not list(tmp_path.rglob(".*"))
    assert storage.list_folders(str(tmp_path)) == [SNAPSHOTS, "bucket=00000", "bucket=00001"]


@pytest.mark.parametrize("kind", [DataContractError, SettingsError])
def test_exceptions_survive_a_pickle_round_trip(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(copy) is kind
    assert str(copy) == "what is wrong"


def test_publishing_removes_what_a_killed_attempt_left_in_a_bucket(tmp_path: Path) -> None:
    writer = BucketWriter(url=str(tmp_path), fingerprint="this")
    writer.commit(0, 1, make_table(1), {})
    mark = writer.commit(0, 1, make_table(1), {})
    (tmp_path / "vocabulary.parquet").write_bytes(b"kept")
    writer.publish([mark], {})
    assert [path.name for path in (tmp_path / "bucket=00000").iterdir()] == [mark["file"]["name"].split("/")[1]]
    assert (tmp_path / "vocabulary.parquet").exists()
    assert sum(table.num_rows for table in iter_buckets(str(tmp_path))) == make_table(1).num_rows


def test_publishing_again_replaces_every_bucket(tmp_path: Path) -> None:
    publish_two_buckets(tmp_path)
    writer = BucketWriter(url=str(tmp_path), fingerprint="that")
    manifest = writer.publish([writer.commit(0, 1, make_table(5), {})], {"num_buckets": 1})
    assert (manifest["snapshot"], manifest["fingerprint"]) == (1, "that")
    assert [table.column("number").to_pylist() for table in iter_buckets(str(tmp_path))] == [[5]]
    assert len(list(tmp_path.glob("bucket=*/*"))) == 1, "a reader who knows no manifest sees each row once too"
