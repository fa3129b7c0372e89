"""What the shop knows of its items and users, on its way into the store.

The item table is joined by index on the driver: it is as large as the catalogue. The user table goes the way of the
log: each part of it is laid out by bucket, then the rows of each bucket are brought together, the last of a user
counting. It is joined to the users of the store when it is read, so that it also has those whose events come later.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from data_io import storage
from data_io.config import ItemSettings, UserSettings
from data_io.runs import read_pieces, write_pieces
from data_io.schema import ITEM_ID, USER_ID
from data_io.side.items import build_item_table, extend_item_table, scan_items
from data_io.side.rows import JoinFacts, count_reasons, read_side_rows
from data_io.side.tables import SideTable
from data_io.side.users import bucket_user_rows, join_users, scan_users, user_facts
from data_io.store import QUARANTINE, TABLES, USERS
from ray_jobs.bucket_map import map_tasks, spans_of
from ray_jobs.config import Settings
from ray_jobs.ingest_tasks import Ingest

IN_RUN = "RUN_DIR/"
"""Begins the path of a table that stands in the folder of the run, as `convert` writes one."""


@dataclass(frozen=True, kw_only=True)
class SideSources:
    """The side tables of a run, their footers checked; None where there is none."""

    items: SideTable | None
    users: SideTable | None

    def describe(self, settings: Settings) -> dict[str, Any]:
        """For the fingerprint of the store; empty where there are none."""
        tables = {"items": (self.items, settings.items), "users": (self.users, settings.users)}
        return {
            name: {"inputs": table.inputs, "settings": section.model_dump()}
            for name, (table, section) in tables.items()
            if table is not None
        }


def scan_sides(settings: Settings, kinds: dict[str, str]) -> SideSources:
    """Check the footers of the side tables, before any work.

    Args:
        settings: of the run.
        kinds: families of the log's columns.

    Raises:
        DataContractError: a table breaks its contract.
        SettingsError: a feature has a name that cannot be.
    """
    items, users = settings.items, settings.users
    return SideSources(
        items=scan_items(_place(settings, items.path), items, kinds[ITEM_ID]) if items.path else None,
        users=scan_users(_place(settings, users.path), users, kinds[USER_ID]) if users.path else None,
    )


def _place(settings: Settings, path: str) -> str:
    """The URL of a side table, which may be given as below the run's folder."""
    return storage.absolute(settings.place(path.removeprefix(IN_RUN)) if path.startswith(IN_RUN) else path)


def ingest_items(ingest: Ingest, settings: Settings, source: SideTable | None, item_ids: pa.Array) -> dict[str, Any]:
    """Join the item table to the items of a store, in the order of their numbers.

    Returns:
        What the manifest says of it: its file, facts, inputs and quarantine. What it said before where there is no
        table now, or where neither table nor items have changed.
    """
    before = ingest.base.manifest["items"] if ingest.base else None
    if source is None:
        return _follow_items(ingest, before, item_ids) if before else {}
    used = {"num_items": len(item_ids)} | _used(source, settings.items)
    if before and before["used"] == used:
        return before
    edges = before["facts"]["price_edges"] if before else None
    built = build_item_table(source, settings.items, item_ids, edges=edges)
    name = f"{TABLES}/items-{ingest.writer.fingerprint}.parquet"
    file = asdict(storage.write_parquet(storage.join(ingest.writer.url, name), built.table)) | {"name": name}
    bad = _quarantine(ingest, "items", built.quarantined)
    return {"file": file, "facts": built.facts, "used": used, "quarantine": bad}


def _follow_items(ingest: Ingest, before: dict[str, Any], item_ids: pa.Array) -> dict[str, Any]:
    """What the manifest says of the item table where there is none now: items that came up since are not in it."""
    table = storage.read_parquet(storage.join(ingest.writer.url, before["file"]["name"]))
    if table.num_rows == len(item_ids):
        return before
    name = f"{TABLES}/items-{ingest.writer.fingerprint}.parquet"
    written = storage.write_parquet(storage.join(ingest.writer.url, name), extend_item_table(table, item_ids))
    return before | {"file": asdict(written) | {"name": name}}


def _used(source: SideTable, settings: ItemSettings | UserSettings) -> dict[str, Any]:
    """By which a table is known to be the one the store has."""
    rules = settings.model_dump(mode="json", exclude={"path", "max_bad_share"})
    return {"inputs": [list(file) for file in source.inputs], "settings": rules}


def _quarantine(ingest: Ingest, kind: str, bad: pa.Table) -> list[dict[str, Any]]:
    if not bad.num_rows:
        return []
    name = f"{QUARANTINE}/{kind}-{ingest.writer.fingerprint}.parquet"
    return [asdict(storage.write_parquet(storage.join(ingest.writer.url, name), bad)) | {"name": name}]


def ingest_users(ingest: Ingest, settings: Settings, source: SideTable | None) -> dict[str, Any]:
    """Lay the user table out by bucket.

    Returns:
        What the manifest says of it: a file for each bucket, facts, inputs and quarantine. What it said before where
        there is no table now, or where it has not changed.
    """
    before = ingest.base.manifest["users"] if ingest.base else None
    if source is None:
        return before or {}
    used = _used(source, settings.users)
    if before and before["used"] == used:
        return before
    encoder = UserEncoder(ingest, settings, source)
    reasons, quarantine, joined = Counter[str](), [], []
    for found in map_tasks(encoder.encode, range(len(source.parts)), here=ingest.is_small):
        reasons.update(found["reasons"])
        quarantine += found["quarantine"]
        joined.append(found["joined"])
    buckets: dict[str, Any] = {}
    spans = spans_of(range(ingest.num_buckets), here=ingest.is_small)
    for files in map_tasks(encoder.merge, spans, here=ingest.is_small):
        for bucket, file, facts in files:
            buckets[str(bucket)] = {"files": [file]}
            joined.append(facts)
    facts = user_facts(source, reasons, joined, settings.users)
    return {"buckets": buckets, "facts": facts, "used": used, "quarantine": quarantine}


class UserEncoder:
    """Both passes over the user table; what every task of them needs to know."""

    def __init__(self, ingest: Ingest, settings: Settings, source: SideTable) -> None:
        self.ingest = ingest
        self.settings = settings.users
        self.source = source
        self.work_url = storage.join(ingest.writer.work_url, USERS)

    def encode(self, number: int) -> dict[str, Any]:
        """Lay one part of the table out by bucket; returns what was bad in it."""
        rows = read_side_rows(self.source.parts[number], self.source.contract)
        good, num_good_forgotten = self.ingest.guard(rows.good)
        bad, num_bad_forgotten = self.ingest.guard(rows.bad)
        write_pieces(self._url(number), bucket_user_rows(good, self.ingest.num_buckets).groups)
        forgotten = JoinFacts(num_forgotten=num_good_forgotten + num_bad_forgotten)
        found = {"reasons": count_reasons(bad), "quarantine": [], "joined": forgotten}
        if bad.num_rows:
            name = f"{QUARANTINE}/users-{self.ingest.writer.fingerprint}-{number:06d}.parquet"
            written = storage.write_parquet(storage.join(self.ingest.writer.url, name), bad)
            found["quarantine"] = [asdict(written) | {"name": name}]
        return found

    def merge(self, span: range) -> list[tuple[int, dict[str, Any], JoinFacts]]:
        """Write the rows of each bucket of a span, the last row of a user; returns the buckets' files and facts."""
        parts = range(len(self.source.parts))
        pieces = [read_pieces(self._url(part), span.start, span.stop) for part in parts]
        files = []
        for bucket in span:
            found = [piece[bucket - span.start] for piece in pieces]
            files.append((bucket, *self._write(bucket, [table for table in found if table is not None])))
        return files

    def _write(self, bucket: int, found: list[pa.Table]) -> tuple[dict[str, Any], JoinFacts]:
        schema = self.source.contract.schema
        rows = pa.concat_tables(found) if found else self.ingest.guard(schema.empty_table())[0]
        table, facts = join_users(rows.column(USER_ID).combine_chunks().unique(), rows, self.settings)
        name = f"{USERS}/bucket={bucket:05d}/part-{self.ingest.writer.fingerprint}.parquet"
        written = storage.write_parquet(storage.join(self.ingest.writer.url, name), table)
        return asdict(written) | {"name": name}, facts

    def _url(self, part: int) -> str:
        return storage.join(self.work_url, f"part-{part:06d}.pieces")
