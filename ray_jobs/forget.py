"""The job that erases users: from every snapshot of the store, its quarantine, scores, profiles and the report.

First a tombstone for each, by which later builds and appends leave their events out; then every file that holds one of
them is written anew and all older snapshots go at once, whoever reads them; last a receipt. Killed half-way, it is run
again with the same file. The log itself is not ours to change, and models keep no row of a user.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("forget")

import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from data_io import storage
from data_io.buckets import OUTPUT_FOLDERS, WORK
from data_io.config import SettingsError
from data_io.erasure import Erased, buckets_of_users, erase_bucket, erase_rows
from data_io.lease import Lease, write_lease
from data_io.privacy import TOMBSTONES_NAME, PseudonymKey, Tombstones, digests, read_user_list
from data_io.quality.report import count_reasons
from data_io.schema import USER_ID
from data_io.snapshots import MANIFEST_NAME, publish_manifest, published_manifest, remove_unnamed
from data_io.store import SequenceStore
from ray_jobs.bucket_map import map_on_threads
from ray_jobs.config import Settings
from ray_jobs.ingest import STORE_FOLDERS
from ray_jobs.progress import say

RECEIPTS = "receipts"


def run(settings: Settings) -> str:
    """Erase the users of a file; returns the URL of the receipt."""
    store = SequenceStore.open(storage.absolute(settings.store_url))
    store.check_current()
    users = _users(settings, store)
    place = storage.absolute(settings.run_dir)
    with write_lease(store.url, "forget"):
        tombstones = storage.join(place, TOMBSTONES_NAME)
        Tombstones.read(tombstones).add(users).write(tombstones)
    outputs = [_erase_store(store.url, users)]
    outputs += [_erase_output(url, users) for url in _other_outputs(place)]
    receipt = {
        "forgotten_at": datetime.now(UTC).isoformat(),
        "num_users_asked": len(users),
        "num_users_found": outputs[0]["num_users"],
        "user_digests": digests(users),
        "outputs": outputs,
        "not_covered": "the event log itself, and tables exported or copied to outside this folder",
    }
    url = storage.join(place, RECEIPTS, f"forget-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.json")
    storage.write_json(url, receipt)
    num_files = sum(len(output["files"]) for output in outputs)
    say(f"forget: {receipt['num_users_found']:,} of {len(users):,} users were in the store and are gone from it")
    say(f"forget: {num_files:,} files in {len(outputs)} outputs were written anew; receipt: {url}")
    return url


def _users(settings: Settings, store: SequenceStore) -> pa.Array:
    """Ids as the store has them."""
    if settings.forget.users is None:
        raise SettingsError("forget.users: give the file of the users to forget, as in forget shop.yaml --users FILE")
    path = storage.absolute(settings.forget.users)
    variable = store.manifest["settings"]["privacy"]["pseudonym_key_variable"]
    if variable is None:
        return read_user_list(path, store.manifest["kinds"][USER_ID])
    key = PseudonymKey.from_environment(variable)
    key.check(store.manifest["pseudonym_key_id"], store.url)
    return key.pseudonyms(read_user_list(path, store.manifest["raw_user_kind"]))


def _other_outputs(place: str) -> list[str]:
    """Outputs of the run, beside the store, that have rows of users."""
    results = storage.join(place, "report", "users")
    names = storage.list_folders(results)
    outputs = ("scores", "scores_long", "profiles", "search/users", "search/ranked")
    scores = [storage.join(place, name) for name in outputs]
    found = [*scores, *(storage.join(results, name) for name in names)]
    published = [url for url in found if storage.exists(storage.join(url, MANIFEST_NAME))]
    for url in found:
        if url not in published and storage.exists(url):
            with write_lease(url, "forget"):  # a job that is at it is let finish; one that was killed begins anew
                storage.delete_folder(url)
    return published


@contextmanager
def _held(url: str) -> Iterator[tuple[Lease, dict[str, Any]]]:
    """An output held for writing, with its newest manifest and without work that was not finished."""
    with write_lease(url, "forget") as lease:
        manifest = published_manifest(url)
        assert manifest is not None, "only published outputs are passed"
        storage.delete_folder(storage.join(url, WORK))
        yield lease, manifest


def _erase_store(url: str, users: pa.Array) -> dict[str, Any]:
    with _held(url) as (lease, manifest):
        store = SequenceStore(url, manifest)
        erased = _erase_buckets(url, manifest, users, store.max_events)
        quarantine, records, reasons = _erase_files(url, manifest["quarantine"], users)
        num_rows = reasons.total()
        user_table = manifest["users"]
        if user_table:
            rows = _erase_buckets(url, user_table | {"num_buckets": manifest["num_buckets"]}, users, None)
            bad_rows, bad_records, _ = _erase_files(url, user_table["quarantine"], users)
            records += [*bad_records, *(record for part in rows for record in part.records)]
            buckets = user_table["buckets"] | {str(part.bucket): part.entry for part in rows}
            user_table = user_table | {"buckets": buckets, "quarantine": bad_rows}
        num_events = sum(part.num_events for part in erased)
        changes = {
            "num_users": manifest["num_users"] - sum(part.num_users for part in erased),
            "num_events": manifest["num_events"] - num_events,
            "num_quarantined": manifest["num_quarantined"] - num_rows,
            "num_forgotten": manifest["num_forgotten"] + num_events + num_rows,
            "reasons": dict((Counter(manifest["reasons"]) - reasons).most_common()),
            "quarantine": quarantine,
            "users": user_table,
        }
        return _replace(url, lease, manifest, erased, changes, records, STORE_FOLDERS)


def _erase_files(
    url: str, files: list[dict[str, Any]], users: pa.Array
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Counter[str]]:
    """Files of a quarantine without some users, a record of each written anew, and the reasons of rows taken out."""
    left, records, reasons = [], [], Counter[str]()
    for file in files:
        table = storage.read_parquet(storage.join(url, file["name"]))
        kept, record, gone = erase_rows(url, file, table, users)
        left.append(kept)
        records += [record] if record else []
        reasons.update(count_reasons(gone))
    return left, records, reasons


def _erase_output(url: str, users: pa.Array) -> dict[str, Any]:
    with _held(url) as (lease, manifest):
        erased = _erase_buckets(url, manifest, users, None)
        gone = sum(part.num_users for part in erased)
        changes = {"num_users": manifest["num_users"] - gone} if "num_users" in manifest else {}
        return _replace(url, lease, manifest, erased, changes, [], OUTPUT_FOLDERS)


def _erase_buckets(url: str, manifest: dict[str, Any], users: pa.Array, max_events: int | None) -> list[Erased]:
    def erase(bucket: int) -> Erased:
        return erase_bucket(url, bucket, manifest["buckets"][str(bucket)], users, max_events)

    return list(map_on_threads(erase, buckets_of_users(manifest, users)))


def _replace(
    url: str,
    lease: Lease,
    manifest: dict[str, Any],
    erased: list[Erased],
    changes: dict[str, Any],
    records: list[dict[str, Any]],
    folders: tuple[str, ...],
) -> dict[str, Any]:
    """Publish an output without the users and remove all that still held them; returns what the receipt says of it."""
    files = [*records, *(record for part in erased for record in part.records)]
    if files:
        buckets = manifest["buckets"] | {str(part.bucket): part.entry for part in erased}
        content = {name: value for name, value in manifest.items() if name not in ("snapshot", "published_at")}
        lease.check()
        manifest = publish_manifest(url, content | changes | {"buckets": buckets}, after=manifest)
    num_removed = remove_unnamed(url, manifest, folders, retain_hours=0)
    num_users = sum(part.num_users for part in erased)
    return {"url": url, "num_users": num_users, "files": files, "num_files_removed": num_removed}
