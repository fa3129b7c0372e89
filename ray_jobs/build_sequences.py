"""The job that turns an event log into the sequence store.

How it goes is in `ray_jobs.ingest`; measured against a Polars program in tests/benchmarks/build_sequences.py.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("build_sequences")

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint
from data_io.lease import write_lease
from data_io.privacy import PseudonymKey
from data_io.scan import EventLog, scan_log
from data_io.schema import DataContractError
from data_io.snapshots import MANIFEST_NAME, published_manifest
from data_io.store import SequenceStore
from ray_jobs.config import Settings
from ray_jobs.ingest import ingest_log, plan_ingest, refused_note, tidy
from ray_jobs.ingest_tasks import PLAIN_COLUMNS, Ingest
from ray_jobs.progress import say
from ray_jobs.side_ingest import SideSources, scan_sides

_ROWS_PER_BUCKET, _LEAST_BUCKETS, _MOST_BUCKETS = 250_000, 8, 65_536


def run(settings: Settings) -> SequenceStore:
    """Build the store of a run, or what is missing of it."""
    url = storage.absolute(settings.store_url)
    log = scan_log(storage.absolute(settings.events_url), settings.events)
    sides = scan_sides(settings, log.kinds)
    ingest = _plan(settings, log, sides, url)
    if store := _find_built(url, ingest.writer.fingerprint):
        if storage.exists(ingest.writer.work_url):  # of a build that was killed right after it had published
            with write_lease(url, "build_sequences"):
                tidy(store, settings)
        return store
    with write_lease(url, "build_sequences") as lease:
        if published_manifest(url) and (store := _find_built(url, ingest.writer.fingerprint)):
            tidy(store, settings)  # it was built by a job that was killed right after it had published
            return store
        ingest.writer.committed(ingest.num_buckets)
        say(f"build_sequences: {log.num_rows:,} rows in {len(log.inputs):,} files{refused_note(log)}")
        with ray_session(settings.cluster):
            store = ingest_log(ingest, log, sides, settings, lease)
    say(f"build_sequences: {store.num_users:,} users in {url}; next: clickformer pretrain")
    return store


def _find_built(url: str, mark: str) -> SequenceStore | None:
    """The store, if it was built from this log with these settings, whatever was appended to it since.

    Raises:
        DataContractError: another one stands there.
    """
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return None
    store = SequenceStore.open(url)
    if store.store_id != mark:
        raise DataContractError(
            f"{url} holds a store of other settings or input (its fingerprint {store.store_id}, this run's {mark}); "
            "new files of its log are added by clickformer append, for anything else choose another run_dir or delete "
            "that folder"
        )
    say(f"build_sequences: {url} is already built")
    return store


def derive_num_buckets(num_rows: int) -> int:
    """Buckets for a log of this size: enough to spread, each small enough for one worker's memory."""
    return min(max(_LEAST_BUCKETS, -(-num_rows // _ROWS_PER_BUCKET)), _MOST_BUCKETS)


def _plan(settings: Settings, log: EventLog, sides: SideSources, url: str) -> Ingest:
    num_buckets = settings.store.num_buckets or derive_num_buckets(log.num_rows)
    mark = _fingerprint(settings, log, sides, num_buckets)
    writer = BucketWriter(url=url, fingerprint=mark, plain=PLAIN_COLUMNS, way=f"-{settings.store.rows_per_run}")
    return plan_ingest("build_sequences", settings, log, writer, num_buckets, None)


def _fingerprint(settings: Settings, log: EventLog, sides: SideSources, num_buckets: int) -> str:
    store = settings.store.model_dump(exclude={"rows_per_run", "retain_hours"}) | {"num_buckets": num_buckets}
    events = settings.events.model_dump(exclude={"max_bad_files"})
    variable = settings.privacy.pseudonym_key_variable
    key_id = PseudonymKey.from_environment(variable).key_id if variable else None
    privacy = settings.privacy.model_dump() | {"key_id": key_id}  # so that no build goes on with another key
    used = {"events": events, "privacy": privacy, "store": store, "inputs": log.inputs}
    return fingerprint(used | sides.describe(settings))
