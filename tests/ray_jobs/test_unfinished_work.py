"""Unfinished work: what a killed job left is dropped or gone on with, whole, and never half of it."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from data_io.buckets import BucketWriter, read_part
from data_io.schema import store_schema
from data_io.snapshots import publish_manifest
from ray_jobs import compact
from ray_jobs.config import Settings

START = datetime(2024, 1, 1, tzinfo=UTC)
ENDS = {"num_events": [1], "first_event_time": [START], "last_event_time": [START]}
LISTS = {"item_index": [[2]], "action_index": [[2]], "event_time": [[START]]}
ROWS = pa.table({"user_id": ["u"]} | ENDS | LISTS, schema=store_schema("string", {}))


# Shows a bug: `compact` drops the work of others only if there is something to merge, and files that no snapshot names
# always. An append that was killed then finds its marks, and publishes a snapshot whose files are gone.
def test_a_compaction_with_nothing_to_merge_leaves_no_mark_without_its_file(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    build, append = (BucketWriter(url=url, fingerprint=name) for name in ("build", "append"))
    buckets = {"0": {"files": [build.commit(0, 1, ROWS, {}, remember=False)["file"]]}}
    publish_manifest(url, {"fingerprint": "build", "num_buckets": 1, "buckets": buckets}, after=None)
    append.commit(0, 1, ROWS, {})  # and here it was killed
    compact.run(Settings(run_dir=str(tmp_path)))
    for mark in append.committed(1).values():
        assert read_part(url, mark["file"]).equals(ROWS)
