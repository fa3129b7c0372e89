"""An object store on its bad days (T21, T22): what passes is tried again, what does not is said, nothing is half there.

Each operation is one that the jobs use; `read_mark` stands for objects smaller than an error's text.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs

from data_io import storage
from data_io.files import object_store
from data_io.schema import DataContractError
from data_io.storage import StorageError
from tests.s3_faults import FaultyS3

BUCKET = "clickformer-bad-days"
CONTENT = b"0123456789" * 30_000
NAMES = ["mark", "old", "table"]
TABLE = pa.table({"number": list(range(20_000))})

PASSING = ("503", "500", "reset", "reset_mid_body", "lost")


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> str:
    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir(BUCKET)
    return BUCKET


@pytest.fixture
def folder(bucket: str) -> str:
    """A folder of the bucket with an object, a small one and a Parquet file."""
    folder = f"s3://{bucket}/{uuid.uuid4().hex}"
    storage.write_bytes(storage.join(folder, "old"), CONTENT)
    storage.write_bytes(storage.join(folder, "mark"), b"{}")
    storage.write_parquet(storage.join(folder, "table"), TABLE)
    return folder


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Attempts enough to see that there are several; the waits between ten of them take a minute and a half."""
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    return 2


def read(folder: str) -> None:
    assert storage.read_bytes(storage.join(folder, "old")) == CONTENT


def read_mark(folder: str) -> None:
    assert storage.read_bytes(storage.join(folder, "mark")) == b"{}"


def read_table(folder: str) -> None:
    assert storage.read_parquet(storage.join(folder, "table")).equals(TABLE)


def list_names(folder: str) -> None:
    assert storage.list_tree(folder) == NAMES


def write(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "new"), CONTENT)


def create(folder: str) -> None:
    assert storage.create_bytes(storage.join(folder, "mine"), uuid.uuid4().bytes) is True


def delete(folder: str) -> None:
    storage.delete_folder(storage.join(folder, "nowhere"))
    storage.delete_file(storage.join(folder, "nothing"))


OPERATIONS = (read, read_mark, read_table, list_names, write, create, delete)


CASES = [(operation, kind) for operation in (read, list_names, write, create) for kind in PASSING]
CASES += [(operation, "503") for operation in (read_mark, read_table, delete)]


@pytest.mark.parametrize(("operation", "kind"), CASES)
def test_what_passes_is_tried_again(
    operation: Callable[[str], None], kind: str, folder: str, faulty_s3: FaultyS3
) -> None:
    with faulty_s3(kinds=(kind,), limit=1) as faults:
        operation(folder)
    assert faults.injected == {kind: 1}


def test_a_slow_body_is_waited_for(folder: str, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1)
    with faulty_s3(kinds=("slow",), methods=("GET",), seconds=2.0) as faults:
        read(folder)
    assert len(faults.requests) == 1, "slow is not silent"


@pytest.mark.parametrize("operation", [read, list_names, create])
def test_an_endpoint_that_falls_silent_is_asked_again(
    operation: Callable[[str], None], folder: str, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1)
    with faulty_s3(kinds=("stall",), limit=1, seconds=4.0) as faults:
        operation(folder)
    assert faults.injected == {"stall": 1}
    assert len(faults.requests) > 1


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["403", "expired"])
def test_a_refusal_is_not_tried_again(
    operation: Callable[[str], None], kind: str, folder: str, faulty_s3: FaultyS3
) -> None:
    with (
        faulty_s3(kinds=(kind,)) as faults,
        pytest.raises(StorageError, match=rf"{folder}.*: the object store refused the credentials .* have expired"),
    ):
        operation(folder)
    assert len(faults.requests) == 1


def test_an_object_that_went_after_it_was_listed_is_not_found_at_once(folder: str, faulty_s3: FaultyS3) -> None:
    with faulty_s3(kinds=("404",), methods=("GET",)) as faults, pytest.raises(FileNotFoundError):
        read(folder)
    assert len(faults.requests) == 1
    with (
        faulty_s3(kinds=("404",), methods=("GET",)) as faults,
        pytest.raises(DataContractError, match="is missing; open its output anew"),
    ):
        read_table(folder)
    assert len(faults.requests) == 1


@pytest.mark.parametrize("kind", ["503", "500"])
def test_a_small_object_is_read_where_the_text_of_the_error_is_longer(
    kind: str, folder: str, faulty_s3: FaultyS3
) -> None:
    with faulty_s3(kinds=(kind,), limit=2, methods=("GET",)) as faults:
        read_mark(folder)
    assert faults.injected == {kind: 2}


@pytest.mark.usefixtures("few_attempts")
def test_a_small_object_that_is_never_read_ends_in_an_error(folder: str, faulty_s3: FaultyS3) -> None:
    with faulty_s3(kinds=("503",), methods=("GET",)), pytest.raises(StorageError, match="in 2 attempts"):
        read_mark(folder)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_stays_down_ends_in_one_error_that_counts(
    operation: Callable[[str], None], folder: str, faulty_s3: FaultyS3, few_attempts: int
) -> None:
    with (
        faulty_s3(kinds=("503",)) as faults,
        pytest.raises(StorageError, match=rf"{folder}.*: the object store did not do this in {few_attempts} attempts"),
    ):
        operation(folder)
    assert len(faults.requests) == few_attempts


@pytest.mark.usefixtures("few_attempts")
@pytest.mark.parametrize("operation", [read, create])
def test_connections_that_always_break_end_in_one_error_too(
    operation: Callable[[str], None], folder: str, faulty_s3: FaultyS3
) -> None:
    with faulty_s3(kinds=("reset",)), pytest.raises(StorageError, match=r"attempts over \d+ s \(the last time: "):
        operation(folder)


def test_a_folder_with_small_files_is_downloaded_through_faults(
    folder: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    with faulty_s3(kinds=("503",), limit=3, methods=("GET",), prefix=f"{folder.removeprefix('s3://')}/") as faults:
        storage.download_folder(folder, tmp_path)
    assert faults.injected == {"503": 3}
    assert (tmp_path / "mark").read_bytes() == b"{}"
    assert (tmp_path / "old").read_bytes() == CONTENT


def test_a_throttled_prefix_leaves_others_alone(folder: str, faulty_s3: FaultyS3) -> None:
    key = folder.removeprefix("s3://")
    with faulty_s3(kinds=("503",), prefix=f"{key}/new", limit=1) as faults:
        read(folder)
        assert faults.injected == {}
        write(folder)
    assert faults.injected == {"503": 1}


def test_one_request_in_four_breaks_and_all_comes_whole(folder: str, faulty_s3: FaultyS3) -> None:
    urls = [storage.join(folder, "many", f"{number:02d}") for number in range(8)]
    with (
        faulty_s3(kinds=PASSING, rate=0.25, seed=1) as faults,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda url: storage.write_bytes(url, url.encode() * 500), urls))
        assert storage.list_files(storage.join(folder, "many")) == urls
        assert list(pool.map(storage.read_bytes, urls)) == [url.encode() * 500 for url in urls]
        made = list(pool.map(lambda url: storage.create_bytes(f"{url}.mark", uuid.uuid4().bytes), urls))
    assert all(made)
    assert sum(faults.injected.values()) > 3


def test_a_created_object_whose_answer_was_lost_counts_as_ours(folder: str, faulty_s3: FaultyS3) -> None:
    url = storage.join(folder, "lock")
    with faulty_s3(kinds=("lost",), limit=1, methods=("PUT",)) as faults:
        assert storage.create_bytes(url, b"my token") is True
    assert faults.injected == {"lost": 1}
    assert [request.split()[0] for request in faults.requests] == ["PUT", "PUT"], "the second was refused"
    with faulty_s3(kinds=("503",), limit=1):
        assert storage.create_bytes(url, b"of another") is False
    assert storage.read_bytes(url) == b"my token"


def test_creators_that_collide_try_again(folder: str, faulty_s3: FaultyS3) -> None:
    with faulty_s3(kinds=("409",), limit=1) as faults:
        create(folder)
    assert len(faults.requests) == 2


@pytest.mark.usefixtures("few_attempts")
def test_creators_that_never_stop_colliding_end_in_an_error(folder: str, faulty_s3: FaultyS3) -> None:
    with faulty_s3(kinds=("409",)), pytest.raises(StorageError, match="others were creating it in each of 2 attempts"):
        create(folder)


@pytest.mark.usefixtures("few_attempts")
@pytest.mark.parametrize("query", ["partNumber=2", "uploadId", "uploads"])
@pytest.mark.parametrize("kind", ["500", "403"])
def test_an_upload_that_fails_half_way_leaves_what_was_there(
    query: str, kind: str, folder: str, faulty_s3: FaultyS3
) -> None:
    content = b"x" * 12_000_000
    with faulty_s3(kinds=(kind,), query=query), pytest.raises(StorageError):
        storage.write_bytes(storage.join(folder, "large"), content)
    with faulty_s3(kinds=(kind,), query=query), pytest.raises(StorageError):
        storage.write_bytes(storage.join(folder, "old"), content)
    assert storage.list_tree(folder) == NAMES
    read(folder)


def test_an_upload_completed_twice_because_the_answer_was_lost_is_whole(folder: str, faulty_s3: FaultyS3) -> None:
    content = uuid.uuid4().bytes * 1_000_000
    lost_then_unknown = ("lost", "no_upload")
    with faulty_s3(kinds=lost_then_unknown, in_order=True, limit=2, methods=("POST",), query="uploadId") as faults:
        storage.write_bytes(storage.join(folder, "large"), content)
    assert faults.injected == {"lost": 1, "no_upload": 1}
    assert storage.read_bytes(storage.join(folder, "large")) == content
