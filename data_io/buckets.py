"""Buckets: which hash group a user belongs to, and how a bucket's files are committed and read.

A bucket is the unit of work, of restart and of publishing. Invariants: the bucket of a user is a function of the id
alone, the same on every machine and in every version; a reader trusts manifests only, so a bucket is either whole or
not there.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_io import storage
from data_io.schema import DataContractError
from data_io.snapshots import (
    MANIFEST_NAME,
    bucket_files,
    publish_manifest,
    published_manifest,
    read_manifest,
    remove_unnamed,
)

WORK = "_work"
BUCKET_MARKS = "buckets"
BUCKET_FOLDER = "bucket="
RUN_FOLDER = "run="
OUTPUT_FOLDERS = (BUCKET_FOLDER, RUN_FOLDER)
"""How names of files begin that manifests of buckets name."""
_STATE_SIGN = "-"
_MIXED_AT_A_TIME = 1 << 14
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(keys: pa.Array) -> np.ndarray:
    """64-bit hashes of non-null int64 or string keys, the same on every machine and in every version.

    Integers go through SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", fig. 15);
    strings through the same mixer, eight bytes at a time, seeded with their length.

    Raises:
        ValueError: a key is null.
    """
    if keys.null_count:
        raise ValueError("hash64 takes no null keys; quarantine them first")
    if pa.types.is_integer(keys.type):
        return _mix_all(keys.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64))
    encoded = keys.cast(pa.large_string()).dictionary_encode()
    return _hash_strings(encoded.dictionary)[encoded.indices.to_numpy()]


def bucket_of(user_ids: pa.Array, num_buckets: int) -> np.ndarray:
    """The bucket (int32) of each user id."""
    return bucket_of_hash(hash64(user_ids), num_buckets)


def bucket_of_hash(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """The bucket (int32) of each user, from the `hash64` of the id."""
    return (hashes % np.uint64(num_buckets)).astype(np.int32)


def _mix_all(values: np.ndarray) -> np.ndarray:
    mixed = np.empty_like(values)
    for begin in range(0, len(values), _MIXED_AT_A_TIME):  # what is made on the way stays in the cache of a core
        part = slice(begin, begin + _MIXED_AT_A_TIME)
        mixed[part] = _mix(values[part])
    return mixed


def _mix(values: np.ndarray) -> np.ndarray:
    mixed = values + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hash_strings(strings: pa.LargeStringArray) -> np.ndarray:
    offset_buffer, data_buffer = strings.buffers()[1:]
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.zeros(0, np.uint8)
    data = np.concatenate([data, np.zeros(8, np.uint8)])
    lengths = np.diff(offsets)
    hashes = _mix(lengths.astype(np.uint64))
    active = np.flatnonzero(lengths > 0)
    position = 0
    while len(active):
        left = np.minimum(lengths[active] - position, 8)
        words = data[(offsets[active] + position)[:, None] + np.arange(8)]
        words = np.where(np.arange(8) < left[:, None], words, 0).astype(np.uint8)
        hashes[active] = _mix(hashes[active] ^ words.view("<u8")[:, 0])
        position += 8
        active = active[lengths[active] > position]
    return hashes


def fingerprint(content: dict[str, Any]) -> str:
    """A short hash of settings and inputs: equal fingerprints mean equal output."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketWriter:
    """Commits the buckets of one output folder, each in one atomic step.

    A bucket's file is put under a unique attempt name, then its mark, which names the file, its size and hash. Work
    done twice (a retried task) leaves an orphan file that no mark names. Marks and whatever else a job needs to go on
    after it was killed stand in WORK until it has published.
    """

    url: str
    fingerprint: str
    plain: tuple[str, ...] = ()
    """Columns whose values hardly repeat (see `storage.write_parquet`)."""
    way: str = ""
    """What the output does not depend on but the marks do, such as how the input was cut: marks of another way are not
    taken up."""
    folder: str = ""
    """Folder for the buckets, ending in /, where what was published before stays beside them."""

    @property
    def _marks_url(self) -> str:
        return storage.join(self.work_url, f"{BUCKET_MARKS}{self.way}")

    @property
    def work_url(self) -> str:
        """Folder of what is not published yet."""
        return storage.join(self.url, WORK, self.fingerprint)

    def check_alone(self) -> None:
        """Fail where part of another output stands in the folder.

        Raises:
            DataContractError: it holds work of other settings or from other input.
        """
        for found in storage.list_folders(storage.join(self.url, WORK)):
            if found != self.fingerprint and not _is_earlier(found, self.fingerprint):
                raise DataContractError(_other(self.url, found, self.fingerprint))

    def committed(self, num_buckets: int) -> dict[int, dict[str, Any]]:
        """Marks of the buckets that are done, by bucket.

        Raises:
            DataContractError: the folder holds buckets made with other settings or from other input.
        """
        self.check_alone()
        marks = (storage.read_json(url) for url in storage.list_files(self._marks_url))
        found = {mark["bucket"]: mark for mark in marks}
        for mark in found.values():
            if mark["num_buckets"] != num_buckets:
                raise DataContractError(_other(self.url, self.fingerprint, self.fingerprint))
        return found

    def commit(
        self, bucket: int, num_buckets: int, table: pa.Table, facts: dict[str, Any], *, remember: bool = True
    ) -> dict[str, Any]:
        """Write a bucket's rows and then its mark; returns the mark.

        Args:
            bucket: which one.
            num_buckets: of the output.
            table: its rows.
            facts: what else the mark says.
            remember: False: put no mark, where doing the work again costs less than marks do.
        """
        name = f"{self.folder}{BUCKET_FOLDER}{bucket:05d}"
        url = storage.join(self.url, name, f"part-{uuid.uuid4().hex}.parquet")
        written = storage.write_parquet(url, table, plain=self.plain)
        file = asdict(written) | {"name": f"{name}/{written.name}"}
        mark = {"bucket": bucket, "num_buckets": num_buckets, "file": file} | facts
        if remember:
            storage.write_json(self._mark_url(bucket), mark)
        return mark

    def find_mark(self, bucket: int) -> dict[str, Any] | None:
        """The mark of a bucket that is done; None: it is not."""
        try:
            return storage.read_json(self._mark_url(bucket))
        except FileNotFoundError:
            return None

    def _mark_url(self, bucket: int) -> str:
        return storage.join(self._marks_url, f"{bucket:05d}.json")

    def publish(self, marks: list[dict[str, Any]], summary: dict[str, Any], retain_hours: float = 0) -> dict[str, Any]:
        """Write the manifest of buckets that were all written anew, by which readers see them; returns it.

        What they replace is removed once that is so many hours ago; files that attempts killed half-way left are
        removed now. So a reader who knows no manifest sees each row once too, or once in each folder.

        Args:
            marks: of all buckets; what they say under `entry` stands in the manifest with their files.
            summary: what else the manifest says.
            retain_hours: for readers that are at work, and to go back.
        """
        files = {
            str(mark["bucket"]): {"files": [mark["file"]]} | mark.get("entry", {})
            for mark in sorted(marks, key=lambda mark: mark["bucket"])
        }
        content = {"fingerprint": self.fingerprint} | summary | {"buckets": files}
        manifest = publish_manifest(self.url, content, after=published_manifest(self.url))
        remove_unnamed(self.url, manifest, OUTPUT_FOLDERS, retain_hours=retain_hours)
        self.delete_work()
        return manifest

    def delete_work(self) -> None:
        """Remove what is only needed until the output is published."""
        storage.delete_folder(storage.join(self.url, WORK))


def _other(url: str, found: str, expected: str) -> str:
    return (
        f"{url} holds output of other settings or input (its fingerprint {found}, this run's {expected}); choose "
        "another run_dir or delete that folder"
    )


def fingerprint_after(content: dict[str, Any], state: str) -> str:
    """A fingerprint of output that is made again whenever its input has moved on, and then replaces what was before.

    Args:
        content: settings and inputs that stay.
        state: of the input that moves on.
    """
    return f"{fingerprint(content)}{_STATE_SIGN}{state}"


def _is_earlier(found: str, expected: str) -> bool:
    """Whether two fingerprints differ only in the state of an input that moves on."""
    same, sign, _ = expected.partition(_STATE_SIGN)
    return bool(sign) and found.startswith(f"{same}{_STATE_SIGN}")


def is_published(url: str, expected_fingerprint: str) -> bool:
    """Whether the output stands complete and up to date.

    Raises:
        DataContractError: it stands, but made with other settings or from other input.
    """
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return False
    found = read_manifest(url)["fingerprint"]
    if found == expected_fingerprint:
        return True
    if _is_earlier(found, expected_fingerprint):
        return False
    raise DataContractError(_other(url, found, expected_fingerprint))


def read_part(url: str, file: dict[str, Any], *, columns: list[str] | None = None) -> pa.Table:
    """Rows of one file of a manifest, verified against it.

    Raises:
        DataContractError: the file is missing or is not, byte for byte, the one that was committed.
    """
    path = storage.join(url, file["name"])
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise DataContractError(
            f"{path}: named in the manifest but missing; open {url} anew if a job has replaced it since, else rebuild"
        ) from None
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise DataContractError(f"{path}: differs from what was committed (SHA-256 mismatch); rebuild {url}")
    return pq.read_table(pa.BufferReader(content), columns=columns)


def read_bucket(url: str, manifest: dict[str, Any], bucket: int, *, columns: list[str] | None = None) -> pa.Table:
    """Rows of one bucket as they stand in its files, verified against the manifest.

    Raises:
        DataContractError: a file is missing or is not, byte for byte, the one that was committed.
    """
    files = bucket_files(manifest["buckets"][str(bucket)])
    return pa.concat_tables([read_part(url, file, columns=columns) for file in files])


def iter_buckets(url: str, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Tables of all buckets of a published output, in bucket order."""
    manifest = read_manifest(url)
    for bucket in sorted(int(key) for key in manifest["buckets"]):
        yield read_bucket(url, manifest, bucket, columns=columns)
