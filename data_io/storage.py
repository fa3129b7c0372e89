"""Storage: the one place that looks at URLs.

A URL is a local path or `s3://bucket/key`; credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL). Invariant: a file written here is either whole or absent, on a
local disk by temporary name, fsync and rename, on S3 because an object appears when its upload completes.
"""

import fnmatch
import glob
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data_io.config import SettingsError
from data_io.schema import DataContractError

S3_SCHEME = "s3://"


class Location(NamedTuple):
    """A URL resolved: the file system and the path in it."""

    filesystem: fs.FileSystem
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """What a manifest says of a file, so that a reader can verify it."""

    name: str
    num_rows: int
    num_bytes: int
    sha256: str


def is_remote(url: str) -> bool:
    """Whether the URL lies in an object store."""
    return url.startswith(S3_SCHEME)


def join(url: str, *parts: str) -> str:
    """The URL of something below `url`."""
    return "/".join((url.rstrip("/"), *parts))


def absolute(url: str) -> str:
    """The URL as any process sees it: local paths made absolute, because Ray changes a worker's directory.

    Raises:
        SettingsError: the URL has a scheme that is not supported.
    """
    if is_remote(url):
        return url
    if "://" in url:
        raise SettingsError(f"{url}: only local paths and s3:// URLs are supported")
    return str(Path(url).expanduser().resolve())


def locate(url: str) -> Location:
    """The file system of a URL and the path in it.

    Raises:
        SettingsError: the URL has a scheme that is not supported.
    """
    if is_remote(url):
        return Location(_s3_filesystem(), url.removeprefix(S3_SCHEME))
    return Location(fs.LocalFileSystem(), absolute(url))


def _s3_filesystem() -> fs.FileSystem:
    # Arrow's own client: tests/benchmarks/storage.py measures it against s3fs.
    return fs.S3FileSystem(
        region=os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")),
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=10,
        request_timeout=60,
    )


def exists(url: str) -> bool:
    """Whether a file or folder stands at the URL."""
    filesystem, path = locate(url)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def list_files(url: str) -> list[str]:
    """URLs of the files directly in a folder, sorted; empty where there is no folder.

    Names that begin with a dot are left out: a writer that was killed leaves its temporary file under such a name.
    """
    filesystem, path = locate(url)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=False, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == fs.FileType.File)
    return [join(url, name) for name in names if not name.startswith(".")]


def list_tree(url: str) -> list[str]:
    """Names, relative to the folder, of all files below it, sorted; empty where there is no folder."""
    filesystem, path = locate(url)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(path).lstrip("/") for info in infos if info.type == fs.FileType.File)


def list_folders(url: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty where there is no folder."""
    filesystem, path = locate(url)
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def find_parquet_files(url: str) -> list[str]:
    """URLs of the Parquet files a folder (searched deeply), a file or a glob stands for, sorted.

    Names that begin with `_` or `.` are not data, as everywhere in this field.

    Raises:
        DataContractError: nothing is there, or nothing in it is Parquet.
    """
    if any(sign in url for sign in "*?["):
        return _find_by_glob(url)
    filesystem, path = locate(url)
    info = filesystem.get_file_info(path)
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


def write_bytes(url: str, content: bytes) -> None:
    """Put a whole file in one atomic step."""
    _write(url, lambda sink: sink.write(content))


def write_json(url: str, content: dict[str, Any]) -> None:
    """Put a JSON file in one atomic step; keys keep their order."""
    write_bytes(url, (json.dumps(content, indent=2, default=str) + "\n").encode())


def read_bytes(url: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    filesystem, path = locate(url)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


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
    """Put a Parquet file with page checksums in one atomic step, and say what was written.

    Args:
        url: of the file.
        table: its rows.
        plain: columns (of values or of lists) whose values hardly repeat: looking for a dictionary takes half the time
            of writing them.
    """
    paths = {field.name: f"{field.name}.list.element" for field in table.schema if _is_list(field.type)}
    dictionary = [paths.get(name, name) for name in table.column_names if name not in plain]
    buffer = pa.BufferOutputStream()
    options: Any = {"use_dictionary": dictionary}  # pyarrow takes a list of columns; its type says bool
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return _put(url, buffer.getvalue(), table.num_rows)


def _is_list(data_type: pa.DataType) -> bool:
    return pa.types.is_list(data_type) or pa.types.is_large_list(data_type) or pa.types.is_fixed_size_list(data_type)


def _put(url: str, content: pa.Buffer, num_rows: int) -> WrittenFile:
    _write(url, lambda sink: sink.write(content))
    return WrittenFile(
        name=url.rsplit("/", 1)[1],
        num_rows=num_rows,
        num_bytes=content.size,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_row_groups(url: str, groups: list[pa.Table]) -> WrittenFile:
    """Put a Parquet file with a row group for each table that has rows, in one atomic step."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer, groups[0].schema, compression="snappy", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for group in groups:
            if group.num_rows:
                writer.write_table(group, row_group_size=group.num_rows)
    return _put(url, buffer.getvalue(), sum(group.num_rows for group in groups))


def read_row_group(url: str, index: int) -> pa.Table:
    """One row group of a Parquet file we wrote, its page checksums verified.

    Raises:
        DataContractError: the file is missing, torn or corrupt.
    """
    filesystem, path = locate(url)
    try:
        with filesystem.open_input_file(path) as source:
            footer = _footer(url, source.size())
            file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
            return file.read_row_group(index, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataContractError(f"{url}: cannot be read as Parquet ({error}); restore or rebuild it") from error


@lru_cache(maxsize=256)
def _footer(url: str, num_bytes: int) -> pq.FileMetaData:
    """A file's footer, kept from one row group to the next; `num_bytes` tells a replaced file from the one before."""
    assert num_bytes
    filesystem, path = locate(url)
    with filesystem.open_input_file(path) as source:
        return pq.read_metadata(source)


def read_parquet(url: str, *, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file we wrote, its page checksums verified.

    Raises:
        DataContractError: the file is missing, torn or corrupt.
    """
    filesystem, path = locate(url)
    try:
        with filesystem.open_input_file(path) as source:
            return pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataContractError(f"{url}: cannot be read as Parquet ({error}); restore or rebuild it") from error


def upload_folder(local: Path, url: str) -> list[dict[str, Any]]:
    """Copy all files below a local folder under a URL; returns name, size and hash of each."""
    filesystem, path = locate(url)
    files = sorted(item for item in local.rglob("*") if item.is_file())
    records: list[dict[str, Any]] = []
    for item in files:
        name = item.relative_to(local).as_posix()
        filesystem.create_dir(f"{path}/{name}".rsplit("/", 1)[0], recursive=True)
        fs.copy_files(str(item), f"{path}/{name}", destination_filesystem=filesystem)
        records.append({"name": name, "num_bytes": item.stat().st_size, "sha256": file_sha256(item)})
    return records


def download_folder(url: str, local: Path) -> None:
    """Copy everything under a URL into a local folder."""
    filesystem, path = locate(url)
    fs.copy_files(path, str(local), source_filesystem=filesystem)


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def delete_file(url: str) -> None:
    """Remove a file."""
    filesystem, path = locate(url)
    filesystem.delete_file(path)


def delete_folder(url: str) -> None:
    """Remove a folder with all it holds; nothing happens where there is none."""
    if exists(url):
        filesystem, path = locate(url)
        filesystem.delete_dir(path)


def _write(url: str, fill: Callable[[Any], object]) -> None:
    filesystem, path = locate(url)
    if is_remote(url):
        with filesystem.open_output_stream(path) as sink:
            fill(sink)
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{url}: cannot be written ({error.strerror}); choose another run_dir") from None
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as sink:
            fill(sink)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
