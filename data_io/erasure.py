"""Erasure: taking users out of a published output made of buckets (a store, scores, per-user results).

Only files that hold one of the users are written anew, without them. Invariant: once what is superseded is removed, no
file below the output holds a row of those users; what was taken out, file by file, is in the records.
"""

import uuid
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.buckets import bucket_of, read_part
from data_io.schema import NUM_EVENTS, USER_ID
from data_io.snapshots import bucket_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """A bucket without some users."""

    bucket: int
    entry: dict[str, Any]
    """What the manifest says of the bucket from now on."""
    num_users: int
    num_events: int
    """Events readers saw of those users."""
    records: list[dict[str, Any]]
    """Of each file written anew: what it was before and after, and the rows taken out."""


def buckets_of_users(manifest: dict[str, Any], user_ids: pa.Array) -> list[int]:
    """Buckets of an output that may hold one of the users."""
    found = {int(bucket) for bucket in bucket_of(user_ids, int(manifest["num_buckets"]))}
    return sorted(found & {int(bucket) for bucket in manifest["buckets"]})


def erase_bucket(url: str, bucket: int, entry: dict[str, Any], user_ids: pa.Array, max_events: int | None) -> Erased:
    """Write anew the files of a bucket that hold one of the users.

    Args:
        url: folder of the output.
        bucket: which one.
        entry: what the manifest says of the bucket.
        user_ids: whom to take out.
        max_events: newest events readers see of a user; None: all.
    """
    files, records, gone = [], [], []
    for file in bucket_files(entry):
        kept, record, rows = erase_rows(url, file, read_part(url, file), user_ids)
        files.append(kept)
        gone.append(rows)
        records += [record] if record else []
    num_users, num_events = _count(gone, max_events)
    counts = {"num_users": num_users, "num_events": num_events}
    left = {name: entry[name] - count for name, count in counts.items() if name in entry}
    return Erased(bucket=bucket, entry=entry | {"files": files} | left, records=records, **counts)


def erase_rows(
    url: str, file: dict[str, Any], table: pa.Table, user_ids: pa.Array
) -> tuple[dict[str, Any], dict[str, Any] | None, pa.Table]:
    """A file of an output without the rows of some users.

    Args:
        url: folder of the output.
        file: what the manifest says of the file.
        table: its content.
        user_ids: whom to take out.

    Returns:
        What the manifest is to say instead, a record (None where it held none of them), and the rows taken out.
    """
    users = table.column(USER_ID)
    held = pc.call_function("is_in", [users], pc.SetLookupOptions(user_ids.cast(users.type)))
    gone = table.filter(held)
    if not gone.num_rows:
        return file, None, gone
    name = f"{file['name'].rsplit('/', 1)[0]}/part-{uuid.uuid4().hex}.parquet"
    kept = table.filter(pc.call_function("invert", [held]))
    written = asdict(storage.write_parquet(storage.join(url, name), kept)) | {"name": name}
    return written, {"before": file, "after": written, "num_rows": gone.num_rows}, gone


def _count(gone: list[pa.Table], max_events: int | None) -> tuple[int, int]:
    """Users and events in rows taken out of the parts of a bucket."""
    rows = pa.concat_tables([table.select([USER_ID]) for table in gone])
    if NUM_EVENTS not in gone[0].column_names:
        return len(rows.column(USER_ID).unique()), 0
    lengths = pa.concat_tables([table.select([NUM_EVENTS]) for table in gone]).column(NUM_EVENTS)
    frame = pl.DataFrame({USER_ID: pl.Series(rows.column(USER_ID)), "n": pl.Series(lengths).cast(pl.Int64)})
    totals = frame.group_by(USER_ID).agg(pl.col("n").sum())["n"]
    kept = totals if max_events is None else totals.clip(upper_bound=max_events)
    return totals.len(), int(kept.sum())
