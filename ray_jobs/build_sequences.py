"""The job that turns an event log into the sequence store.

Two passes of Ray Data. The first reads the log once: each part of it becomes a run, encoded and laid out by bucket, bad
rows beside it. The second merges the runs bucket by bucket, one row per user. A run or bucket whose mark stands is not
done again. Measured against Ray Data's own shuffle and against Polars in tests/benchmarks/build_sequences.py.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("build_sequences")

import pickle
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint, is_published
from data_io.config import EventSettings, StoreSettings
from data_io.events import EventLog, latest_time, part_events, quarantine_table, read_fragment, scan_log
from data_io.quality import LogSurvey, RunSurvey, count_reasons, describe, quality_report
from data_io.runs import (
    RunPlan,
    action_indices_of,
    build_run,
    delete_runs,
    item_indices_of,
    plan_runs,
    read_marks,
    read_run_bucket,
    read_run_items,
    read_run_minutes,
    translate,
    write_run,
)
from data_io.schema import EVENT_TIME, FIRST_INDEX, ITEM_ID, ITEM_INDEX, USER_ID, DataContractError, store_schema
from data_io.sequences import merge_bucket
from data_io.store import QUALITY_REPORT_NAME, QUARANTINE, SequenceStore, write_time_histogram
from data_io.vocabulary import Vocabulary, build_vocabulary, write_vocabulary
from ray_jobs.bucket_map import map_buckets, map_rows
from ray_jobs.config import Settings
from ray_jobs.progress import Progress, say

_DECILES = np.linspace(0, 1, 11)
_ROWS_PER_BUCKET, _LEAST_BUCKETS, _MOST_BUCKETS = 250_000, 8, 65_536


def run(settings: Settings) -> SequenceStore:
    """Build the store of a run, or what is missing of it."""
    url = storage.absolute(settings.store_url)
    log = scan_log(storage.absolute(settings.events_url), settings.events)
    num_buckets = settings.store.num_buckets or derive_num_buckets(log.num_rows)
    mark = _fingerprint(settings, log, num_buckets)
    writer = BucketWriter(url=url, fingerprint=mark, plain=(USER_ID, ITEM_INDEX, EVENT_TIME))
    if is_published(url, writer.fingerprint):
        say(f"build_sequences: {url} is already built")
        return SequenceStore.open(url)
    writer.committed(num_buckets)
    say(f"build_sequences: {log.num_rows:,} rows in {len(log.inputs):,} files")
    with ray_session(settings.cluster):
        encoder = RunEncoder(log, settings.events, settings.store, writer, num_buckets)
        runs = _encode_runs(log, settings.store, encoder)
        found = _add_up(url, runs)
        try:
            found.check(settings.events_url, settings.events.max_bad_share)
        except DataContractError:
            delete_runs(url)  # so that a mended log, or another share, may be built in the same place
            raise
        items = build_vocabulary(found.items, 1)
        vocabulary = build_vocabulary(found.items, settings.store.min_item_count)
        vocabulary_hash = write_vocabulary(url, vocabulary)
        write_time_histogram(url, found.minutes)
        merger = BucketMerger(
            encoder,
            runs,
            Vocabulary(items.to_arrow()[ITEM_ID].combine_chunks()),
            vocabulary.height + FIRST_INDEX,
            sorted(found.actions),
            log,
        )
        marks = _merge_buckets(merger, num_buckets)
    report = quality_report(found, marks, vocabulary.height)
    storage.write_json(storage.join(url, QUALITY_REPORT_NAME), report)
    facts = {"num_buckets": num_buckets, "actions": sorted(found.actions), "carried": list(log.carried)}
    settings_used = {"events": settings.events.model_dump(mode="json"), "store": settings.store.model_dump()}
    writer.publish(marks, facts | report | {"vocabulary_sha256": vocabulary_hash, "settings": settings_used})
    delete_runs(url)
    say(f"build_sequences: {describe(report)}")
    say(f"build_sequences: {report['num_users']:,} users in {url}; next: clickformer pretrain")
    return SequenceStore.open(url)


def derive_num_buckets(num_rows: int) -> int:
    """Buckets for a log of this size: enough to spread, each small enough for one worker's memory."""
    return min(max(_LEAST_BUCKETS, -(-num_rows // _ROWS_PER_BUCKET)), _MOST_BUCKETS)


def _fingerprint(settings: Settings, log: EventLog, num_buckets: int) -> str:
    store = settings.store.model_dump(exclude={"rows_per_run"}) | {"num_buckets": num_buckets}
    return fingerprint({"events": settings.events.model_dump(), "store": store, "inputs": log.inputs})


class RunEncoder:
    """Encodes one run after the other; what every task of the first pass needs to know."""

    def __init__(
        self, log: EventLog, events: EventSettings, store: StoreSettings, writer: BucketWriter, num_buckets: int
    ) -> None:
        self.kinds = log.kinds
        self.events = events
        self.latest: datetime = latest_time(events)
        self.url, self.fingerprint = writer.url, f"{writer.fingerprint}-{store.rows_per_run}"
        self.writer = writer
        self.num_buckets = num_buckets
        self.max_events = store.max_events_per_user

    def encode(self, plan: RunPlan) -> dict[str, Any]:
        """Read a part of the log, put its bad rows aside and its run in place; returns the run's mark."""
        good_parts, bad_parts = [], []
        for fragment in plan.fragments:
            good, bad = part_events(
                read_fragment(fragment, self.kinds, self.events), self.events.earliest_time, self.latest
            )
            good_parts.append(good)
            bad_parts.append(quarantine_table(bad, fragment))
        bad = pa.concat_tables(bad_parts)
        if bad.num_rows:
            storage.write_parquet(storage.join(self.url, QUARANTINE, f"part-{plan.number:06d}.parquet"), bad)
        good = pa.concat_tables(good_parts)
        encoded = build_run(good, self.num_buckets, self.max_events, drop_duplicates=self.events.drop_duplicates)
        return write_run(self.url, plan, encoded, {"fingerprint": self.fingerprint, "reasons": count_reasons(bad)})


def _encode_runs(log: EventLog, store: StoreSettings, encoder: RunEncoder) -> list[dict[str, Any]]:
    plans = plan_runs(log.fragments, store.rows_per_run)
    done = read_marks(encoder.url, encoder.fingerprint)
    if not done:
        storage.delete_folder(storage.join(encoder.url, QUARANTINE))  # of a build that was refused
    missing = [{"plan": pickle.dumps(plan)} for plan in plans if plan.number not in done]
    progress = Progress("build_sequences: reading", log.num_rows, "rows")
    progress.resume_at(sum(mark["num_rows"] for mark in done.values()))

    def encode(row: dict[str, Any]) -> dict[str, bytes]:
        return {"mark": pickle.dumps(encoder.encode(pickle.loads(row["plan"])))}

    for row in map_rows(missing, encode):
        mark = pickle.loads(row["mark"])
        done[mark["number"]] = mark
        progress.advance(mark["num_rows"])
    return [done[plan.number] for plan in plans]


def _add_up(url: str, runs: list[dict[str, Any]]) -> LogSurvey:
    found = LogSurvey()
    for mark in runs:
        counts = {name: mark[name] for name in ("num_rows", "reasons", "actions", "num_duplicates", "num_truncated")}
        found.add(
            RunSurvey(
                items=read_run_items(url, mark["files"]["items"]["name"]), minutes=read_run_minutes(url, mark), **counts
            )
        )
    return found


class BucketMerger:
    """Merges one bucket after the other; what every task of the second pass needs to know."""

    def __init__(
        self,
        encoder: RunEncoder,
        runs: list[dict[str, Any]],
        items: Vocabulary,
        vocabulary_size: int,
        actions: list[str],
        log: EventLog,
    ) -> None:
        self.encoder = encoder
        self.runs = runs
        self.items = ray.put(items)
        self.vocabulary_size = vocabulary_size
        self.actions = actions
        self.schema = store_schema(log.kinds[USER_ID], log.carried)

    def merge(self, bucket: int) -> dict[str, Any]:
        """Write the rows of a bucket from its part of every run; returns its mark."""
        parts = [self._read(mark, bucket) for mark in self.runs]
        found = [part for part in parts if part is not None]
        writer, num_buckets = self.encoder.writer, self.encoder.num_buckets
        if not found:
            facts = {"num_users": 0, "num_events": 0, "num_duplicates": 0, "num_truncated": 0, "length_deciles": []}
            return writer.commit(bucket, num_buckets, self.schema.empty_table(), facts)
        table, merged = merge_bucket(
            pa.concat_tables(found),
            self.schema,
            self.vocabulary_size,
            self.encoder.max_events,
            drop_duplicates=self.encoder.events.drop_duplicates,
        )
        lengths = np.diff(table.column(ITEM_INDEX).combine_chunks().offsets.to_numpy())
        deciles = {"length_deciles": np.quantile(lengths, _DECILES).tolist()}
        return writer.commit(bucket, num_buckets, table, asdict(merged) | deciles)

    def _read(self, mark: dict[str, Any], bucket: int) -> pa.Table | None:
        events = read_run_bucket(self.encoder.url, mark, bucket)
        if events is None:
            return None
        items = _item_indices(self.encoder.url, mark["files"]["items"]["name"], self.items)
        return translate(events, items, action_indices_of(mark["actions"], self.actions))


@lru_cache(maxsize=1_024)
def _item_indices(url: str, file: str, all_items: "ray.ObjectRef[Vocabulary]") -> np.ndarray:
    """What a run's item numbers mean, kept from one bucket to the next of the same worker."""
    items = read_run_items(url, file).to_arrow().column(ITEM_ID).combine_chunks()
    return item_indices_of(items, ray.get(all_items))


def _merge_buckets(merger: BucketMerger, num_buckets: int) -> list[dict[str, Any]]:
    done = merger.encoder.writer.committed(num_buckets)
    progress = Progress("build_sequences: buckets", num_buckets, "buckets")
    progress.resume_at(len(done))

    def merge(row: dict[str, Any]) -> dict[str, bytes]:
        return {"mark": pickle.dumps(merger.merge(int(row["bucket"])))}

    for row in map_buckets([bucket for bucket in range(num_buckets) if bucket not in done], merge):
        mark = pickle.loads(row["mark"])
        done[mark["bucket"]] = mark
        progress.advance()
    return [done[bucket] for bucket in range(num_buckets)]
