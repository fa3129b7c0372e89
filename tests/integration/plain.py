"""Random logs, and what a store of them must hold: a loop over rows that knows no buckets, runs, parts or indices."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data_io.schema import TIME_TYPE

START_US = 1_704_067_200_000_000
"""2024-01-01."""
MINUTE_US = 60_000_000
BATCH_MINUTES = 240
CARRIED = ("session_id", "query", "price", "quantity", "rating")
FEATURES = {"device": "categorical", "discount": "numeric"}
UNKNOWN = "(unknown)"

Event = tuple[Any, ...]
"""item_id, action, event_time in microseconds, then CARRIED and FEATURES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogShape:
    """What a random log has, and by which rules a store of it is built."""

    int_ids: bool = False
    event_ids: bool = False
    drop_duplicates: bool = True
    max_events: int | None = None
    min_item_count: int = 1
    rows_per_run: int = 2_000_000

    @property
    def sections(self) -> dict[str, Any]:
        """Settings of a store of such a log."""
        return {
            "events": {"max_bad_share": 0.5, "features": FEATURES, "drop_duplicates": self.drop_duplicates},
            "store": {
                "num_buckets": 4,
                "max_events_per_user": self.max_events,
                "min_item_count": self.min_item_count,
                "rows_per_run": self.rows_per_run,
            },
        }


def random_batches(seed: int, shape: LogShape, num_batches: int = 3, num_rows: int = 150) -> list[pa.Table]:
    """Batches of a log, one after the other in time but for late events.

    Later batches have new users, items and actions. There are duplicates within and across batches, events of equal
    time, events that differ in one column only, searches without an item, and rows without a user.
    """
    rng = np.random.default_rng(seed)
    minutes = rng.permutation(num_batches * BATCH_MINUTES)
    batches: list[list[dict[str, Any]]] = []
    for number in range(num_batches):
        rows = [_random_row(rng, shape, number, minutes, len(batches) * num_rows + row) for row in range(num_rows)]
        rows += [dict(rows[place]) for place in rng.integers(0, num_rows, 12)]
        earlier = [row for batch in batches for row in batch]
        rows += [dict(earlier[place]) for place in rng.integers(0, len(earlier), 25)] if earlier else []
        rows += [_nearly(rng, rows[place], shape) for place in rng.integers(0, num_rows, 6)]
        rng.shuffle(rows)  # type: ignore[arg-type]
        batches.append(rows)
    return [_table(rows, shape) for rows in batches]


def _random_row(
    rng: np.random.Generator, shape: LogShape, batch: int, minutes: np.ndarray, number: int
) -> dict[str, Any]:
    is_late = batch > 0 and rng.random() < 0.2
    when = rng.integers(0, batch) if is_late else batch
    minute = when * BATCH_MINUTES + rng.integers(0, BATCH_MINUTES)
    user, item = int(rng.integers(0, 20 + 6 * batch) ** 2 // 25), int(rng.integers(0, 30 + 15 * batch) ** 2 // 30)
    action = str(rng.choice(["view", "search", "purchase", "cart", "rate"][: 3 + batch]))
    has_item = action != "search" or rng.random() < 0.5
    if shape.max_events is not None:  # which of equal times are the newest depends on when they came
        minute = minutes[number % len(minutes)]
    return {
        "user_id": None if rng.random() < 0.02 else user if shape.int_ids else f"user {user}",
        "item_id": None if not has_item else item - 5 if shape.int_ids else f"item/{item}",
        "action": action,
        "event_time": START_US + int(minute) * MINUTE_US,
        "session_id": None if rng.random() < 0.3 else f"s{minute // 30}",
        "query": f"words {item % 3}" if action == "search" else None,
        "price": None if rng.random() < 0.2 else float(rng.integers(0, 40)) / 4,
        "quantity": float(rng.integers(1, 3)),
        "rating": float(rng.integers(1, 6)) if action == "rate" else None,
        "device": str(rng.choice(["phone", "desk"])),
        "discount": float(rng.integers(0, 2)),
        "event_id": None if rng.random() < 0.2 else number if shape.int_ids else f"e{number}",
    }


def _nearly(rng: np.random.Generator, row: dict[str, Any], shape: LogShape) -> dict[str, Any]:
    """Nearly the same event: another price, or, where ids tell, another time."""
    if shape.event_ids and shape.max_events is None and rng.random() < 0.5:
        return row | {"event_time": row["event_time"] + MINUTE_US}
    return dict(row) if shape.max_events is not None else row | {"price": 99.0}


def _table(rows: Sequence[dict[str, Any]], shape: LogShape) -> pa.Table:
    id_type = pa.int64() if shape.int_ids else pa.string()
    types = {
        "user_id": id_type,
        "item_id": id_type,
        "action": pa.string(),
        "event_time": TIME_TYPE,
        "session_id": pa.string(),
        "query": pa.string(),
        "price": pa.float64(),
        "quantity": pa.int64(),
        "rating": pa.float32(),
        "device": pa.string(),
        "discount": pa.float64(),
    }
    types |= {"event_id": id_type} if shape.event_ids else {}
    columns = {name: pa.array([row[name] for row in rows], pa.int64() if name == "event_time" else data_type)
               for name, data_type in types.items()}  # fmt: skip
    return pa.table({name: values.cast(types[name]) for name, values in columns.items()})


@dataclass(frozen=True, kw_only=True)
class PlainStore:
    """What a store holds, in plain rows."""

    users: dict[Any, list[Event]] = field(default_factory=dict)
    """Events by user, in order."""
    num_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    num_duplicates: int = 0
    num_truncated: int = 0
    num_forgotten: int = 0
    items: Counter[Any] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    minutes: Counter[int] = field(default_factory=Counter)


def plain_store(batches: Sequence[pa.Table], shape: LogShape, forgotten: Sequence[Any] = ()) -> PlainStore:
    """The store of batches that came in this order, `forgotten` users having had tombstones before."""
    rows = [row for batch in batches for row in batch.cast(_plain_times(batch.schema)).to_pylist()]
    mine = [row for row in rows if row["user_id"] not in forgotten]
    reasons = Counter(reason for row in mine if (reason := _fault(row)))
    good = [row for row in mine if not _fault(row)]
    kept = _distinct(good) if shape.drop_duplicates else good
    users: dict[Any, list[Event]] = {}
    for row in sorted(kept, key=lambda row: row["event_time"]):
        users.setdefault(row["user_id"], []).append(_event(row))
    newest = {user: events[-(shape.max_events or len(events)) :] for user, events in users.items()}
    return PlainStore(
        users=newest,
        num_rows=len(rows),
        reasons=reasons,
        num_duplicates=len(good) - len(kept),
        num_truncated=len(kept) - sum(map(len, newest.values())),
        num_forgotten=len(rows) - len(mine),
        items=Counter(row["item_id"] for row in good if row["item_id"] is not None),
        actions=Counter(row["action"] for row in good),
        minutes=Counter(row["event_time"] // MINUTE_US for row in good),
    )


def _plain_times(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("event_time"), pa.field("event_time", pa.int64()))


def _fault(row: dict[str, Any]) -> str | None:
    if row["user_id"] in (None, ""):
        return "empty_user_id"
    return "empty_item_id" if row["item_id"] is None and row["action"] != "search" else None


def _distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows but for those that repeat an earlier one in every column, or in user and event id."""
    kept, seen = [], set()
    for row in rows:
        marks = {tuple(row.items())}
        if row.get("event_id") is not None:
            marks.add((row["user_id"], row["event_id"]))
        if not marks & seen:
            kept.append(row)
        seen |= marks
    return kept


def _event(row: dict[str, Any]) -> Event:
    carried = [row[name] for name in (*CARRIED, *FEATURES) if name in row]
    return (row["item_id"], row["action"], row["event_time"], *carried)
