"""The job that merges the parts of every bucket into one, so that reading need not.

Each append leaves a part in the buckets it touched; the content is the same before and after. What users do is profiled
anew on the way. Files that are no longer named go once `store.retain_hours` have passed since they were superseded.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("compact")

from dataclasses import asdict
from typing import Any

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint
from data_io.lease import Lease, write_lease
from data_io.quality.behaviour import profile_sequences
from data_io.snapshots import bucket_files, publish_manifest, published_manifest, remove_unnamed
from data_io.store import TABLES, SequenceStore
from ray_jobs.append import drop_other_work
from ray_jobs.bucket_map import map_buckets
from ray_jobs.config import Settings
from ray_jobs.ingest import STORE_FOLDERS
from ray_jobs.ingest_tasks import PLAIN_COLUMNS
from ray_jobs.progress import Progress, say
from ray_jobs.quality_reports import PROFILE, refresh_report, show_report, update_profiles, write_report


def run(settings: Settings) -> SequenceStore:
    """Merge the parts of the store of a run."""
    url = storage.absolute(settings.store_url)
    SequenceStore.open(url)  # there must be one
    with write_lease(url, "compact") as lease:
        published_manifest(url)
        store = SequenceStore.open(url)
        store.check_current()
        buckets = store.manifest["buckets"]
        many = [bucket for bucket in range(store.num_buckets) if len(bucket_files(buckets[str(bucket)])) > 1]
        mark = fingerprint({"compacted": store.manifest["snapshot"]})
        writer = BucketWriter(url=url, fingerprint=mark, plain=PLAIN_COLUMNS)
        drop_other_work(writer)  # also where nothing is merged: its files are about to go
        if many:
            with ray_session(settings.cluster):
                marks = _merge(store, writer, many)
            store = _publish(store, writer, marks, lease)
        removed = remove_unnamed(url, store.manifest, STORE_FOLDERS, settings.store.retain_hours)
    say(f"compact: {len(many):,} of {store.num_buckets:,} buckets merged, {removed:,} superseded files removed")
    return store


def _merge(store: SequenceStore, writer: BucketWriter, many: list[int]) -> list[dict[str, Any]]:
    done = writer.committed(store.num_buckets)
    progress = Progress("compact", len(many), "buckets")
    progress.resume_at(len(done))

    def merge(bucket: int) -> dict[str, Any]:
        table = store.read_rows(bucket)
        facts = {PROFILE: profile_sequences(table).to_json()}
        return writer.commit(bucket, store.num_buckets, table, facts)

    for mark in map_buckets(merge, [bucket for bucket in many if bucket not in done]):
        done[mark["bucket"]] = mark
        progress.advance()
    return [done[bucket] for bucket in many]


def _publish(store: SequenceStore, writer: BucketWriter, marks: list[dict[str, Any]], lease: Lease) -> SequenceStore:
    """The store with merged buckets as its next snapshot."""
    buckets = dict(store.manifest["buckets"])
    for mark in marks:
        buckets[str(mark["bucket"])] = buckets[str(mark["bucket"])] | {"files": [mark["file"]]}
    profiles = update_profiles(store, {mark["bucket"]: mark[PROFILE] for mark in marks})
    name = f"{TABLES}/profiles-{writer.fingerprint}.parquet"
    file = asdict(storage.write_parquet(storage.join(store.url, name), profiles)) | {"name": name}
    report = write_report(store.url, writer.fingerprint, refresh_report(store, profiles))
    tables = store.manifest["tables"] | {"profiles": file, "quality_report": report}
    content = {name: value for name, value in store.manifest.items() if name not in ("snapshot", "published_at")}
    lease.check()
    manifest = publish_manifest(store.url, content | {"buckets": buckets, "tables": tables}, after=store.manifest)
    writer.delete_work()
    compacted = SequenceStore(store.url, manifest)
    show_report(compacted)
    return compacted
