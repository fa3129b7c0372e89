"""The quality report of a store, kept up to date over builds, appends and compactions.

What rows were (nulls, times, actions, reasons) is added up with every log. What users do is profiled bucket by bucket
when a bucket is written whole, by a build or by `compact`; an append leaves it as it was, and the report says since
when it stands.
"""

import hashlib
import json
from typing import Any

import polars as pl
import pyarrow as pa

from data_io import storage
from data_io.quality.behaviour import SequenceProfile
from data_io.quality.profile import RowProfile
from data_io.quality.report import Profiles, add_profiles, counts_of
from data_io.schema import COUNT
from data_io.store import QUALITY_PAGE_NAME, QUALITY_REPORT_NAME, TABLES, SequenceStore
from ray_jobs.ingest_tasks import Ingest
from ray_jobs.quality_page import write_quality_page

PROFILE = "profile"
BUCKET = "bucket"


def make_report(
    ingest: Ingest,
    runs: list[dict[str, Any]],
    marks: list[dict[str, Any]],
    counts: dict[str, Any],
    item_table: pl.DataFrame,
    refused: list[dict[str, Any]],
) -> tuple[dict[str, Any], pa.Table]:
    """The report after a build or an append, and the sequence profile of each bucket.

    Args:
        ingest: what was done.
        runs: marks of all runs of the log.
        marks: of the buckets that got a part.
        counts: of the store from now on.
        item_table: of the store from now on.
        refused: verdicts of files that are left out.
    """
    batch = sum((RowProfile.from_json(mark[PROFILE]) for mark in runs), RowProfile())
    base = ingest.base
    before = read_report(base) if base else None
    rows = batch if before is None else RowProfile.from_json(before["rows"]) + batch
    profiles = read_profiles(base) if base else profile_table({mark[BUCKET]: mark[PROFILE] for mark in marks})
    items = item_table[COUNT].to_numpy()
    whole = Profiles(rows=rows, sequences=add_up(profiles), item_counts=items, files=refused)
    return add_profiles(counts, whole, before, batch=batch), profiles


def profile_table(profiles: dict[int, dict[str, Any]]) -> pa.Table:
    """Sequence profiles by bucket, as the store keeps them."""
    texts = [json.dumps(profile) for profile in profiles.values()]
    return pa.table({BUCKET: pa.array(profiles, pa.int32()), PROFILE: pa.array(texts, pa.large_string())})


def update_profiles(store: SequenceStore, newer: dict[int, dict[str, Any]]) -> pa.Table:
    """The sequence profiles of a store after some of its buckets were written anew."""
    known = read_profiles(store)
    kept = {
        bucket: json.loads(text)
        for bucket, text in zip(known.column(BUCKET).to_pylist(), known.column(PROFILE).to_pylist(), strict=True)
    }
    return profile_table(kept | newer)


def refresh_report(store: SequenceStore, profiles: pa.Table) -> dict[str, Any]:
    """The report of a store whose content is the same and whose users were profiled anew."""
    rows = RowProfile.from_json(read_report(store)["rows"])
    whole = Profiles(
        rows=rows,
        sequences=add_up(profiles),
        item_counts=store.item_table[COUNT].to_numpy(),
        files=store.manifest["refused_files"],
    )
    return add_profiles(counts_of(store.manifest), whole, None)


def write_report(url: str, mark: str, report: dict[str, Any]) -> dict[str, Any]:
    """Put a report under a name of its own into a store; returns what the manifest says of it."""
    name = f"{TABLES}/quality_report-{mark}.json"
    content = json.dumps(report, default=str).encode()
    storage.write_bytes(storage.join(url, name), content)
    return {"name": name, "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def add_up(profiles: pa.Table) -> SequenceProfile:
    """The profile of all users, from those of the buckets."""
    parts = (SequenceProfile.from_json(json.loads(text)) for text in profiles.column(PROFILE).to_pylist())
    return sum(parts, SequenceProfile())


def read_profiles(store: SequenceStore) -> pa.Table:
    """The sequence profile of each bucket of a store."""
    return storage.read_parquet(storage.join(store.url, store.manifest["tables"]["profiles"]["name"]))


def read_report(store: SequenceStore) -> dict[str, Any]:
    """The quality report of a store."""
    return storage.read_json(storage.join(store.url, store.manifest["tables"]["quality_report"]["name"]))


def show_report(store: SequenceStore, *, with_page: bool = True) -> None:
    """Put the report and its page where people look; making the page takes longer than a small append."""
    report = read_report(store)
    storage.write_json(storage.join(store.url, QUALITY_REPORT_NAME), report)
    if with_page:
        write_quality_page(storage.join(store.url, QUALITY_PAGE_NAME), report)
