"""Snapshots: numbered manifests of an output, each whole, of which readers see the newest.

    _snapshots/00000000.json ...   every file of that state of the output, with size and hash; created, never changed
    _MANIFEST.json                 a copy of the newest, put last: what readers open

Files have names of their own and are never overwritten, so a reader that opened an old snapshot reads it to the end.
Invariant: a snapshot's number is taken by one writer only, because its file is created on condition that there is none.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from data_io import storage
from data_io.schema import DataContractError

MANIFEST_NAME = "_MANIFEST.json"
SNAPSHOTS = "_snapshots"
FORMAT_VERSION = 2


def read_manifest(url: str, *, made_by: str = "the job that makes it") -> dict[str, Any]:
    """The manifest of a published output.

    Args:
        url: folder of the output.
        made_by: what to run where nothing is published yet, for the message.

    Raises:
        DataContractError: nothing is published there, or by a newer version of this program.
    """
    try:
        manifest = storage.read_json(storage.join(url, MANIFEST_NAME))
    except FileNotFoundError:
        raise DataContractError(
            f"{url}: nothing is published here yet (no {MANIFEST_NAME}); run {made_by} first"
        ) from None
    _check_format(url, manifest)
    return manifest


def _check_format(url: str, manifest: dict[str, Any]) -> None:
    if manifest.get("format_version", 1) > FORMAT_VERSION:
        raise DataContractError(
            f"{url} was written in format {manifest['format_version']}, this program reads up to {FORMAT_VERSION}: "
            "upgrade clickformer"
        )


def published_manifest(url: str) -> dict[str, Any] | None:
    """The newest manifest of an output, or None; puts it where readers look if its writer was killed before that.

    Only for whoever holds the lease of the output.
    """
    numbers = _numbers(url)
    newest = _read(url, numbers[-1]) if numbers else None
    if newest is None:
        exists = storage.exists(storage.join(url, MANIFEST_NAME))
        return read_manifest(url) if exists else None
    _check_format(url, newest)
    if not storage.exists(storage.join(url, MANIFEST_NAME)) or read_manifest(url).get("snapshot") != numbers[-1]:
        storage.write_json(storage.join(url, MANIFEST_NAME), newest)
    return newest


def older_manifests(url: str, newest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The snapshots before a manifest that are still kept, the newest first."""
    for number in reversed(_numbers(url)):
        manifest = _read(url, number) if number < newest.get("snapshot", 0) else None
        if manifest is not None:
            yield manifest


def publish_manifest(url: str, content: dict[str, Any], *, after: dict[str, Any] | None) -> dict[str, Any]:
    """Make a manifest the newest snapshot; returns it with number and time.

    Args:
        url: folder of the output.
        content: of the manifest.
        after: the manifest it follows; None: it is the first.

    Raises:
        DataContractError: another writer has published since `after`; nothing of this one is seen by readers.
    """
    number = 0 if after is None else int(after.get("snapshot", 0)) + 1
    identity = {"format_version": FORMAT_VERSION, "snapshot": number, "published_at": datetime.now(UTC).isoformat()}
    manifest = identity | content | identity  # the identity stands first, and content that has one does not replace it
    if not storage.create_json(_snapshot_url(url, number), manifest):
        raise DataContractError(
            f"{url}: another job has published snapshot {number} meanwhile; nothing of this one is seen: run it again"
        )
    if _numbers(url)[-1] == number:  # else a writer that overtook this one has put its own
        storage.write_json(storage.join(url, MANIFEST_NAME), manifest)
    return manifest


def remove_unnamed(url: str, named_by: dict[str, Any], folders: tuple[str, ...], retain_hours: float) -> int:
    """Remove snapshots superseded longer ago than that, and files no snapshot names; returns how many files.

    Only for whoever holds the lease of the output.

    Args:
        url: folder of the output.
        named_by: the newest manifest.
        folders: beginnings of the names of files that manifests name; others are left alone.
        retain_hours: how long a reader may go on with what it opened.
    """
    numbers = _numbers(url)
    if numbers and numbers[-1] != named_by.get("snapshot"):
        return 0  # a writer that overtook this one has published since
    keep = file_names(named_by)
    until = datetime.now(UTC) - timedelta(hours=retain_hours)
    following = named_by
    for number in reversed(numbers):
        if number == named_by.get("snapshot"):
            continue
        manifest = _read(url, number)
        if manifest is None:
            continue
        if datetime.fromisoformat(following["published_at"]) > until:
            keep |= file_names(manifest)
            following = manifest
        else:
            storage.delete_file(_snapshot_url(url, number))
    unnamed = [name for name in storage.list_tree(url) if name.startswith(folders) and name not in keep]
    for name in unnamed:
        storage.delete_file(storage.join(url, name))
    return len(unnamed)


def file_names(manifest: dict[str, Any]) -> set[str]:
    """Names of all files a manifest names, wherever in it."""
    found: set[str] = set()
    waiting: list[Any] = [manifest]
    while waiting:
        content = waiting.pop()
        if isinstance(content, dict):
            found |= {content["name"]} if "sha256" in content else set()
            waiting += content.values()
        elif isinstance(content, list):
            waiting += content
    return found


def bucket_files(bucket: dict[str, Any]) -> list[dict[str, Any]]:
    """Files of a bucket as its manifest names them, the oldest part first."""
    return bucket.get("files", [bucket])  # format 1 had one file and no facts


def _numbers(url: str) -> list[int]:
    names = (file.rsplit("/", 1)[1] for file in storage.list_files(storage.join(url, SNAPSHOTS)))
    return sorted(int(name.removesuffix(".json")) for name in names)


def _snapshot_url(url: str, number: int) -> str:
    return storage.join(url, SNAPSHOTS, f"{number:08d}.json")


def _read(url: str, number: int) -> dict[str, Any] | None:
    try:
        return storage.read_json(_snapshot_url(url, number))
    except FileNotFoundError:
        return None
