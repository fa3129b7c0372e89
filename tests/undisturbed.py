"""A log in an old and a new part, the stores that undisturbed jobs make of it, and what a store holds.

The log is dirty: rows without a user, repeated rows, users longer than the store keeps, and every file has users of
every other, so that each job has all of its work to do.
"""

import importlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.config import SyntheticSettings
from data_io.merging import explode
from data_io.schema import ACTION, ACTION_INDEX, FIRST_INDEX, ITEM_ID, ITEM_INDEX, USER_ID
from data_io.snapshots import MANIFEST_NAME, SNAPSHOTS, file_names
from data_io.store import QUALITY_PAGE_NAME, QUALITY_REPORT_NAME, SequenceStore
from data_io.synthetic import generate_events
from data_io.vocabulary import Vocabulary
from ray_jobs.config import Settings

NUM_FILES = 16
BEFORE = {"build_sequences": None, "append": "build_sequences", "compact": "append", "forget": "append"}
"""What a store has behind it when a job begins."""
FORGOTTEN = ("u000051", "u000093", "u000153")
"""Users that `forget` is to erase."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a store holds and counts."""

    content: pl.DataFrame
    counts: dict[str, Any]

    @classmethod
    def of(cls, url: str) -> "Outcome":
        """The outcome that readers of a store see now."""
        return cls(content_of(url), counts_of(url))


def check_outcome(url: str, expected: Outcome) -> None:
    """Fail where readers of a store do not see what an undisturbed job leaves."""
    found = Outcome.of(url)
    assert found.content.equals(expected.content), "an event was lost, doubled or changed"
    assert found.counts == expected.counts, f"{found.counts} counted, {expected.counts} expected"


def check_finished(url: str, expected: Outcome) -> None:
    """Fail where a store is not what an undisturbed job leaves, file by file."""
    check_outcome(url, expected)
    strays = stray_files(url)
    assert not strays, f"files that nothing names: {strays}"
    assert storage.exists(storage.join(url, QUALITY_REPORT_NAME)), "no report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """A log in an old and a new part, and what undisturbed jobs make of it."""

    place: Path
    outcomes: dict[str, Outcome]
    """By the job that was the last."""

    @classmethod
    def made_in(cls, place: Path) -> "Stores":
        """The stores, built, appended to and compacted in this process's session."""
        write_dirty_log(place, NUM_FILES)
        (place / "forget.txt").write_text("".join(f"{user}\n" for user in FORGOTTEN))
        stores = cls(place=place, outcomes={})
        for name in BEFORE:
            settings = stores.begin(name, place / name, 100_000)
            importlib.import_module(f"ray_jobs.{name}").run(settings)
            stores.outcomes[name] = Outcome.of(settings.store_url)
        return stores

    def settings(self, run_dir: Path, job: str, rows_per_run: int) -> Settings:
        """Settings of a job in a run folder."""
        return Settings.model_validate(
            {
                "run_dir": str(run_dir),
                "events": {
                    "path": str(self.place / ("old" if job == "build_sequences" else "new")),
                    "max_bad_share": 0.1,
                },
                "store": {"num_buckets": 10, "max_events_per_user": 30, "rows_per_run": rows_per_run},
                "forget": {"users": str(self.place / "forget.txt")},
            }
        )

    def begin(self, job: str, run_dir: Path, rows_per_run: int) -> Settings:
        """Settings of a job in a run folder that stands as it should before the job."""
        before = BEFORE[job]
        if before:
            shutil.copytree(self.place / before, run_dir)
        return self.settings(run_dir, job, rows_per_run)

    def around(self, job: str) -> tuple[Outcome | None, Outcome]:
        """Outcomes before a job and after it."""
        before = BEFORE[job]
        return self.outcomes[before] if before else None, self.outcomes[job]


def write_dirty_log(folder: Path, num_files: int) -> None:
    """A log, half of its files old and half new, of which every file has users of every other.

    Some rows are without a user and some repeat others, in the same file and in another.
    """
    events = generate_events(SyntheticSettings(num_users=160, num_items=80, num_days=40, mean_events_per_user=20))
    row = np.arange(events.num_rows)
    users = pa.array(events.column(USER_ID).to_numpy(zero_copy_only=False), mask=row % 97 == 5)
    events = events.set_column(events.column_names.index(USER_ID), USER_ID, users)
    for part in range(num_files):
        rows = row[(row % num_files == part) | (row % 61 == part)]
        rows = np.append(rows, rows[:3])
        name = f"{'new' if part % 2 else 'old'}/part-{part:02d}.parquet"
        storage.write_parquet(str(folder / name), events.take(pa.array(rows)))


def content_of(url: str) -> pl.DataFrame:
    """Every event of a store under its own names, user by user, each one's events in order."""
    store = SequenceStore.open(url)
    items = Vocabulary(store.item_table.to_arrow().column(ITEM_ID).combine_chunks())
    actions = pl.Series(ACTION, [None] * FIRST_INDEX + store.actions, pl.String)
    tables = [explode(store.read_rows(bucket)) for bucket in range(store.num_buckets)]
    frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
    names = pl.Series(ITEM_ID, items.decode(frame[ITEM_INDEX].to_numpy()))
    frame = frame.with_columns(names, actions[frame[ACTION_INDEX].cast(pl.Int64)])
    return frame.drop(ITEM_INDEX, ACTION_INDEX).sort(USER_ID, maintain_order=True)


def counts_of(url: str) -> dict[str, Any]:
    """What the manifest of a store counts."""
    manifest = SequenceStore.open(url).manifest
    counts = {name: value for name, value in manifest.items() if name.startswith("num_")}
    return counts | {"actions": manifest["action_counts"], "reasons": manifest["reasons"]}


def stray_files(url: str) -> list[str]:
    """Files below a store that no snapshot names, beside its locks and what is made for people to look at."""
    snapshots = [storage.read_json(file) for file in storage.list_files(storage.join(url, SNAPSHOTS))]
    known = {name for manifest in snapshots for name in file_names(manifest)}
    known |= {MANIFEST_NAME, QUALITY_REPORT_NAME, QUALITY_PAGE_NAME}
    known |= {f"{SNAPSHOTS}/{manifest['snapshot']:08d}.json" for manifest in snapshots}
    return [name for name in storage.list_tree(url) if name not in known and not re.fullmatch(r"_lock/\d+\.json", name)]


def tree_of(url: str) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {name: storage.read_bytes(storage.join(url, name)) for name in storage.list_tree(url)}
