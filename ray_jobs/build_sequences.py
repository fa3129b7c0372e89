"""The job that turns an event log into the sequence store.

Two passes of Ray Data over the log: a survey (bad rows to quarantine, items and times counted), then events encoded,
exchanged by bucket and written, one row per user. A bucket whose mark stands is not done again.
"""

import pickle
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint, is_published
from data_io.config import EventSettings
from data_io.events import EventLog, Fragment, latest_time, part_events, quarantine_table, read_fragment, scan_log
from data_io.quality import LogSurvey, describe, quality_report, survey
from data_io.schema import BUCKET, ITEM_INDEX, USER_ID, store_schema
from data_io.sequences import build_bucket, encode_events
from data_io.store import QUALITY_REPORT_NAME, QUARANTINE, SequenceStore, write_time_histogram
from data_io.vocabulary import build_vocabulary, read_vocabulary, write_vocabulary
from ray_jobs.cli import run_job
from ray_jobs.config import Settings
from ray_jobs.progress import Progress, say

_DECILES = np.linspace(0, 1, 11)


class LogReader:
    """Reads fragments of one log; what every task of a build needs to know of it."""

    def __init__(self, log: EventLog, settings: EventSettings, latest: datetime) -> None:
        self.kinds = log.kinds
        self.settings = settings
        self.latest = latest

    def read(self, batch: dict[str, np.ndarray]) -> tuple[Fragment, pa.Table, pa.Table]:
        """The fragment a batch of one row names, with its good and its bad rows."""
        fragment = Fragment(
            **{name: values[0].item() if hasattr(values[0], "item") else values[0] for name, values in batch.items()}
        )
        events = read_fragment(fragment, self.kinds, self.settings)
        return fragment, *part_events(events, self.settings.earliest_time, self.latest)


def run(settings: Settings) -> SequenceStore:
    """Build the store of a run, or what is missing of it."""
    url = storage.absolute(settings.store_url)
    log = scan_log(storage.absolute(settings.events_url), settings.events)
    writer = BucketWriter(url=url, fingerprint=_fingerprint(settings, log))
    if is_published(url, writer.fingerprint):
        say(f"build_sequences: {url} is already built")
        return SequenceStore.open(url)
    writer.committed(settings.store.num_buckets)
    say(f"build_sequences: {log.num_rows:,} rows in {len(log.inputs):,} files")
    with ray_session(settings.cluster):
        reader = LogReader(log, settings.events, latest_time(settings.events))
        found = _survey_log(log, reader, url)
        found.check(settings.events_url, settings.events.max_bad_share)
        vocabulary_hash = write_vocabulary(url, build_vocabulary(found.items, settings.store.min_item_count))
        write_time_histogram(url, found.minutes)
        marks = _write_buckets(log, reader, writer, sorted(found.actions), settings)
    report = quality_report(found, marks, len(read_vocabulary(url).item_ids))
    storage.write_json(storage.join(url, QUALITY_REPORT_NAME), report)
    facts = {"num_buckets": settings.store.num_buckets, "actions": sorted(found.actions), "carried": list(log.carried)}
    settings_used = {"events": settings.events.model_dump(mode="json"), "store": settings.store.model_dump()}
    writer.publish(marks, facts | report | {"vocabulary_sha256": vocabulary_hash, "settings": settings_used})
    say(f"build_sequences: {describe(report)}")
    say(f"build_sequences: {report['num_users']:,} users in {url}; next: clickformer pretrain")
    return SequenceStore.open(url)


def _fingerprint(settings: Settings, log: EventLog) -> str:
    used = {"events": settings.events.model_dump(), "store": settings.store.model_dump(), "inputs": log.inputs}
    return fingerprint(used)


def _fragments(log: EventLog) -> "ray.data.Dataset":
    rows = [asdict(fragment) for fragment in log.fragments]
    blocks = min(len(rows), 4 * int(ray.cluster_resources().get("CPU", 1)))
    return ray.data.from_items(rows, override_num_blocks=blocks)


def _survey_log(log: EventLog, reader: LogReader, url: str) -> LogSurvey:
    def survey_fragment(batch: Any) -> dict[str, list[bytes]]:
        fragment, good, bad = reader.read(batch)
        if bad.num_rows:
            name = f"part-{fragment.first_position:015d}.parquet"
            storage.write_parquet(storage.join(url, QUARANTINE, name), quarantine_table(bad, fragment))
        return {"survey": [pickle.dumps(survey(good, bad))]}

    found = LogSurvey()
    progress = Progress("build_sequences: survey", log.num_rows, "rows")
    for row in _fragments(log).map_batches(survey_fragment, batch_size=1).iter_rows():
        part = pickle.loads(row["survey"])
        found.add(part)
        progress.advance(part.num_rows)
    return found


def _write_buckets(
    log: EventLog, reader: LogReader, writer: BucketWriter, actions: list[str], settings: Settings
) -> list[dict[str, Any]]:
    num_buckets = settings.store.num_buckets
    done = writer.committed(num_buckets)
    missing = np.setdiff1d(np.arange(num_buckets), list(done))
    schema = store_schema(log.kinds[USER_ID], log.carried)
    vocabulary = ray.put(read_vocabulary(writer.url))
    drop_duplicates = settings.events.drop_duplicates

    def encode(batch: Any) -> pa.Table:
        fragment, good, _ = reader.read(batch)
        encoded = encode_events(good, fragment.first_position, ray.get(vocabulary), actions, num_buckets)
        wanted = np.isin(encoded.column(BUCKET).to_numpy(), missing)
        return encoded if wanted.all() else encoded.filter(pa.array(wanted))

    def write(events: pa.Table) -> dict[str, list[bytes]]:
        bucket = events.column(BUCKET)[0].as_py()
        return {"mark": [pickle.dumps(_commit(writer, bucket, num_buckets, events, schema, drop_duplicates))]}

    progress = Progress("build_sequences: buckets", num_buckets, "buckets")
    progress.resume_at(len(done))
    exchanged = (
        _fragments(log).map_batches(encode, batch_size=1).groupby(BUCKET, num_partitions=_partitions(num_buckets))
    )
    for row in exchanged.map_groups(write, batch_format="pyarrow").iter_rows():
        mark = pickle.loads(row["mark"])
        done[mark["bucket"]] = mark
        progress.advance()
    for bucket in set(range(num_buckets)) - set(done):
        facts = {"num_users": 0, "num_events": 0, "num_duplicates": 0, "length_deciles": []}
        done[bucket] = writer.commit(bucket, num_buckets, schema.empty_table(), facts)
    return [done[bucket] for bucket in range(num_buckets)]


def _partitions(num_buckets: int) -> int:
    """Partitions of the exchange: enough for every core, no more than buckets."""
    return min(num_buckets, 2 * int(ray.cluster_resources().get("CPU", 1)))


def _commit(
    writer: BucketWriter, bucket: int, num_buckets: int, events: pa.Table, schema: pa.Schema, drop_duplicates: bool
) -> dict[str, Any]:
    table = build_bucket(events, schema, drop_duplicates=drop_duplicates)
    lists = table.column(ITEM_INDEX).combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    facts = {
        "num_users": table.num_rows,
        "num_events": int(lengths.sum()),
        "num_duplicates": events.num_rows - int(lengths.sum()),
        "length_deciles": np.quantile(lengths, _DECILES).tolist(),
    }
    return writer.commit(bucket, num_buckets, table, facts)


if __name__ == "__main__":
    run_job("build_sequences")
