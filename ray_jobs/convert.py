"""The job that turns a well-known data set on disk into an event log."""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("convert")

from data_io import storage
from data_io.buckets import fingerprint
from data_io.schema import DataContractError
from data_io.sources import read_source, read_source_items
from ray_jobs.config import Settings
from ray_jobs.progress import Progress, say

DONE_NAME = "_SOURCE.json"


def run(settings: Settings) -> str:
    """Write the events of the source under RUN_DIR/events, and its items, if it has any, under RUN_DIR/items.

    Returns:
        The URL of the events.
    """
    url = storage.absolute(settings.place("events"))
    mark = {"fingerprint": fingerprint(settings.source.model_dump()), "source": settings.source.model_dump()}
    if storage.exists(storage.join(url, DONE_NAME)):
        if storage.read_json(storage.join(url, DONE_NAME))["fingerprint"] != mark["fingerprint"]:
            raise DataContractError(f"{url} holds events of another source; choose another run_dir or delete it")
        say(f"convert: {url} is already converted")
        return url
    tables = read_source(settings.source)
    storage.delete_folder(url)
    num_rows = 0
    progress = Progress("convert", 0, "rows")
    for part, table in enumerate(tables):
        num_rows += storage.write_parquet(storage.join(url, f"part-{part:05d}.parquet"), table).num_rows
    _write_items(settings)
    storage.write_json(storage.join(url, DONE_NAME), mark | {"num_rows": num_rows})
    say(f"convert: {num_rows:,} events in {url} after {progress.seconds:.0f} s; next: clickformer build_sequences")
    return url


def _write_items(settings: Settings) -> None:
    items = read_source_items(settings.source)
    if items is not None:
        url = storage.absolute(settings.place("items"))
        storage.delete_folder(url)
        storage.write_parquet(storage.join(url, "part-00000.parquet"), items)
        say(f"convert: {items.num_rows:,} items in {url}; items.path: RUN_DIR/items builds the store with them")
