"""URLs resolved: which file system one means, and the path in it.

Invariant: nothing but a local path or `s3://bucket/key` gets past here; another scheme is refused, never taken for the
name of a folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from data_io.config import SettingsError
from data_io.files.object_store import S3_SCHEME, explained, read_again, s3_filesystem

_T = TypeVar("_T")


class Location(NamedTuple):
    """A URL resolved: the file system and the path in it."""

    filesystem: fs.FileSystem
    path: str


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
        return Location(s3_filesystem(), url.removeprefix(S3_SCHEME))
    return Location(fs.LocalFileSystem(), absolute(url))


def read_file(url: str, read: Callable[[pa.NativeFile], _T]) -> _T:
    """What `read` makes of a file that is opened for reading anywhere in it.

    `read` is called again where the object store's client gives up too early. What the store says meanwhile is put into
    words, so that a caller who takes an OSError for a torn file does not take a refusal for one.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: the object store refuses, or does not answer in time.
    """
    filesystem, path = locate(url)

    def open_and_read() -> _T:
        with filesystem.open_input_file(path) as source:
            return read(source)

    with explained(url):
        return read_again(open_and_read)
