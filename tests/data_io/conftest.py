"""Builders of tiny logs and sequences, as fixtures; session-wide, so that property tests may use them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.schema import TIME_TYPE
from data_io.sequences import Sequences

START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def make_events() -> Callable[..., pa.Table]:
    """A log that keeps the contract: users u0, u1, ... view items i0, i1, ..., a minute apart; columns may be given."""

    def make(num_users: int = 2, events_per_user: int = 3, **columns: Any) -> pa.Table:
        size = num_users * events_per_user
        table: dict[str, Any] = {
            "user_id": [f"u{row // events_per_user}" for row in range(size)],
            "item_id": [f"i{row % events_per_user}" for row in range(size)],
            "action": ["view"] * size,
            "event_time": pa.array([START + timedelta(minutes=row) for row in range(size)], TIME_TYPE),
        }
        return pa.table({name: values for name, values in (table | columns).items() if values is not None})

    return make


@pytest.fixture(scope="session")
def write_log() -> Callable[..., str]:
    """Writes tables as part-00000.parquet, part-00001.parquet, ... of a folder; returns the folder's URL."""

    def write(folder: Path, *tables: pa.Table, rows_per_group: int | None = None) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        for part, table in enumerate(tables):
            pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=rows_per_group)
        return str(folder)

    return write


@pytest.fixture(scope="session")
def make_sequences() -> Callable[..., Sequences]:
    """Sequences of users given as lists of (time, item index) or (time, item index, action index), in order."""

    def make(*users: list[tuple[int, ...]], unit_us: int = 1) -> Sequences:
        events = [event for user in users for event in user]
        return Sequences(
            user_id=pa.array([f"u{row}" for row in range(len(users))], pa.large_string()),
            offsets=np.cumsum([0, *(len(user) for user in users)]).astype(np.int64),
            event_time=np.array([event[0] * unit_us for event in events], np.int64),
            item_index=np.array([event[1] for event in events], np.int32),
            action_index=np.array([event[2] if len(event) > 2 else 2 for event in events], np.int16),
        )

    return make
