"""The sequence store: a folder of buckets with a manifest, a vocabulary and a histogram of time.

    store/_MANIFEST.json  vocabulary.parquet  time_histogram.parquet  quality_report.json
          bucket=00000/part-*.parquet ...  quarantine/part-*.parquet

Invariant: what the manifest says (users, events, fingerprint, actions) is true of the buckets it names.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from data_io import storage
from data_io.buckets import read_bucket, read_manifest
from data_io.config import SettingsError
from data_io.schema import ACTION_INDEX, COUNT, EVENT_TIME, FIRST_INDEX, ITEM_INDEX, USER_ID
from data_io.sequences import Sequences, to_sequences
from data_io.vocabulary import Vocabulary, read_vocabulary

TIME_HISTOGRAM_NAME = "time_histogram.parquet"
QUALITY_REPORT_NAME = "quality_report.json"
QUARANTINE = "quarantine"
MINUTE = "minute"
MINUTE_US = 60_000_000
_SEQUENCE_COLUMNS = [USER_ID, ITEM_INDEX, ACTION_INDEX, EVENT_TIME]


@dataclass(frozen=True)
class SequenceStore:
    """A published store, opened for reading; cheap to pickle and to open on every worker."""

    url: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, url: str) -> "SequenceStore":
        """The store at a URL.

        Raises:
            DataContractError: no store is published there.
        """
        return cls(url, read_manifest(url, made_by="clickformer build_sequences"))

    @property
    def fingerprint(self) -> str:
        """What the store was made from and how."""
        return str(self.manifest["fingerprint"])

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

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The item vocabulary."""
        return read_vocabulary(self.url)

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
        table = storage.read_parquet(storage.join(self.url, TIME_HISTOGRAM_NAME))
        return table.column(MINUTE).to_numpy(), table.column(COUNT).to_numpy()

    def read_sequences(self, bucket: int) -> Sequences:
        """Users and events of one bucket, verified against the manifest."""
        return to_sequences(read_bucket(self.url, self.manifest, bucket, columns=_SEQUENCE_COLUMNS))


def write_time_histogram(folder: str, histogram: pl.DataFrame) -> None:
    """Write minute and count, by minute."""
    storage.write_parquet(storage.join(folder, TIME_HISTOGRAM_NAME), histogram.sort(MINUTE).to_arrow())
