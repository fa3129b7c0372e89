"""The job that brings new files of the log into a store: a new day, or events that came late.

Only buckets with new events get a part, and nothing that is there is rewritten, so a day costs what a day holds. What
readers then see equals a store built from all files at once.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("append")

from contextlib import nullcontext

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import WORK, BucketWriter, fingerprint
from data_io.config import SettingsError
from data_io.lease import write_lease
from data_io.scan import EventLog, Expected, scan_log
from data_io.schema import USER_ID
from data_io.snapshots import published_manifest
from data_io.store import SequenceStore
from ray_jobs.config import Settings
from ray_jobs.ingest import ingest_log, plan_ingest, refused_note, tidy
from ray_jobs.ingest_tasks import PLAIN_COLUMNS, Ingest
from ray_jobs.progress import say
from ray_jobs.side_ingest import SideSources, scan_sides


def run(settings: Settings) -> SequenceStore:
    """Add to the store of a run the files of the log that it does not have yet."""
    url = storage.absolute(settings.store_url)
    SequenceStore.open(url)  # there must be one
    with write_lease(url, "append") as lease:
        published_manifest(url)
        store = SequenceStore.open(url)
        store.check_current()
        check_same_rules(settings, store)
        log = scan_log(
            storage.absolute(settings.events_url),
            settings.events,
            ingested=store.read_inputs(),
            expected=Expected(kinds=raw_kinds(store), where=f"the store {url}"),
        )
        if not log.fragments:
            say(f"append: {url} has every event of {settings.events_url}{refused_note(log)}")
            tidy(store, settings)
            return store
        say(f"append: {log.num_rows:,} rows in {len(log.inputs):,} new files{refused_note(log)}")
        sides = scan_sides(settings, log.kinds)
        ingest = _plan(settings, log, sides, store)
        drop_other_work(ingest.writer)
        with nullcontext() if ingest.is_small else ray_session(settings.cluster):
            store = ingest_log(ingest, log, sides, settings, lease)
    number = store.manifest["snapshot"]
    say(f"append: {store.num_users:,} users in {url}, snapshot {number}; next: clickformer score_users")
    return store


def check_same_rules(settings: Settings, store: SequenceStore) -> None:
    """Fail where the settings contradict what is fixed for the life of a store.

    Raises:
        SettingsError: they do; it names the setting and both values.
    """
    built = store.manifest["settings"]
    given = {
        "events": settings.events.model_dump(mode="json"),
        "privacy": settings.privacy.model_dump(),
        "store": settings.store.model_dump(mode="json"),
    }
    fixed = [("events", "drop_duplicates"), ("events", "features"), ("privacy", "pseudonym_key_variable")]
    fixed += [("store", "max_events_per_user"), ("store", "min_item_count")]
    for section, name in fixed:
        if given[section][name] != built[section][name]:
            raise SettingsError(
                f"{section}.{name} is {given[section][name]}, but {store.url} was built with {built[section][name]}; "
                "it is fixed for the life of a store"
            )
    if settings.store.num_buckets not in (None, store.num_buckets):
        raise SettingsError(
            f"store.num_buckets is {settings.store.num_buckets}, but {store.url} has {store.num_buckets}; it is fixed "
            "for the life of a store"
        )


def raw_kinds(store: SequenceStore) -> dict[str, str]:
    """Families of the columns of the log a store was built from."""
    return store.manifest["kinds"] | {USER_ID: store.manifest["raw_user_kind"]}


def _plan(settings: Settings, log: EventLog, sides: SideSources, store: SequenceStore) -> Ingest:
    used = {"before": store.fingerprint, "events": settings.events.model_dump(), "inputs": log.inputs}
    mark = fingerprint(used | sides.describe(settings))
    writer = BucketWriter(url=store.url, fingerprint=mark, plain=PLAIN_COLUMNS, way=f"-{settings.store.rows_per_run}")
    return plan_ingest("append", settings, log, writer, store.num_buckets, store)


def drop_other_work(writer: BucketWriter) -> None:
    """Remove what an append left that was killed and had other files before it."""
    for name in storage.list_folders(storage.join(writer.url, WORK)):
        if name != writer.fingerprint:
            storage.delete_folder(storage.join(writer.url, WORK, name))
