"""What a build and an append share: a log becomes a snapshot of the store.

Runs, then parts of buckets (see `ray_jobs.ingest_tasks`), then the tables of the store, then its manifest. Whatever was
killed goes on where its marks stand; nothing is seen by readers before the manifest.
"""

from dataclasses import asdict
from typing import Any

import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.buckets import WORK, BucketWriter
from data_io.events import latest_time
from data_io.lease import Lease
from data_io.privacy import TOMBSTONES_NAME, PseudonymKey, Tombstones
from data_io.quality.report import LogSurvey, RunSurvey, add_counts, count_rows, counts_of, describe
from data_io.scan import EventLog
from data_io.schema import CONTRACT_VERSION, COUNT, FIRST_INDEX, ITEM_ID, ITEM_INDEX, USER_ID, DataContractError
from data_io.snapshots import bucket_files, publish_manifest, remove_unnamed
from data_io.store import (
    MINUTE,
    QUALITY_PAGE_NAME,
    QUALITY_REPORT_NAME,
    QUARANTINE,
    TABLES,
    USERS,
    SequenceStore,
    write_time_histogram,
)
from data_io.vocabulary import grow_vocabulary, write_vocabulary
from ray_jobs.config import Settings
from ray_jobs.ingest_tasks import BucketMerger, Ingest, PseudonymSource, encode_runs, merge_buckets, touched_buckets
from ray_jobs.progress import say
from ray_jobs.quality_reports import make_report, show_report, write_report
from ray_jobs.side_ingest import SideSources, ingest_items, ingest_users

STORE_FOLDERS = ("bucket=", f"{TABLES}/", f"{QUARANTINE}/", f"{USERS}/")
"""Where files stand that manifests of a store name."""
_FINDINGS_SAID = 5


def ingest_log(ingest: Ingest, log: EventLog, sides: SideSources, settings: Settings, lease: Lease) -> SequenceStore:
    """Bring a log into the store, or what is missing of it; returns the new snapshot."""
    base = ingest.base
    runs = encode_runs(ingest, log)
    found = add_up(ingest, runs)
    try:
        found.check(settings.events_url, settings.events.max_bad_share)
        item_table = grow_vocabulary(base.item_table if base else None, found.items, settings.store.min_item_count)
        ids = item_table.to_arrow().column(ITEM_ID).combine_chunks()
        tables = {
            "items": ingest_items(ingest, settings, sides.items, ids),
            "users": ingest_users(ingest, settings, sides.users),
        }
    except DataContractError:
        ingest.writer.delete_work()  # so that a mended log or table, or another share, may come to the same place
        raise
    known = base.actions if base else []
    actions = [*known, *sorted(set(found.actions) - set(known))]
    marks = merge_buckets(BucketMerger(ingest, runs, item_table, actions), touched_buckets(ingest, runs))
    num_items = item_table.filter(pl.col(ITEM_INDEX) >= FIRST_INDEX).height
    batch = count_rows(found, marks, num_items)
    counts = add_counts(counts_of(base.manifest), batch) if base else batch
    refused = [asdict(verdict) for verdict in log.refused]
    report, profiles = make_report(ingest, runs, marks, counts, item_table, refused)
    quarantine = list(base.manifest["quarantine"]) if base else []
    quarantine += [file for mark in runs for file in mark["quarantine"]]
    content = (
        _identity(ingest, settings)
        | {name: value for name, value in counts.items() if name != "actions"}
        | tables
        | {
            "action_counts": counts["actions"],
            "actions": actions,
            "buckets": _add_parts(ingest, marks),
            "quarantine": quarantine,
            "refused_files": refused,
            "tables": {
                "vocabulary": _named(write_vocabulary, ingest, item_table, "vocabulary"),
                "time_histogram": _named(write_time_histogram, ingest, _add_minutes(base, found.minutes), "minutes"),
                "inputs": _named(_write_table, ingest, _add_inputs(base, log), "inputs"),
                "profiles": _named(_write_table, ingest, profiles, "profiles"),
                "quality_report": write_report(ingest.writer.url, ingest.writer.fingerprint, report),
            },
        }
    )
    lease.check()
    manifest = publish_manifest(ingest.writer.url, content, after=base.manifest if base else None)
    store = SequenceStore(ingest.writer.url, manifest)
    finish(store, settings, with_page=not ingest.is_small)
    say(f"{ingest.job}: {describe(batch)}")
    for finding in report["findings"][:_FINDINGS_SAID]:
        say(f"{ingest.job}: {finding['text']}")
    say(f"{ingest.job}: quality report in {store.url}/{QUALITY_REPORT_NAME if ingest.is_small else QUALITY_PAGE_NAME}")
    return store


def finish(store: SequenceStore, settings: Settings, *, with_page: bool) -> None:
    """Show the report of a snapshot just published, and remove what it leaves behind."""
    show_report(store, with_page=with_page)
    remove_unnamed(store.url, store.manifest, STORE_FOLDERS, settings.store.retain_hours)
    storage.delete_folder(storage.join(store.url, WORK))


def tidy(store: SequenceStore, settings: Settings) -> None:
    """Do what a job that was killed right after it had published did not; only for whoever holds the lease."""
    if storage.list_folders(storage.join(store.url, WORK)):
        finish(store, settings, with_page=True)


def plan_ingest(
    job: str,
    settings: Settings,
    log: EventLog,
    writer: BucketWriter,
    num_buckets: int,
    base: SequenceStore | None,
) -> Ingest:
    """What the tasks of a build or an append need to know.

    Raises:
        SettingsError: the key of pseudonyms is missing, or another one than the store was built with.
    """
    variable = settings.privacy.pseudonym_key_variable
    key = PseudonymKey.from_environment(variable) if variable else None
    if base is not None and key is not None:
        key.check(base.manifest["pseudonym_key_id"], base.url)
    return Ingest(
        job=job,
        log_kinds=log.kinds,
        carried=log.carried,
        events=settings.events,
        latest=latest_time(settings.events),
        writer=writer,
        base=base,
        num_buckets=num_buckets,
        max_events=settings.store.max_events_per_user,
        rows_per_run=settings.store.rows_per_run,
        key=PseudonymSource(variable, key.key_id if key else None),
        tombstones=Tombstones.read(storage.join(storage.absolute(settings.run_dir), TOMBSTONES_NAME)),
        is_small=base is not None and log.num_rows <= settings.store.rows_per_run,
    )


def refused_note(log: EventLog) -> str:
    """What to say of files that are left out because their footers break the contract."""
    if not log.refused:
        return ""
    return "; left out: " + "; ".join(f"{verdict.file}: {verdict.problem}" for verdict in log.refused)


def add_up(ingest: Ingest, runs: list[dict[str, Any]]) -> LogSurvey:
    """What all runs of a log held."""
    found = LogSurvey()
    for mark in runs:
        reader = ingest.reader(mark)
        names = ("num_rows", "reasons", "actions", "num_duplicates", "num_truncated", "num_forgotten")
        counts = {name: mark[name] for name in names}
        found.add(RunSurvey(items=reader.read_items(), minutes=reader.read_minutes(), **counts))
    return found


def _identity(ingest: Ingest, settings: Settings) -> dict[str, Any]:
    """What stays the same over all snapshots of a store, and what this one was made from."""
    if ingest.base is not None:
        kept = (
            "store_id",
            "contract_version",
            "num_buckets",
            "kinds",
            "raw_user_kind",
            "pseudonym_key_id",
            "carried",
            "settings",
        )
        same = {name: ingest.base.manifest[name] for name in (*kept, "carried", "settings")}
    else:
        same = {
            "store_id": ingest.writer.fingerprint,
            "contract_version": CONTRACT_VERSION,
            "num_buckets": ingest.num_buckets,
            "kinds": ingest.log_kinds | ({USER_ID: "string"} if ingest.key.variable else {}),
            "raw_user_kind": ingest.log_kinds[USER_ID],
            "pseudonym_key_id": ingest.key.key_id,
            "carried": ingest.carried,
            "settings": {
                "events": settings.events.model_dump(mode="json"),
                "privacy": settings.privacy.model_dump(),
                "store": settings.store.model_dump(mode="json"),
            },
        }
    return {"fingerprint": ingest.writer.fingerprint} | same


def _add_parts(ingest: Ingest, marks: list[dict[str, Any]]) -> dict[str, Any]:
    """Files and sizes of every bucket, with the new parts that have rows."""
    buckets = dict(ingest.base.manifest["buckets"]) if ingest.base else {}
    for mark in marks:
        before = buckets.get(str(mark["bucket"]), {"files": [], "num_users": 0, "num_events": 0})
        new = [mark["file"]] if mark["file"]["num_rows"] or ingest.base is None else []
        buckets[str(mark["bucket"])] = before | {
            "files": [*bucket_files(before), *new],
            "num_users": before["num_users"] + mark["num_users"],
            "num_events": before["num_events"] + mark["num_events"],
        }
    return buckets


def _add_minutes(base: SequenceStore | None, minutes: pl.DataFrame) -> pl.DataFrame:
    if base is None:
        return minutes
    both = pl.concat([table.select(pl.all().cast(pl.Int64)) for table in (base.time_histogram, minutes)])
    return both.group_by(MINUTE).agg(pl.col(COUNT).sum())


def _add_inputs(base: SequenceStore | None, log: EventLog) -> pa.Table:
    known = base.read_inputs() if base else {}
    files = known | dict(log.inputs)
    return pa.table({"file": list(files), "num_bytes": pa.array(files.values(), pa.int64())})


def _named(write: Any, ingest: Ingest, table: Any, kind: str) -> dict[str, Any]:
    """Write a table of the store under a name of its own; returns what the manifest says of it."""
    name = f"{TABLES}/{kind}-{ingest.writer.fingerprint}.parquet"
    return asdict(write(ingest.writer.url, table, name)) | {"name": name}


def _write_table(folder: str, table: pa.Table, name: str) -> storage.WrittenFile:
    return storage.write_parquet(storage.join(folder, name), table)
