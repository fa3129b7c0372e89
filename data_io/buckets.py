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

MANIFEST_NAME = "_MANIFEST.json"
BUCKET_MARKS = "_buckets"
BUCKET_FOLDER = "bucket="
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
        return _mix(keys.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64))
    encoded = keys.cast(pa.large_string()).dictionary_encode()
    return _hash_strings(encoded.dictionary)[encoded.indices.to_numpy()]


def bucket_of(user_ids: pa.Array, num_buckets: int) -> np.ndarray:
    """The bucket (int32) of each user id."""
    return bucket_of_hash(hash64(user_ids), num_buckets)


def bucket_of_hash(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """The bucket (int32) of each user, from the `hash64` of the id."""
    return (hashes % np.uint64(num_buckets)).astype(np.int32)


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
    done twice (a retried task) leaves an orphan file that no mark names.
    """

    url: str
    fingerprint: str
    plain: tuple[str, ...] = ()
    """Columns whose values hardly repeat (see `storage.write_parquet`)."""

    def committed(self, num_buckets: int) -> dict[int, dict[str, Any]]:
        """Marks of the buckets that are done, by bucket.

        Raises:
            DataContractError: the folder holds buckets made with other settings or from other input.
        """
        marks = (storage.read_json(url) for url in storage.list_files(storage.join(self.url, BUCKET_MARKS)))
        found = {mark["bucket"]: mark for mark in marks}
        for mark in found.values():
            if mark["fingerprint"] != self.fingerprint or mark["num_buckets"] != num_buckets:
                raise DataContractError(
                    f"{self.url} holds output of other settings or input (its fingerprint {mark['fingerprint']}, "
                    f"this run's {self.fingerprint}); choose another run_dir or delete that folder"
                )
        return found

    def commit(self, bucket: int, num_buckets: int, table: pa.Table, facts: dict[str, Any]) -> dict[str, Any]:
        """Write a bucket's rows and then its mark; returns the mark."""
        name = f"{BUCKET_FOLDER}{bucket:05d}"
        url = storage.join(self.url, name, f"part-{uuid.uuid4().hex}.parquet")
        written = storage.write_parquet(url, table, plain=self.plain)
        file = asdict(written) | {"name": f"{name}/{written.name}"}
        identity = {"bucket": bucket, "num_buckets": num_buckets, "fingerprint": self.fingerprint}
        mark = identity | {"file": file} | facts
        storage.write_json(storage.join(self.url, BUCKET_MARKS, f"{bucket:05d}.json"), mark)
        return mark

    def publish(self, marks: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, by which readers see the whole output from now on; returns it.

        Files that attempts killed half-way left in the buckets are removed, so that a reader who knows no manifest sees
        each row once too.
        """
        files = {str(mark["bucket"]): mark["file"] for mark in sorted(marks, key=lambda mark: mark["bucket"])}
        manifest = {"format_version": 1, "fingerprint": self.fingerprint} | summary | {"buckets": files}
        storage.write_json(storage.join(self.url, MANIFEST_NAME), manifest)
        named = {file["name"] for file in files.values()}
        for name in storage.list_tree(self.url):
            if name.startswith(BUCKET_FOLDER) and name not in named:
                storage.delete_file(storage.join(self.url, name))
        return manifest


def read_manifest(url: str, *, made_by: str = "the job that makes it") -> dict[str, Any]:
    """The manifest of a published output.

    Args:
        url: folder of the output.
        made_by: what to run where nothing is published yet, for the message.

    Raises:
        DataContractError: nothing is published there.
    """
    try:
        return storage.read_json(storage.join(url, MANIFEST_NAME))
    except FileNotFoundError:
        raise DataContractError(
            f"{url}: nothing is published here yet (no {MANIFEST_NAME}); run {made_by} first"
        ) from None


def is_published(url: str, expected_fingerprint: str) -> bool:
    """Whether the output stands complete.

    Raises:
        DataContractError: it stands, but made with other settings or from other input.
    """
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return False
    found = read_manifest(url)["fingerprint"]
    if found != expected_fingerprint:
        raise DataContractError(
            f"{url} holds output of other settings or input (its fingerprint {found}, this run's "
            f"{expected_fingerprint}); choose another run_dir or delete that folder"
        )
    return True


def read_bucket(url: str, manifest: dict[str, Any], bucket: int, *, columns: list[str] | None = None) -> pa.Table:
    """Rows of one bucket, verified against the manifest.

    Raises:
        DataContractError: the file is missing or is not, byte for byte, the one that was committed.
    """
    file = manifest["buckets"][str(bucket)]
    path = storage.join(url, file["name"])
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise DataContractError(f"{path}: named in the manifest but missing; rebuild {url}") from None
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise DataContractError(f"{path}: differs from what was committed (SHA-256 mismatch); rebuild {url}")
    return pq.read_table(pa.BufferReader(content), columns=columns)


def iter_buckets(url: str, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Tables of all buckets of a published output, in bucket order."""
    manifest = read_manifest(url)
    for bucket in sorted(int(key) for key in manifest["buckets"]):
        yield read_bucket(url, manifest, bucket, columns=columns)
