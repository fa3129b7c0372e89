"""The job that shows what was written for one user, for a person to read; it needs no cluster."""

from ray_jobs.cli import run_job

if __name__ == "__main__":
    run_job("lookup")

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.buckets import bucket_of, read_bucket
from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX, USER_ID, DataContractError
from data_io.scores import ITEM_IDS, MODEL_VERSION, NUM_EVENTS, RULES, SCORES, SOURCE, task_column
from data_io.snapshots import MANIFEST_NAME, read_manifest
from data_io.store import SequenceStore
from ray_jobs.config import Settings
from ray_jobs.progress import say

_SHOWN = ("title", "category", "brand", "price")


def run(settings: Settings) -> dict[str, Any]:
    """Show the scores of a user; returns the row."""
    if settings.lookup.user is None:
        raise SettingsError("lookup needs a user: clickformer lookup SETTINGS.yaml --user ID")
    url = storage.absolute(settings.place("scores"))
    row = find_user(url, settings.lookup.user)
    known = _known_items(settings, row[ITEM_IDS])
    say(f"user {row[USER_ID]}: {row[NUM_EVENTS]:,} events, list from {row[SOURCE]}, model {row[MODEL_VERSION]}")
    say(f"rules that acted: {', '.join(row[RULES]) or 'none'}")
    for name, value in row.items():
        if name.startswith(task_column("")):
            say(f"{name.removeprefix(task_column(''))}: {value:.3f}")
    for rank, (item, score) in enumerate(zip(row[ITEM_IDS], row[SCORES], strict=True), 1):
        say(f"{rank:>4}  {score:>8.3f}  {item}  {known.get(item, '')}".rstrip())
    _say_profile(storage.absolute(settings.place("profiles")), settings.lookup.user)
    return row


def _say_profile(url: str, user: str) -> None:
    """Show the profile of a user, if profiles are published and know the user."""
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return
    try:
        row = find_user(url, user)
    except DataContractError as error:
        say(f"profile: {error}")
        return
    for name, value in row.items():
        if value not in (None, []) and not name.startswith(task_column("")) and name not in (USER_ID, NUM_EVENTS):
            say(f"profile {name}: {_as_words(value)}")


def _as_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def find_user(url: str, user: str) -> dict[str, Any]:
    """The row of a user of published scores or profiles.

    Raises:
        DataContractError: nothing is published, or there is no such user.
    """
    manifest = read_manifest(url, made_by="clickformer score_users")
    kind = read_bucket(url, manifest, 0, columns=[USER_ID]).schema.field(USER_ID).type
    try:
        key = pa.array([int(user) if pa.types.is_integer(kind) else user], kind)
    except ValueError:
        raise DataContractError(f"{url}: user ids are {kind}, and {user} is none") from None
    (bucket,) = bucket_of(key, int(manifest["num_buckets"])).tolist()
    table = read_bucket(url, manifest, bucket)
    found = table.filter(pc.call_function("equal", [table.column(USER_ID), key[0]]))
    if not found.num_rows:
        raise DataContractError(f"{url}: there is no user {user}")
    return found.to_pylist()[0]


def _known_items(settings: Settings, item_ids: list[Any]) -> dict[Any, str]:
    """What the item table says of some items, as text; nothing where there is no item table."""
    try:
        store = SequenceStore.open(storage.absolute(settings.store_url))
        table = store.read_items([*_SHOWN])
    except (DataContractError, SettingsError):
        return {}
    chosen = store.vocabulary.encode(pa.array(item_ids, store.vocabulary.item_ids.type)) - FIRST_INDEX
    rows = table.take(pa.array(chosen)).to_pylist()
    return {
        item: ", ".join(_as_text(value) for value in row.values() if value not in (None, []))
        for item, row in zip(item_ids, rows, strict=True)
    }


def _as_text(value: Any) -> str:
    return " > ".join(map(str, value)) if isinstance(value, list) else str(value)
