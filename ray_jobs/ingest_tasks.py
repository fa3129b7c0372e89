"""What the tasks of a build or an append do: logs become runs, runs become parts of buckets.

The first pass of Ray Data reads the log once: each piece of it becomes a run, encoded and laid out by bucket, bad rows
beside it. The second merges the runs bucket by bucket, one row per user. A run or bucket whose mark stands is not done
again. Module of its own because Ray pickles what stands in an entry module by value.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray

from data_io import storage
from data_io.arrival import MEETING_COLUMNS, count_arrival, drop_known, may_repeat, meet, users_that_meet
from data_io.buckets import BucketWriter
from data_io.config import EventSettings
from data_io.events import part_events, quarantine_table, read_fragment
from data_io.merging import EVENT_KEY, INDEX_COLUMNS, BucketFacts, merge_bucket
from data_io.privacy import PseudonymKey, Tombstones, pseudonymise
from data_io.quality.behaviour import profile_sequences
from data_io.quality.profile import profile_rows
from data_io.quality.report import count_reasons
from data_io.runs import (
    RunPlan,
    RunReader,
    action_indices_of,
    build_run,
    item_indices_of,
    plan_runs,
    read_marks,
    translate,
    write_run,
)
from data_io.scan import EventLog
from data_io.schema import EVENT_ID, ITEM_ID, USER_ID, store_schema
from data_io.store import QUARANTINE, SequenceStore
from data_io.vocabulary import Vocabulary
from ray_jobs.bucket_map import map_tasks, spans_of
from ray_jobs.progress import Progress

PLAIN_COLUMNS = (USER_ID,)


@dataclass(frozen=True, slots=True)
class PseudonymSource:
    """Where each worker finds the key of pseudonyms, so that the key itself travels nowhere."""

    variable: str | None
    key_id: str | None

    def load(self) -> PseudonymKey | None:
        """The key of this node, checked to be the one of the store; None where ids stay as they are."""
        if self.variable is None or self.key_id is None:
            return None
        key = PseudonymKey.from_environment(self.variable)
        key.check(self.key_id, "the store")
        return key


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """One log on its way into a store; what every task of both passes needs to know."""

    job: str
    log_kinds: dict[str, str]
    carried: dict[str, str]
    events: EventSettings
    latest: Any
    writer: BucketWriter
    base: SequenceStore | None
    """The snapshot that is added to; None: the store is built."""
    num_buckets: int
    max_events: int | None
    rows_per_run: int
    key: PseudonymSource
    tombstones: Tombstones
    is_small: bool
    """Whether the driver does it all on its threads, because starting tasks would take longer."""

    @property
    def runs_url(self) -> str:
        """Folder of the runs, which depend on how the log is cut."""
        return storage.join(self.writer.work_url, f"runs-{self.rows_per_run}")

    @property
    def schema(self) -> pa.Schema:
        """Schema of the store."""
        user_kind = self.log_kinds[USER_ID] if self.key.variable is None else "string"
        schema = store_schema(user_kind, self.carried)
        key = pa.field(EVENT_KEY, pa.large_list(pa.int64()), nullable=False)
        return schema.append(key) if EVENT_ID in self.log_kinds else schema

    def reader(self, mark: dict[str, Any]) -> RunReader:
        """A run, opened."""
        return RunReader(storage.join(self.runs_url, mark["file"]), self.num_buckets)

    def encode(self, plan: RunPlan) -> dict[str, Any]:
        """Read a piece of the log, put its bad rows aside and its run in place; returns the run's mark."""
        good_parts, bad_parts = [], []
        for fragment in plan.fragments:
            good, bad = part_events(read_fragment(fragment, self.log_kinds, self.events), self.events, self.latest)
            good_parts.append(good)
            bad_parts.append(quarantine_table(bad, fragment))
        good, num_good_forgotten = self.guard(pa.concat_tables(good_parts))
        bad, num_bad_forgotten = self.guard(pa.concat_tables(bad_parts))
        quarantine = []
        if bad.num_rows:
            name = f"{QUARANTINE}/{self.writer.fingerprint}-{self.rows_per_run}-{plan.number:06d}.parquet"
            written = storage.write_parquet(storage.join(self.writer.url, name), bad)
            quarantine = [asdict(written) | {"name": name}]
        encoded = build_run(good, self.num_buckets, self.max_events, drop_duplicates=self.events.drop_duplicates)
        facts = {
            "reasons": count_reasons(bad),
            "quarantine": quarantine,
            "num_forgotten": num_good_forgotten + num_bad_forgotten,
            "profile": profile_rows(good, bad).to_json(),
        }
        return write_run(self.runs_url, plan, encoded, facts)

    def guard(self, rows: pa.Table) -> tuple[pa.Table, int]:
        """Rows with pseudonyms, if there is a key, and without forgotten users; how many rows those had."""
        return self.tombstones.drop(pseudonymise(rows, self.key.load()))


def encode_runs(ingest: Ingest, log: EventLog) -> list[dict[str, Any]]:
    """The first pass: marks of all runs of a log, in its order; only the missing ones are made."""
    plans = plan_runs(log.fragments, ingest.rows_per_run)
    done = read_marks(ingest.runs_url)
    missing = [plan for plan in plans if plan.number not in done]
    progress = Progress(f"{ingest.job}: reading", log.num_rows, "rows")
    progress.resume_at(sum(mark["num_rows"] for mark in done.values()))
    for mark in map_tasks(ingest.encode, missing, here=ingest.is_small):
        done[mark["number"]] = mark
        progress.advance(mark["num_rows"])
    return [done[plan.number] for plan in plans]


class BucketMerger:
    """Makes a part of one bucket after the other; what every task of the second pass needs to know."""

    def __init__(
        self, ingest: Ingest, runs: list[dict[str, Any]], item_table: pl.DataFrame, actions: list[str]
    ) -> None:
        self.ingest = ingest
        self.runs = runs
        self.actions = actions
        items = Vocabulary(item_table.to_arrow()[ITEM_ID].combine_chunks())
        self.numbers = _item_numbers([ingest.reader(mark) for mark in runs], items, here=ingest.is_small)

    def merge_span(self, span: range) -> list[dict[str, Any]]:
        """Write a part of each bucket of a span; returns their marks."""
        pieces = [self.ingest.reader(mark).read_buckets(span.start, span.stop) for mark in self.runs]
        marks = []
        for bucket in span:
            found = [
                self._translate(mark, piece[bucket - span.start])
                for mark, piece in zip(self.runs, pieces, strict=True)
                if piece[bucket - span.start] is not None
            ]
            marks.append(self._merge(bucket, found))
        return marks

    def _translate(self, mark: dict[str, Any], events: pa.Table | None) -> pa.Table:
        assert events is not None
        numbers = self.numbers[self.ingest.reader(mark)]
        items: Any = numbers if isinstance(numbers, np.ndarray) else ray.get(numbers)
        return translate(events, items, action_indices_of(mark["actions"], self.actions))

    def _merge(self, bucket: int, found: list[pa.Table]) -> dict[str, Any]:
        ingest = self.ingest
        if found:
            table, facts = merge_bucket(
                pa.concat_tables(found),
                ingest.schema,
                ingest.max_events,
                drop_duplicates=ingest.events.drop_duplicates,
            )
        else:
            table = ingest.schema.empty_table()
            facts = BucketFacts(num_users=0, num_events=0, num_duplicates=0, num_truncated=0)
        if ingest.base is not None:
            table, facts = self._arrive(ingest.base, bucket, table, facts)
            return ingest.writer.commit(bucket, ingest.num_buckets, table, asdict(facts), remember=not ingest.is_small)
        profile = {"profile": profile_sequences(table).to_json()}  # of whole sequences only
        return ingest.writer.commit(bucket, ingest.num_buckets, table, asdict(facts) | profile)

    def _arrive(
        self, base: SequenceStore, bucket: int, table: pa.Table, merged: BucketFacts
    ) -> tuple[pa.Table, BucketFacts]:
        """What of a part is new to the bucket, and the facts of it."""
        known_users = base.read_columns(bucket, INDEX_COLUMNS)
        met, num_known = meet(known_users, table), 0
        if self.ingest.events.drop_duplicates and may_repeat(met, by_id=EVENT_KEY in table.column_names):
            users = users_that_meet(table, pa.concat_tables(base.read_columns(bucket, MEETING_COLUMNS)))
            if len(users):
                table, num_known = drop_known(table, base.rows_of_users(bucket, users))
                met = meet(known_users, table)
        num_users, num_events, num_truncated = count_arrival(met, self.ingest.max_events)
        return table, BucketFacts(
            num_users=num_users,
            num_events=num_events,
            num_duplicates=merged.num_duplicates + num_known,
            num_truncated=merged.num_truncated + num_truncated,
        )


def _item_numbers(readers: list[RunReader], items: Vocabulary, *, here: bool) -> dict[RunReader, Any]:
    """What the item codes of each run mean: arrays here, or in the object store, where workers of a node share them."""
    if here:
        return {reader: item_indices_of(reader.read_items(), items) for reader in readers}
    shared = ray.put(items)
    numbers = {reader: _number_items.remote(reader, shared) for reader in readers}
    ray.wait(list(numbers.values()), num_returns=len(numbers), fetch_local=False)
    return numbers


@ray.remote
def _number_items(reader: RunReader, items: Vocabulary) -> np.ndarray:
    return item_indices_of(reader.read_items(), items)


def merge_buckets(merger: BucketMerger, buckets: list[int]) -> list[dict[str, Any]]:
    """The second pass: marks of the new parts of those buckets; only the missing ones are made."""
    done = merger.ingest.writer.committed(merger.ingest.num_buckets)
    progress = Progress(f"{merger.ingest.job}: buckets", len(buckets), "buckets")
    progress.resume_at(len(done))
    spans = spans_of([bucket for bucket in buckets if bucket not in done], here=merger.ingest.is_small)
    for marks in map_tasks(merger.merge_span, spans, here=merger.ingest.is_small):
        for mark in marks:
            done[mark["bucket"]] = mark
            progress.advance()
    return [done[bucket] for bucket in buckets]


def touched_buckets(ingest: Ingest, runs: list[dict[str, Any]]) -> list[int]:
    """Buckets that have events in any of the runs; all of them where a store is built."""
    if ingest.base is None:
        return list(range(ingest.num_buckets))
    touched = np.zeros(ingest.num_buckets, bool)
    for mark in runs:
        touched |= ingest.reader(mark).buckets_with_rows()
    return np.flatnonzero(touched).tolist()
