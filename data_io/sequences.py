"""Sequences: the events of each user in order, as flat columns and as rows of the store.

Events of a bucket are flat columns; a user is a slice of them given by offsets. Nothing here calls Python once a user.
How encoded events become sequences, and how parts of a user's sequence become one, is in `data_io.merging`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from data_io.columns import EncodedColumn, encode_column
from data_io.schema import ACTION_INDEX, EVENT_TIME, FIRST_INDEX, ITEM_INDEX, UNKNOWN_INDEX, USER_ID

_EVENTS_AT_A_TIME = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Users of one bucket: E events in flat columns, user u owning events offsets[u] to offsets[u + 1]."""

    user_id: pa.Array
    offsets: np.ndarray
    """[U + 1] int64."""
    item_index: np.ndarray
    """[E] int32."""
    action_index: np.ndarray
    """[E] int16."""
    event_time: np.ndarray
    """[E] int64, microseconds since 1970 UTC."""
    columns: Mapping[str, EncodedColumn] = field(default_factory=dict)
    """Further columns of the events that were asked for, by name."""
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[E] float32 numbers of the events that were asked for as they are, by column; NaN where one is missing."""

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def starts(self) -> np.ndarray:
        """[U] first event of each user."""
        return self.offsets[:-1]

    @property
    def ends(self) -> np.ndarray:
        """[U] one past the last event of each user."""
        return self.offsets[1:]

    @cached_property
    def first_times(self) -> np.ndarray:
        """[E] True where a user has an item for the first time; items outside the vocabulary may all be other ones."""
        row = np.repeat(np.arange(self.num_users), np.diff(self.offsets))
        pairs = row * (int(self.item_index.max(initial=0)) + 1) + self.item_index
        first = self.item_index < FIRST_INDEX
        first[np.unique(pairs, return_index=True)[1]] = True
        return first

    def known_to(self, vocabulary_size: int, num_actions: int) -> "Sequences":
        """The same events as a model sees them that was trained before the newest items and actions came up.

        Args:
            vocabulary_size: items from this index on become the unknown one.
            num_actions: actions from this index on become the unknown one.
        """
        items, actions = self.item_index, self.action_index
        if items.max(initial=0) < vocabulary_size and actions.max(initial=0) < num_actions:
            return self
        return replace(
            self,
            item_index=np.where(items < vocabulary_size, items, np.int32(UNKNOWN_INDEX)),
            action_index=np.where(actions < num_actions, actions, np.int16(UNKNOWN_INDEX)),
        )


def event_micros(times: pa.ChunkedArray) -> np.ndarray:
    """[E] microseconds since 1970 UTC of event times."""
    return times.combine_chunks().cast(pa.int64()).to_numpy()


def iter_micros(times: pa.ChunkedArray) -> Iterator[tuple[int, np.ndarray]]:
    """Where a few events begin, and their microseconds since 1970 UTC, part by part.

    What is made of so few stays in the cache of a core, where pages of memory are not asked for again and again.
    """
    begin = 0
    for chunk in times.chunks:
        micros = chunk.cast(pa.int64()).to_numpy()
        for place in range(0, len(micros), _EVENTS_AT_A_TIME):
            part = micros[place : place + _EVENTS_AT_A_TIME]
            yield begin, part
            begin += len(part)


def add_counts(counts: np.ndarray, values: np.ndarray) -> None:
    """Add how often each value from 0 occurs to `counts`; quick where the values lie close together."""
    first = int(values.min())
    found = np.bincount(values - first)
    counts[first : first + len(found)] += found


def flat_values(lists: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Offsets [U + 1] from 0, and the values [E] they point into, of a list column; values are not copied."""
    whole = lists.combine_chunks()
    raw = whole.offsets.to_numpy()
    return raw - raw[0], whole.values.slice(raw[0], raw[-1] - raw[0])


def to_sequences(table: pa.Table, kinds: Mapping[str, str] | None = None, numbers: Sequence[str] = ()) -> Sequences:
    """Flat columns of store rows, without copying the events.

    Args:
        table: rows with user_id, item_index, action_index and event_time.
        kinds: of further columns to encode, by name; None: none.
        numbers: columns whose numbers are taken as they are.
    """
    offsets = np.zeros(1, np.int64)
    columns: dict[str, np.ndarray] = {}
    for name in (ITEM_INDEX, ACTION_INDEX, EVENT_TIME):
        offsets, values = flat_values(table.column(name))
        flat = values.to_numpy(zero_copy_only=False)
        columns[name] = flat.astype("datetime64[us]").view(np.int64) if name == EVENT_TIME else flat
    further = {name: encode_column(kind, flat_values(table.column(name))[1]) for name, kind in (kinds or {}).items()}
    as_they_are = {name: flat_values(table.column(name))[1].to_numpy(zero_copy_only=False) for name in numbers}
    user_id = table.column(USER_ID).combine_chunks()
    return Sequences(user_id=user_id, offsets=offsets, columns=further, numbers=as_they_are, **columns)
