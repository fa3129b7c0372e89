"""Privacy: keyed pseudonyms of user ids, and the users that must not come back.

A pseudonym is the HMAC-SHA-256 of an id under a key that only the environment holds, cut to 128 bits: the same id gets
the same one everywhere, and without the key nobody finds the id by trying (RFC 2104; ENISA 2019, "Pseudonymisation
techniques and best practices", 5.2). A tombstone holds the digest of a forgotten user's id, never the id; where ids are
no pseudonyms, whoever tries them all can still find it. Invariant: no event of a user with a tombstone enters a store
or its quarantine.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_io import storage
from data_io.buckets import hash64
from data_io.config import SettingsError
from data_io.schema import USER_ID, DataContractError

TOMBSTONES_NAME = "tombstones.parquet"
_LEAST_KEY_BYTES = 16
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The secret of pseudonyms; it is never written or shown, its id is."""

    secret: bytes = field(repr=False)

    @classmethod
    def from_environment(cls, variable: str) -> "PseudonymKey":
        """The key an environment variable holds.

        Raises:
            SettingsError: the variable is not set, or too short for a secret.
        """
        secret = os.environ.get(variable, "").encode()
        if len(secret) < _LEAST_KEY_BYTES:
            found = f"has {len(secret)} bytes" if secret else "is not set"
            raise SettingsError(
                f"privacy.pseudonym_key_variable: {variable} {found} on this node; give every node the same secret of "
                f"at least {_LEAST_KEY_BYTES} bytes in it"
            )
        return cls(secret)

    @property
    def key_id(self) -> str:
        """By which a key is recognised, and which tells nothing of it."""
        return hmac.digest(self.secret, b"key id", "sha256").hex()[:16]

    def check(self, key_id: str, where: str) -> None:
        """Fail where pseudonyms were made with another key.

        Raises:
            SettingsError: they were.
        """
        if key_id != self.key_id:
            raise SettingsError(
                f"{where} has pseudonyms of key {key_id}, the environment holds key {self.key_id}: give the key it was "
                "built with, or build a new store"
            )

    def pseudonyms(self, user_ids: pa.Array) -> pa.Array:
        """Pseudonyms (32 hexadecimal digits) of ids; null stays null."""
        encoded = user_ids.dictionary_encode()
        made = [hmac.digest(self.secret, text, "sha256")[:_DIGEST_BYTES].hex() for text in _texts(encoded.dictionary)]
        return pa.array(made, pa.large_string()).take(encoded.indices)


def pseudonymise(rows: pa.Table, key: PseudonymKey | None) -> pa.Table:
    """Rows with a pseudonym for each user id; as they are without a key."""
    if key is None:
        return rows
    place = rows.column_names.index(USER_ID)
    return rows.set_column(place, USER_ID, key.pseudonyms(rows.column(USER_ID).combine_chunks()))


def _texts(user_ids: pa.Array) -> list[bytes]:
    return [str(user_id).encode() for user_id in user_ids.to_pylist()]


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The users whose events must not come back."""

    table: pa.Table
    """digest (hexadecimal), hint (16 bits by which most others are passed over), forgotten_at."""

    @classmethod
    def none(cls) -> "Tombstones":
        """No tombstone at all."""
        fields = {"digest": pa.large_string(), "hint": pa.int32(), "forgotten_at": pa.timestamp("us", tz="UTC")}
        return cls(pa.schema(list(fields.items())).empty_table())

    @classmethod
    def read(cls, url: str) -> "Tombstones":
        """Those of a file; none where there is no file."""
        return cls(storage.read_parquet(url)) if storage.exists(url) else cls.none()

    def write(self, url: str) -> None:
        """Put them where later ingests look."""
        storage.write_parquet(url, self.table)

    def add(self, user_ids: pa.Array) -> "Tombstones":
        """Tombstones with those of more users, each once."""
        new = user_ids.filter(pa.array(~self.cover(user_ids))).unique()
        rows = {
            "digest": pa.array(digests(new), pa.large_string()),
            "hint": _hints(new),
            "forgotten_at": pa.array([datetime.now(UTC)] * len(new), pa.timestamp("us", tz="UTC")),
        }
        return Tombstones(pa.concat_tables([self.table, pa.table(rows, schema=self.table.schema)]))

    def cover(self, user_ids: pa.Array) -> np.ndarray:
        """[N] whether a user of these is forgotten; null is nobody."""
        if not self.table.num_rows or user_ids.null_count == len(user_ids):
            return np.zeros(len(user_ids), bool)
        encoded = user_ids.dictionary_encode()
        covered = np.zeros(len(encoded.dictionary) + 1, bool)  # the last is for null
        suspects = np.flatnonzero(np.isin(_hints(encoded.dictionary), self.table.column("hint").to_numpy()))
        found = pl.Series(digests(encoded.dictionary.take(pa.array(suspects))), dtype=pl.String)
        covered[suspects] = found.is_in(self.table.column("digest").to_pylist()).to_numpy()
        return covered[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def drop(self, rows: pa.Table) -> tuple[pa.Table, int]:
        """Rows without those of forgotten users, and how many those were."""
        covered = self.cover(rows.column(USER_ID).combine_chunks())
        return (rows.filter(pa.array(~covered)) if covered.any() else rows), int(covered.sum())


def _hints(user_ids: pa.Array) -> np.ndarray:
    # Too few bits to find an id by; the whole hash of an integer could be turned back into it.
    return (hash64(user_ids) & np.uint64(0xFFFF)).astype(np.int32)


def digests(user_ids: pa.Array) -> list[str]:
    """SHA-256, cut to 128 bits, of each id."""
    return [hashlib.sha256(text).digest()[:_DIGEST_BYTES].hex() for text in _texts(user_ids)]


def read_user_list(url: str, user_kind: str) -> pa.Array:
    """Different user ids of a file: the column user_id of Parquet, or one id a line of text.

    Args:
        url: of the file.
        user_kind: "int" or "string", as in the log.

    Raises:
        DataContractError: the file is not there or has no id, or a line is no id of that kind.
    """
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise DataContractError(f"{url}: no such file; give the users to forget, one id a line or as Parquet") from None
    ids = _parquet_ids(url, content) if content[:4] == b"PAR1" else _text_ids(url, content)
    try:
        typed = ids.cast(pa.int64() if user_kind == "int" else pa.large_string())
    except pa.ArrowInvalid as error:
        raise DataContractError(f"{url}: user ids of this log are {user_kind}, {error}") from None
    found = typed.drop_null().unique()
    if not len(found):
        raise DataContractError(f"{url}: holds no user id")
    return found


def _parquet_ids(url: str, content: bytes) -> pa.Array:
    table = pq.read_table(pa.BufferReader(content))
    if USER_ID not in table.column_names:
        raise DataContractError(f"{url}: no column {USER_ID}; it has {', '.join(table.column_names)}")
    return table.column(USER_ID).combine_chunks()


def _text_ids(url: str, content: bytes) -> pa.Array:
    try:
        lines = [line.removesuffix("\r") for line in content.decode().split("\n")]  # an id may hold other breaks
    except UnicodeDecodeError:
        raise DataContractError(f"{url}: neither Parquet nor UTF-8 text with one user id a line") from None
    return pa.array([line for line in lines if line.strip()], pa.large_string())
