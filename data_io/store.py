"""The sequence store: a folder of buckets with a manifest, a vocabulary and a histogram of time.

    store/_MANIFEST.json  _snapshots/  tables/vocabulary-*.parquet  tables/time_histogram-*.parquet  ...
          bucket=00000/part-*.parquet ...  quarantine/*.parquet  quality_report.json  quality_report.html

A bucket has a part from each build or append that had events of its users; parts are merged when they are read, and by
`clickformer compact` for good. Invariant: what the manifest says (users, events, fingerprint, actions) is true of the
buckets it names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.buckets import read_bucket, read_part
from data_io.config import SettingsError
from data_io.inputs import ColumnKind, columns_of_store, with_kinds
from data_io.merging import merge_parts
from data_io.schema import ACTION_INDEX, COUNT, EVENT_TIME, FIRST_INDEX, ITEM_INDEX, USER_ID, DataContractError
from data_io.sequences import Sequences, to_sequences
from data_io.side.users import align_users, visible
from data_io.snapshots import FORMAT_VERSION, bucket_files, read_manifest
from data_io.storage import WrittenFile
from data_io.vocabulary import VOCABULARY_NAME, Vocabulary, index_of_numbers, known_items, read_vocabulary_table

TABLES = "tables"
TIME_HISTOGRAM_NAME = "time_histogram.parquet"
QUALITY_REPORT_NAME = "quality_report.json"
QUALITY_PAGE_NAME = "quality_report.html"
QUARANTINE = "quarantine"
USERS = "users"
MINUTE = "minute"
MINUTE_US = 60_000_000
_SEQUENCE_COLUMNS = [USER_ID, ITEM_INDEX, ACTION_INDEX, EVENT_TIME]


@dataclass(frozen=True)
class SequenceStore:
    """A published store, opened for reading; cheap to pickle and to open on every worker."""

    url: str
    manifest: dict[str, Any]
    limits: tuple[int, int] | None = None
    """Vocabulary size and number of action indices of the model that reads; None: all there are."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Further columns that sequences bring along, by name, each with its kind."""
    numbers: tuple[str, ...] = ()
    """Columns of numbers that sequences bring along as they are."""

    @classmethod
    def open(cls, url: str) -> "SequenceStore":
        """The store at a URL.

        Raises:
            DataContractError: no store is published there.
        """
        return cls(url, read_manifest(url, made_by="clickformer build_sequences"))

    def seen_by(self, vocabulary_size: int, num_actions: int) -> "SequenceStore":
        """The store as a model sees it that was trained before the newest items and actions came up."""
        return replace(self, limits=(vocabulary_size, num_actions))

    def with_columns(self, columns: Mapping[str, str]) -> "SequenceStore":
        """The store as a model sees it that takes these columns of the events, given by name and kind.

        Raises:
            SettingsError: the store lacks a column.
        """
        with_kinds(columns, self.event_columns)
        return replace(self, columns=columns)

    def with_numbers(self, names: Sequence[str]) -> "SequenceStore":
        """The store whose sequences bring along these columns of numbers, which it has, as they are."""
        return replace(self, numbers=tuple(names))

    def check_current(self) -> None:
        """Fail where the store cannot be changed, only read.

        Raises:
            DataContractError: an earlier version of this program built it.
        """
        if self.manifest.get("format_version", 1) < FORMAT_VERSION:
            raise DataContractError(
                f"{self.url} was built by an earlier version of clickformer and can only be read: build it again, in "
                "another run_dir"
            )

    @property
    def fingerprint(self) -> str:
        """What the store was made from and how."""
        return str(self.manifest["fingerprint"])

    @property
    def store_id(self) -> str:
        """What the store was first built from; the same in all its snapshots."""
        return str(self.manifest.get("store_id", self.fingerprint))

    @property
    def num_buckets(self) -> int:
        """Number of hash groups of users."""
        return int(self.manifest["num_buckets"])

    @property
    def num_users(self) -> int:
        """Users in all buckets."""
        return int(self.manifest["num_users"])

    @property
    def actions(self) -> list[str]:
        """Known actions; the first has index 2."""
        return list(self.manifest["actions"])

    @property
    def event_columns(self) -> dict[str, ColumnKind]:
        """Columns of the events besides item, action and time, by name, each with its kind."""
        return columns_of_store(self.manifest.get("carried", {}))

    @cached_property
    def item_table(self) -> pl.DataFrame:
        """item_id, count and item_index of every item the store ever saw, in the order of their numbers."""
        return read_vocabulary_table(self.url, self._table_name("vocabulary", VOCABULARY_NAME))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The items that have an index of their own."""
        known = known_items(self.item_table)
        return known if self.limits is None else Vocabulary(known.item_ids.slice(0, self.limits[0] - FIRST_INDEX))

    @cached_property
    def _indices(self) -> np.ndarray | None:
        return index_of_numbers(self.item_table)

    @property
    def max_events(self) -> int | None:
        """Newest events kept of a user; None: all."""
        return self.manifest.get("settings", {}).get("store", {}).get("max_events_per_user")

    @property
    def end_time(self) -> int:
        """Just after the last event of the log, microseconds since 1970 UTC: the moment users are scored at."""
        return (int(self.manifest["last_minute"]) + 1) * MINUTE_US

    def action_indices(self, names: list[str] | None) -> np.ndarray | None:
        """Indices of actions by name; None means every action and stays None.

        Raises:
            SettingsError: the log has no such action.
        """
        if names is None:
            return None
        unknown = sorted(set(names) - set(self.actions))
        if unknown:
            raise SettingsError(f"action {unknown[0]} is not in the log; it has {', '.join(self.actions)}")
        return np.array([self.actions.index(name) + FIRST_INDEX for name in names])

    def read_time_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Minutes since 1970 UTC that have events, ascending, and the number of events in each."""
        table = self.time_histogram
        return table[MINUTE].to_numpy(), table[COUNT].to_numpy()

    @property
    def time_histogram(self) -> pl.DataFrame:
        """minute and count, by minute."""
        name = self._table_name("time_histogram", TIME_HISTOGRAM_NAME)
        frame = pl.from_arrow(storage.read_parquet(storage.join(self.url, name)))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def read_sequences(self, bucket: int) -> Sequences:
        """Users and events of one bucket with the columns asked for, verified against the manifest."""
        further = dict.fromkeys((*self.columns, *self.numbers))
        rows = self.read_rows(bucket, columns=[*_SEQUENCE_COLUMNS, *further])
        sequences = to_sequences(rows, self.columns, self.numbers)
        if self._indices is not None:
            sequences = replace(sequences, item_index=self._indices[sequences.item_index])
        return sequences if self.limits is None else sequences.known_to(*self.limits)

    def read_rows(self, bucket: int, *, columns: list[str] | None = None) -> pa.Table:
        """One row per user of a bucket, as the store has them: `item_index` holds numbers of the item table.

        Args:
            bucket: which one.
            columns: those wanted, user_id and event_time among them; None: all.
        """
        return merge_parts(self.read_parts(bucket, columns=columns), self.max_events)

    def read_parts(self, bucket: int, *, columns: list[str] | None = None) -> list[pa.Table]:
        """Rows of each part of a bucket, the oldest first, verified against the manifest."""
        files = bucket_files(self.manifest["buckets"][str(bucket)])
        return [read_part(self.url, file, columns=columns) for file in files]

    def read_columns(self, bucket: int, columns: list[str]) -> list[pa.Table]:
        """Those of the columns that there are, of each part of a bucket, read without the others."""
        files = bucket_files(self.manifest["buckets"][str(bucket)])
        return [storage.read_parquet(storage.join(self.url, file["name"]), columns=columns) for file in files]

    def read_inputs(self) -> dict[str, int]:
        """Files of the log that are in the store, with their bytes."""
        table = storage.read_parquet(storage.join(self.url, self._table_name("inputs", "")))
        return dict(zip(table.column("file").to_pylist(), table.column("num_bytes").to_pylist(), strict=True))

    def rows_of_users(self, bucket: int, user_ids: pa.Array) -> pa.Table:
        """Rows of some users of a bucket as they stand in its parts, the oldest part first."""
        parts = self.read_parts(bucket)
        return pa.concat_tables([part.filter(_is_in(part.column(USER_ID), user_ids)) for part in parts])

    def read_items(self, columns: list[str] | None = None) -> pa.Table:
        """What the shop knows of the items, in the order of the vocabulary: row r is the item of index r + 2.

        Args:
            columns: those wanted, of those that there are; None: all.

        Raises:
            SettingsError: the store was built without an item table.
        """
        self.check_items()
        url = storage.join(self.url, self.manifest["items"]["file"]["name"])
        table = storage.read_parquet(url, columns=columns)
        numbers = self.item_table.with_row_index("row").filter(pl.col(ITEM_INDEX) >= FIRST_INDEX).sort(ITEM_INDEX)
        rows = numbers["row"].to_numpy()[: len(self.vocabulary.item_ids)].astype(np.int64)
        return table.take(pa.array(rows))

    def check_items(self) -> None:
        """Fail where the store was built without an item table, with a SettingsError."""
        if not self.manifest.get("items"):
            raise SettingsError(f"{self.url} has no item table; give items.path when it is built")

    def read_user_table(self, bucket: int, user_ids: pa.Array, *, include_sensitive: bool = False) -> pa.Table:
        """What the shop knows of users of a bucket, in their order: in_table, and attributes or null.

        Args:
            bucket: of the users.
            user_ids: as `read_sequences` has them.
            include_sensitive: whether to read attributes marked as sensitive too.

        Raises:
            SettingsError: the store was built without a user table.
        """
        if not self.manifest.get("users"):
            raise SettingsError(f"{self.url} has no user table; give users.path when it is built")
        table = read_bucket(self.url, self.manifest["users"], bucket)
        return visible(align_users(user_ids, table), include_sensitive=include_sensitive)

    def _table_name(self, table: str, before: str) -> str:
        """Name of a table's file; `before` is what format 1 called it."""
        return self.manifest.get("tables", {}).get(table, {"name": before})["name"]


def _is_in(values: pa.ChunkedArray, chosen: pa.Array) -> pa.ChunkedArray:
    return pc.call_function("is_in", [values], pc.SetLookupOptions(chosen.cast(values.type)))


def write_time_histogram(folder: str, histogram: pl.DataFrame, name: str = TIME_HISTOGRAM_NAME) -> WrittenFile:
    """Write minute and count, by minute, and say what was written."""
    return storage.write_parquet(storage.join(folder, name), histogram.sort(MINUTE).to_arrow())
