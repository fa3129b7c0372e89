"""Storage on S3: created once, deleted without a trace, listed whole, and few requests."""

import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import s3fs

from data_io import storage
from data_io.config import SettingsError
from data_io.storage import StorageError
from tests.s3_faults import FaultyS3

BUCKET = "clickformer-storage"


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> str:
    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir(BUCKET)
    return BUCKET


@pytest.fixture
def folder(bucket: str) -> str:
    """A folder of the bucket that no other test knows."""
    return f"s3://{bucket}/{uuid.uuid4().hex}"


def keys_below(url: str) -> list[str]:
    """All keys, empty ones that stand for folders included, as the store itself lists them."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    page: Any = s3fs.S3FileSystem().call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix)
    return [item["Key"].removeprefix(f"{prefix}/") for item in page.get("Contents", ())]


def test_the_first_creates_and_the_second_changes_nothing(folder: str) -> None:
    url = storage.join(folder, "a.json")
    assert storage.create_json(url, {"writer": 1}) is True
    assert storage.create_json(url, {"writer": 2}) is False
    assert storage.read_json(url) == {"writer": 1}


def test_of_many_threads_one_creates(folder: str) -> None:
    url = storage.join(folder, "_lock")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage.create_bytes(url, f"writer {number}".encode()), range(8)))
    assert made.count(True) == 1
    assert storage.read_bytes(url) == f"writer {made.index(True)}".encode()


def test_what_is_created_beside_a_deletion_is_not_taken_for_ours(folder: str, faulty_s3: FaultyS3) -> None:
    url = storage.join(folder, "_lock")
    storage.write_bytes(url, b"of another")
    with faulty_s3(kinds=("404",), methods=("HEAD", "GET")):
        assert storage.create_bytes(url, b"mine") is False


def test_deleting_leaves_no_object_that_stands_for_a_folder(folder: str) -> None:
    for name in ("run/a", "run/deep/b", "runner"):
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.delete_file(storage.join(folder, "run/deep/b"))
    storage.delete_file(storage.join(folder, "run/deep/b"))
    assert keys_below(folder) == ["run/a", "runner"]
    storage.delete_folder(storage.join(folder, "run"))
    storage.delete_folder(storage.join(folder, "run"))
    assert keys_below(folder) == ["runner"]


def test_an_object_that_stands_for_a_folder_goes_with_it(folder: str) -> None:
    filesystem, path = storage.locate(storage.join(folder, "ray_train"))
    filesystem.create_dir(path, recursive=True)
    assert "ray_train/" in keys_below(folder)
    storage.delete_folder(storage.join(folder, "ray_train"))
    assert "ray_train/" not in keys_below(folder)


def test_a_whole_bucket_is_never_deleted(bucket: str) -> None:
    with pytest.raises(SettingsError, match="a whole bucket is never deleted; name a folder in it"):
        storage.delete_folder(f"s3://{bucket}/")


def test_an_uploaded_folder_is_its_files_and_nothing_else(folder: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.bin").write_bytes(b"b" * 100_000)
    (tmp_path / "empty").touch()
    records = storage.upload_folder(tmp_path, folder)
    assert [record["num_bytes"] for record in records] == [100_000, 0]
    assert keys_below(folder) == ["deep/b.bin", "empty"]
    storage.download_folder(folder, tmp_path / "back")
    assert (tmp_path / "back/deep/b.bin").read_bytes() == b"b" * 100_000


def test_more_than_a_thousand_objects_are_listed_and_deleted(folder: str) -> None:
    names = [f"part-{number:04d}" for number in range(1_001)]
    client = s3fs.S3FileSystem()
    client.pipe({storage.join(folder, name): b"" for name in names})
    assert storage.list_tree(folder) == names
    assert storage.list_files(folder) == [storage.join(folder, name) for name in names]
    storage.delete_folder(folder)
    assert storage.list_tree(folder) == []


@pytest.mark.parametrize("num_bytes", [0, 1, 4 * 1024 * 1024])
def test_small_objects_take_one_request_to_write_and_two_to_read(
    num_bytes: int, folder: str, faulty_s3: FaultyS3
) -> None:
    url = storage.join(folder, "a.bin")
    with faulty_s3(kinds=("503",), limit=0) as writing:
        storage.write_bytes(url, b"x" * num_bytes)
    with faulty_s3(kinds=("503",), limit=0) as reading:
        assert storage.read_bytes(url) == b"x" * num_bytes
    assert [request.split()[0] for request in writing.requests] == ["PUT"]
    assert [request.split()[0] for request in reading.requests] == ["HEAD", "GET"][: 1 + bool(num_bytes)]


def test_a_range_is_read_where_it_is(folder: str) -> None:
    url = storage.join(folder, "a.bin")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_range(url, 3, 4) == b"3456"
    assert storage.read_range(url, 8, 100) == b"89"


def test_parquet_comes_back(folder: str) -> None:
    table = pa.table({"number": list(range(1_000))})
    storage.write_parquet(storage.join(folder, "a.parquet"), table)
    assert storage.read_parquet(storage.join(folder, "a.parquet")).equals(table)


def test_what_is_not_there_is_not_found(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "nowhere"))
    assert not storage.exists(storage.join(folder, "nowhere"))


@pytest.mark.usefixtures("s3_endpoint")
def test_a_bucket_that_does_not_exist_is_named() -> None:
    for write in (storage.write_bytes, storage.create_bytes):
        with pytest.raises(StorageError, match="there is no bucket no-such-bucket; create it or correct the URL"):
            write("s3://no-such-bucket/a", b"x")


@pytest.mark.usefixtures("s3_endpoint")
def test_a_missing_credential_is_a_refusal(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        StorageError, match=r"refused the credentials in the environment .*Unable to locate credentials"
    ):
        storage.create_bytes(storage.join(folder, "a"), b"x")
    s3fs.S3FileSystem.clear_instance_cache()


def test_storage_errors_travel() -> None:
    copy = pickle.loads(pickle.dumps(StorageError("s3://bucket/a: what is wrong")))
    assert (type(copy), str(copy)) == (StorageError, "s3://bucket/a: what is wrong")
