"""The job that brings published scores into other tables: one row an item for key-value loaders, or a lake format.

What is read are the files of the manifest, verified; a run again replaces what was written before.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("export")

import importlib
import importlib.util
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import SaveMode

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint_after, is_published, read_bucket
from data_io.config import SettingsError
from data_io.lease import write_lease
from data_io.schema import ITEM_ID, USER_ID
from data_io.scores import ITEM_IDS, SCORES, response_column
from data_io.snapshots import read_manifest
from ray_jobs.bucket_map import map_buckets
from ray_jobs.config import ExportSettings, Settings
from ray_jobs.progress import Progress, say

RANK, SCORE = "rank", "score"
_NEEDS = {"lance": ("lance", "pylance"), "delta": ("deltalake", "deltalake"), "iceberg": ("pyiceberg", "pyiceberg")}


def run(settings: Settings) -> str:
    """Export the scores of a run; returns where they are."""
    source = storage.absolute(settings.place("scores"))
    manifest = read_manifest(source, made_by="clickformer score_users")
    options = settings.export
    if options.to == "long":
        url = storage.absolute(options.url or settings.place("scores_long"))
        _write_long(settings, source, manifest, url)
        return url
    module, package = _NEEDS[options.to]
    if importlib.util.find_spec(module) is None:
        raise SettingsError(f"export.to {options.to} needs the package {package}: pip install {package}")
    if options.url is None:
        raise SettingsError(f"export.to {options.to} needs export.url: where the table is")
    if options.to == "iceberg" and "." not in options.url:
        raise SettingsError(f"export.url {options.url} names no Iceberg table: give NAMESPACE.TABLE")
    with ray_session(settings.cluster):
        _write_table(_as_dataset(source, manifest), options, options.url)
    say(f"export: {manifest['num_users']:,} users in the {options.to} table {options.url}")
    return options.url


def _write_long(settings: Settings, source: str, manifest: dict[str, Any], url: str) -> None:
    writer = BucketWriter(url=url, fingerprint=fingerprint_after({"long form of": source}, manifest["fingerprint"]))
    if is_published(url, writer.fingerprint):
        say(f"export: {url} is already written")
        return
    num_buckets = int(manifest["num_buckets"])
    progress = Progress("export", num_buckets, "buckets")
    with write_lease(url, "export") as lease:
        marks = writer.committed(num_buckets)
        missing = [bucket for bucket in range(num_buckets) if bucket not in marks]

        def write(bucket: int) -> dict[str, Any]:
            table = long_form(read_bucket(source, manifest, bucket, columns=[USER_ID, ITEM_IDS, SCORES]))
            return writer.commit(bucket, num_buckets, table, {"num_rows": table.num_rows})

        with ray_session(settings.cluster):
            for mark in map_buckets(write, missing):
                marks[mark["bucket"]] = mark
                progress.advance()
        lease.check()
        num_rows = sum(mark["num_rows"] for mark in marks.values())
        writer.publish(list(marks.values()), {"num_buckets": num_buckets})
    say(f"export: {num_rows:,} rows of user, rank, item and score in {url}")


def long_form(table: pa.Table) -> pa.Table:
    """Scores of users as one row an item: user_id, rank (from 1), item_id, score, and probabilities of responses."""
    lists = table.column(ITEM_IDS).combine_chunks()
    parents = pc.call_function("list_parent_indices", [lists])
    lengths = pc.call_function("list_value_length", [lists]).to_numpy()
    firsts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    of_items = {SCORE: SCORES} | {name: name for name in table.column_names if name.startswith(response_column(""))}
    return pa.table(
        {
            USER_ID: table.column(USER_ID).combine_chunks().take(parents),
            RANK: pa.array((np.arange(len(firsts)) - firsts + 1).astype(np.int32)),
            ITEM_ID: pc.call_function("list_flatten", [lists]),
        }
        | {
            name: pc.call_function("list_flatten", [table.column(lists_of).combine_chunks()])
            for name, lists_of in of_items.items()
        }
    )


def _as_dataset(source: str, manifest: dict[str, Any]) -> ray.data.Dataset:
    buckets = ray.data.range(int(manifest["num_buckets"]), override_num_blocks=int(manifest["num_buckets"]))
    return buckets.map_batches(partial(_read, source, manifest), batch_size=None, batch_format="pyarrow")


def _read(source: str, manifest: dict[str, Any], buckets: pa.Table) -> pa.Table:
    """Rows of some buckets, in types that every table format knows."""
    table = pa.concat_tables([read_bucket(source, manifest, bucket) for bucket in buckets.column("id").to_pylist()])
    return table.cast(pa.schema([pa.field(field.name, _common_type(field.type)) for field in table.schema]))


def _common_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_common_type(kind.value_type))
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _write_table(dataset: ray.data.Dataset, options: ExportSettings, url: str) -> None:
    match options.to:
        case "lance":
            dataset.write_lance(url, mode=SaveMode.OVERWRITE)
        case "delta":
            dataset.write_delta(url, mode=SaveMode.OVERWRITE)
        case "iceberg":
            _create_iceberg_table(url, options.catalog, dataset.schema())
            dataset.write_iceberg(url, catalog_kwargs=dict(options.catalog), mode=SaveMode.OVERWRITE)
        case "long":
            raise AssertionError("is written without Ray Data")


def _create_iceberg_table(name: str, catalog: dict[str, str], schema: Any) -> None:
    """Make the table, and its namespace, where the catalogue does not have it yet."""
    catalogs = importlib.import_module("pyiceberg.catalog")
    loaded = catalogs.load_catalog(**catalog)
    loaded.create_namespace_if_not_exists(name.rpartition(".")[0])
    loaded.create_table_if_not_exists(name, pa.schema(list(zip(schema.names, schema.types, strict=True))))
