"""Storage: the one place that looks at URLs.

A URL is a local path or `s3://bucket/key`; credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL). Invariant: a file written here is either whole or absent, on a
local disk by temporary name, fsync and rename, on S3 because an object appears when its upload completes.
In `data_io.files`, `urls` resolves, `local_disk` and `object_store` write, and `tables` encodes Parquet.
"""

import fnmatch
import glob
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from data_io.files import local_disk, object_store
from data_io.files.local_disk import OutOfDiskError, room_for
from data_io.files.object_store import S3_SCHEME, StorageError, explained
from data_io.files.tables import encode_table, read_parquet
from data_io.files.urls import Location, absolute, is_remote, join, locate, read_file
from data_io.schema import DataContractError

# What callers find here although it is made elsewhere.
__all__ = [
    "S3_SCHEME",
    "Location",
    "OutOfDiskError",
    "StorageError",
    "absolute",
    "is_remote",
    "join",
    "locate",
    "read_file",
    "read_parquet",
    "room_for",
]

_COPY_THREADS = 8
_COPY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """What a manifest says of a file, so that a reader can verify it."""

    name: str
    num_rows: int
    num_bytes: int
    sha256: str


def exists(url: str) -> bool:
    """Whether a file or folder stands at the URL."""
    return _info(url).type != fs.FileType.NotFound


def _info(url: str) -> fs.FileInfo:
    filesystem, path = locate(url)
    with explained(url):
        return filesystem.get_file_info(path)


def _infos(url: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    filesystem, path = locate(url)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    with explained(url):
        try:
            return filesystem.get_file_info(selector)
        except FileNotFoundError:  # a folder made, or removed, while Arrow looked
            return filesystem.get_file_info(selector)


def list_files(url: str) -> list[str]:
    """URLs of the files directly in a folder, sorted; empty where there is no folder.

    Names that begin with a dot are left out: a writer that was killed leaves its temporary file under such a name.
    """
    names = sorted(info.base_name for info in _infos(url) if info.type == fs.FileType.File)
    return [join(url, name) for name in names if not name.startswith(".")]


def list_tree(url: str) -> list[str]:
    """Names, relative to the folder, of all files below it, sorted; empty where there is no folder."""
    path = locate(url).path
    files = (info for info in _infos(url, recursive=True) if info.type == fs.FileType.File)
    return sorted(info.path.removeprefix(path).lstrip("/") for info in files)


def list_folders(url: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty where there is no folder."""
    return sorted(info.base_name for info in _infos(url) if info.type == fs.FileType.Directory)


def find_parquet_files(url: str) -> list[str]:
    """URLs of the Parquet files a folder (searched deeply), a file or a glob stands for, sorted.

    Names that begin with `_` or `.` are not data, as everywhere in this field.

    Raises:
        DataContractError: nothing is there, or nothing in it is Parquet.
    """
    if any(sign in url for sign in "*?["):
        return _find_by_glob(url)
    info = _info(url)
    if info.type == fs.FileType.NotFound:
        raise DataContractError(f"{url}: no such file or folder; give the Parquet log as events.path")
    if info.type == fs.FileType.File:
        return [url]
    relative = list_tree(url)
    data = [name for name in relative if not any(part.startswith(("_", ".")) for part in name.split("/"))]
    parquet = sorted(name for name in data if name.endswith((".parquet", ".pq")))
    if not parquet:
        others = f"; it holds {len(data)} other files, such as {sorted(data)[0]}" if data else ""
        raise DataContractError(f"{url}: no Parquet file (*.parquet) in this folder{others}")
    return [join(url, name) for name in parquet]


def _find_by_glob(url: str) -> list[str]:
    if is_remote(url):
        folder = url[: min(url.index(sign) for sign in "*?[" if sign in url)].rsplit("/", 1)[0]
        names = [name for name in find_parquet_files(folder) if fnmatch.fnmatchcase(name, url)]
    else:
        names = sorted(name for name in glob.glob(url, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not names:
        raise DataContractError(f"{url}: no file matches this pattern")
    return names


def write_bytes(url: str, content: bytes | pa.Buffer | list[bytes | pa.Buffer]) -> None:
    """Put a whole file in one atomic step.

    Args:
        url: of the file.
        content: all of it, or the parts it is made of.

    Raises:
        OutOfDiskError: the local disk has no room for it; what stood there before stands, nothing else is left.
        SettingsError: the local folder cannot be made.
        StorageError: the object store refuses, or does not answer in time.
    """
    parts = content if isinstance(content, list) else [content]
    if is_remote(url):
        object_store.put_object(url, parts[0] if len(parts) == 1 else b"".join(parts))
    else:
        local_disk.write_file(_local(url), parts)


def write_json(url: str, content: dict[str, Any]) -> None:
    """Put a JSON file in one atomic step; keys keep their order."""
    write_bytes(url, _json_bytes(content))


def create_bytes(url: str, content: bytes) -> bool:
    """Whether this call made the file: False where something stands there already, which stays as it is.

    Of any number of callers one gets True, and a reader sees the whole file or none. On S3 an answer can be lost after
    the object was made, and the next attempt then finds its own object. So an object that holds exactly `content`
    counts as made by this call: put something into it that no other writer puts, such as a UUID. On a disk without hard
    links a reader may see part of the file for a moment, and a crash in that moment leaves it.

    Raises:
        OutOfDiskError: the local disk has no room for it; nothing is left.
        SettingsError: the local folder cannot be made.
        StorageError: the object store refuses, or does not answer in time: then the file may or may not stand.
    """
    if is_remote(url):
        return object_store.create_object(url, content)
    return local_disk.create_file(_local(url), content)


def create_json(url: str, content: dict[str, Any]) -> bool:
    """Whether this call made the JSON file; see `create_bytes`."""
    return create_bytes(url, _json_bytes(content))


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, default=str) + "\n").encode()


def read_bytes(url: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: the object store refuses, or does not answer in time.
    """
    return read_file(url, lambda source: source.read())


def read_range(url: str, offset: int, num_bytes: int) -> bytes:
    """Part of the content of a file; shorter where the file ends before.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: the object store refuses, or does not answer in time.
    """

    def read(source: pa.NativeFile) -> bytes:
        source.seek(min(offset, source.size()))
        return source.read(min(num_bytes, source.size() - source.tell()))

    return read_file(url, read)


def read_json(url: str) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: nothing is there.
        DataContractError: it is not a JSON object.
    """
    try:
        content = json.loads(read_bytes(url))
    except ValueError as error:
        raise DataContractError(f"{url}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataContractError(f"{url}: expected a JSON object, found {type(content).__name__}")
    return content


def write_parquet(url: str, table: pa.Table, *, plain: Sequence[str] = ()) -> WrittenFile:
    """Put a Parquet file with page checksums in one atomic step, and say what was written; see `encode_table`."""
    return _put(url, encode_table(table, plain=plain), table.num_rows)


def _put(url: str, content: pa.Buffer, num_rows: int) -> WrittenFile:
    write_bytes(url, content)
    return WrittenFile(
        name=url.rsplit("/", 1)[1],
        num_rows=num_rows,
        num_bytes=content.size,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def upload_folder(local: Path, url: str) -> list[dict[str, Any]]:
    """Copy all files below a local folder under a URL, each in one atomic step; returns name, size and hash of each.

    Raises:
        OutOfDiskError: the local disk has no room for one of them.
        StorageError: the object store refuses, or does not answer in time.
    """
    records: list[dict[str, Any]] = []
    for item in sorted(item for item in local.rglob("*") if item.is_file()):
        name, num_bytes = item.relative_to(local).as_posix(), item.stat().st_size
        write_bytes(join(url, name), pa.memory_map(str(item)).read_buffer() if num_bytes else b"")
        records.append({"name": name, "num_bytes": num_bytes, "sha256": file_sha256(item)})
    return records


def download_folder(url: str, local: Path) -> None:
    """Copy everything under a URL into a local folder.

    Raises:
        OutOfDiskError: the local disk has no room for it.
        StorageError: the object store refuses, or does not answer in time.
    """
    with ThreadPoolExecutor(_COPY_THREADS) as pool:
        list(pool.map(lambda name: _download(join(url, name), local / name), list_tree(url)))


def _download(url: str, path: Path) -> None:
    def copy(source: pa.NativeFile) -> None:
        with room_for(path, source.size), path.open("wb") as sink:
            while chunk := source.read(_COPY_BYTES):
                sink.write(chunk)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        read_file(url, copy)
    except (OSError, StorageError):
        path.unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def delete_file(url: str) -> None:
    """Remove a file; nothing happens where there is none, so that a delete whose answer was lost can be repeated."""
    if is_remote(url):
        object_store.delete_object(url)
    else:
        _local(url).unlink(missing_ok=True)


def delete_folder(url: str) -> None:
    """Remove a folder with all it holds; nothing happens where there is none.

    Raises:
        SettingsError: the URL is that of a whole bucket.
        StorageError: the object store refuses, or does not answer in time.
    """
    if is_remote(url):
        object_store.delete_objects_below(url)
    elif exists(url):
        filesystem, path = locate(url)
        filesystem.delete_dir(path)


def _local(url: str) -> Path:
    return Path(absolute(url))
