"""Storage: whole files or none, URLs refused or resolved, and what is found as Parquet."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data_io import storage
from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.storage import OutOfDiskError

TABLE = pa.table({"number": [1, 2, 3]})


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_join_adds_no_second_slash() -> None:
    assert storage.join("s3://bucket/run/", "store", "a.json") == "s3://bucket/run/store/a.json"
    assert storage.join("run", "store") == "run/store"


def test_absolute_resolves_local_paths_and_leaves_s3_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/x") == str(tmp_path / "runs" / "x")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"
    assert not storage.absolute("~/x").startswith("~")


@pytest.mark.parametrize("url", ["gs://bucket/x", "file:///tmp/x", "https://host/x"])
@pytest.mark.parametrize("resolve", [storage.locate, storage.absolute])
def test_other_schemes_are_refused_not_taken_for_a_folder(resolve: Callable[[str], object], url: str) -> None:
    with pytest.raises(SettingsError, match=f"{url}: only local paths and s3:// URLs are supported"):
        resolve(url)


def test_bytes_and_json_come_back(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "folder" / "file.json")
    assert not storage.exists(url)
    storage.write_json(url, {"b": 1, "a": [2, 3]})
    assert storage.exists(url)
    assert list(storage.read_json(url)) == ["b", "a"]
    storage.write_bytes(url, b"other")
    assert storage.read_bytes(url) == b"other"


def test_atomic_writes_leave_no_temporary_files(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a.bin"), b"a")
    storage.write_json(str(tmp_path / "b.json"), {})
    storage.write_parquet(str(tmp_path / "c.parquet"), TABLE)
    assert names_in(tmp_path) == ["a.bin", "b.json", "c.parquet"]


def test_a_failed_write_leaves_the_file_before_it_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"before")

    def disk_is_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_is_full)
    with pytest.raises(OutOfDiskError, match=r"a\.bin: no room for its 5 bytes \(No space left"):
        storage.write_bytes(url, b"after")
    assert names_in(tmp_path) == ["a.bin"]
    assert storage.read_bytes(url) == b"before"


def test_the_first_creates_and_the_second_changes_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "a.json")
    assert storage.create_json(url, {"writer": 1}) is True
    assert storage.create_json(url, {"writer": 2}) is False
    assert storage.create_json(url, {"writer": 1}) is False, "a local disk loses no answers"
    assert storage.read_json(url) == {"writer": 1}
    assert names_in(tmp_path) == ["deep/a.json"]


def test_a_disk_without_hard_links_creates_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    url = str(tmp_path / "a.bin")
    assert [storage.create_bytes(url, content) for content in (b"first", b"second")] == [True, False]
    assert storage.read_bytes(url) == b"first"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_link_that_was_made_although_its_answer_was_lost_counts_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_and_lose_the_answer(*paths: str) -> None:
        link(*paths)
        raise FileExistsError

    monkeypatch.setattr("os.link", link_and_lose_the_answer)
    assert storage.create_bytes(str(tmp_path / "a.bin"), b"mine") is True


def test_of_racing_processes_one_creates_and_nobody_reads_half(tmp_path: Path) -> None:
    code = f"""
from data_io import storage
import sys
content = sys.argv[1].encode() * 20_000
made = 0
for number in range(100):
    url = f"{tmp_path}/{{number}}"
    made += storage.create_bytes(url, content)
    found = storage.read_bytes(url)
    assert len(found) == len(content) and len(set(found)) == 1
print(made)
"""
    command = [sys.executable, "-c", code]
    racers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"]
    made = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(made) == 100
    assert names_in(tmp_path) == sorted(str(number) for number in range(100))


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"torn', "not valid JSON"), (b"[1]", "expected a JSON object, found list")]
)
def test_json_that_is_no_object_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    url = str(tmp_path / "a.json")
    storage.write_bytes(url, content)
    with pytest.raises(DataContractError, match=f"a.json: {message}"):
        storage.read_json(url)


def test_parquet_comes_back_with_what_a_manifest_says_of_it(tmp_path: Path) -> None:
    url = str(tmp_path / "a.parquet")
    written = storage.write_parquet(url, TABLE)
    assert storage.read_parquet(url).equals(TABLE)
    assert (written.name, written.num_rows) == ("a.parquet", 3)
    assert written.num_bytes == (tmp_path / "a.parquet").stat().st_size
    assert written.sha256 == storage.file_sha256(tmp_path / "a.parquet")


def test_a_flipped_byte_of_a_page_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    storage.write_parquet(str(path), pa.table({"number": list(range(1_000))}))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataContractError, match=r"a\.parquet: cannot be read as Parquet .*; restore or rebuild it"):
        storage.read_parquet(str(path))


def test_a_missing_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"no\.parquet: is missing; open its output anew"):
        storage.read_parquet(str(tmp_path / "no.parquet"))


def test_a_range_is_shorter_where_the_file_ends(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"0123456789")
    assert [storage.read_range(url, 3, 4), storage.read_range(url, 8, 100)] == [b"3456", b"89"]


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"x")
    storage.delete_file(url)
    storage.delete_file(url)
    assert names_in(tmp_path) == []


def test_lists_are_sorted_and_empty_where_nothing_is(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.txt", "folder/d.json"):
        storage.write_bytes(str(tmp_path / name), b"")
    url = str(tmp_path)
    assert storage.list_files(url) == [f"{url}/a.json", f"{url}/b.json", f"{url}/c.txt"]
    assert storage.list_folders(url) == ["folder"]
    assert storage.list_files(f"{url}/nowhere") == []
    assert storage.list_folders(f"{url}/nowhere") == []


def test_parquet_files_are_found_deep_and_without_marks_or_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.parquet", "day=1/a.parquet", "_tmp/x.parquet", ".hidden.parquet", "_SUCCESS", "c.pq", "notes.txt"):
        storage.write_bytes(str(tmp_path / name), b"")
    url = str(tmp_path)
    assert storage.find_parquet_files(url) == [f"{url}/b.parquet", f"{url}/c.pq", f"{url}/day=1/a.parquet"]


def test_a_single_file_and_a_glob_stand_for_files(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "other.parquet"):
        storage.write_bytes(str(tmp_path / name), b"")
    url = str(tmp_path)
    assert storage.find_parquet_files(f"{url}/b.parquet") == [f"{url}/b.parquet"]
    assert storage.find_parquet_files(f"{url}/?.parquet") == [f"{url}/a.parquet", f"{url}/b.parquet"]


def test_no_such_path_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"nowhere: no such file or folder; give .* as events\.path"):
        storage.find_parquet_files(str(tmp_path / "nowhere"))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"no Parquet file \(\*\.parquet\) in this folder$"):
        storage.find_parquet_files(str(tmp_path))


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        storage.write_bytes(str(tmp_path / name), b"")
    with pytest.raises(DataContractError, match=r"in this folder; it holds 2 other files, such as a\.csv"):
        storage.find_parquet_files(str(tmp_path))


def test_a_glob_without_a_match_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match="no file matches this pattern"):
        storage.find_parquet_files(f"{tmp_path}/*.parquet")


def test_folders_travel_there_and_back(tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "deep").mkdir(parents=True)
    (local / "a.txt").write_text("a")
    (local / "deep" / "b.txt").write_text("bb")
    url = str(tmp_path / "remote" / "model")
    records = storage.upload_folder(local, url)
    assert [(record["name"], record["num_bytes"]) for record in records] == [("a.txt", 1), ("deep/b.txt", 2)]
    assert records[0]["sha256"] == storage.file_sha256(local / "a.txt")
    storage.download_folder(url, tmp_path / "back")
    assert names_in(tmp_path / "back") == ["a.txt", "deep/b.txt"]
    storage.delete_folder(url)
    storage.delete_folder(url)
    assert not storage.exists(url)
