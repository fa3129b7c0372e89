"""Searches: what is asked by whom and when, from a log's held-out purchases or from requests, as sequences to encode.

A search becomes the last event of a copy of its user's history, as it would stand in the log. Invariant: no event at or
after a search's own moment enters its sequence.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data_io.columns import EncodedColumn, encode_column
from data_io.examples import wanted_events
from data_io.schema import PADDING_INDEX, QUERY
from data_io.sequences import Sequences
from data_io.splits import Split, Stage, history_ends, target_ends

NOBODY = -1
"""Row of a user of whom the store knows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """N searches of users of one bucket; arrays are [N]."""

    row: np.ndarray
    """User's row in the bucket, or `NOBODY`."""
    before: np.ndarray
    """One past the last event of the user before the search."""
    query: pa.Array
    """What is sought, as text; null: nothing, the history alone says what is next."""
    time: np.ndarray
    """Moment of the search, microseconds since 1970 UTC."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: np.ndarray) -> "Searches":
        """The searches at these places, in this order."""
        return Searches(
            row=self.row[places],
            before=self.before[places],
            query=self.query.take(pa.array(places)),
            time=self.time[places],
        )

    def without_history(self) -> "Searches":
        """The same queries of users of whom nothing is known."""
        return replace(self, row=np.full(len(self), NOBODY), before=np.zeros(len(self), np.int64))

    def without_query(self) -> "Searches":
        """The same users and moments, with nothing sought."""
        return replace(self, query=pa.nulls(len(self), self.query.type))


def held_out_searches(
    sequences: Sequences,
    queries: pa.Array,
    split: Split,
    stage: Stage,
    search_action: int,
    target_actions: np.ndarray | None,
    *,
    new_only: bool = False,
) -> tuple[Searches, np.ndarray]:
    """The first search of each user after a stage's cutoff that led to a target, and the items [N] it led to.

    A search leads to the event right after it, if that has an item and a wanted action and, with `new_only`, an item
    that the user did not have before.

    Args:
        sequences: of a bucket.
        queries: [E] text of its events.
        split, stage, target_actions: as in `data_io.examples.next_item_examples`.
        search_action: index of the action of searches.
        new_only: whether only items new to their user are targets.
    """
    wanted = (sequences.item_index != PADDING_INDEX) & wanted_events(sequences, target_actions, new_only=new_only)
    wanted &= _follow_searches(sequences, queries, search_action)
    begins, ends = history_ends(sequences, split, stage), target_ends(sequences, split, stage)
    places = np.append(np.flatnonzero(wanted), np.iinfo(np.int64).max)
    first = places[np.searchsorted(places, begins)]
    row = np.flatnonzero(first < ends)
    target = first[row]
    asked = target - 1
    searches = Searches(row=row, before=asked, query=queries.take(pa.array(asked)), time=sequences.event_time[asked])
    return searches, sequences.item_index[target].astype(np.int64)


def training_searches(
    sequences: Sequences, queries: pa.Array, split: Split, search_action: int, target_actions: np.ndarray | None
) -> tuple[pa.Array, np.ndarray]:
    """Queries and the items [N] they led to, of all events before the validation cutoff."""
    wanted = (sequences.item_index != PADDING_INDEX) & wanted_events(sequences, target_actions, new_only=False)
    wanted &= _follow_searches(sequences, queries, search_action)
    ends = history_ends(sequences, split, "validation")
    user = np.repeat(np.arange(sequences.num_users), np.diff(sequences.offsets))
    places = np.flatnonzero(wanted & (np.arange(len(wanted)) < ends[user]))
    return queries.take(pa.array(places - 1)), sequences.item_index[places].astype(np.int64)


def _follow_searches(sequences: Sequences, queries: pa.Array, search_action: int) -> np.ndarray:
    """[E] True at events right after a search with a query of the same user."""
    is_search = (sequences.action_index == search_action) & queries.is_valid().to_numpy(zero_copy_only=False)
    follows = np.append(False, is_search[:-1])[: len(is_search)]
    follows[sequences.starts[sequences.starts < len(follows)]] = False
    return follows


def places_before(searches: Searches, sequences: Sequences, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(search, place of an event) of every event, or the newest so many, before each search."""
    known = searches.row != NOBODY
    first = np.where(known, sequences.starts[searches.row], 0) if sequences.num_users else np.zeros(len(searches), int)
    last = np.where(known, searches.before, 0)
    if most is not None:
        first = np.maximum(first, last - most)
    lengths = last - first
    search = np.repeat(np.arange(len(searches)), lengths)
    return search, np.arange(len(search)) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)


def search_sequences(searches: Searches, sequences: Sequences, search_action: int, length: int) -> Sequences:
    """A user for each search: the newest events before it, and the search itself where anything is sought.

    Args:
        searches: N of a bucket.
        sequences: of the bucket.
        search_action: index of the action of searches.
        length: most events of a user.
    """
    asks = searches.query.is_valid().to_numpy(zero_copy_only=False)
    search, places = places_before(searches, sequences, length - 1)
    lengths = np.bincount(search, minlength=len(searches)) + asks
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    num_events = len(sequences.item_index)
    order = np.zeros(offsets[-1], np.int64)
    is_last = np.zeros(offsets[-1], bool)
    is_last[offsets[1:][asks] - 1] = True
    order[~is_last], order[is_last] = places, num_events + np.flatnonzero(asks)
    count = len(searches)
    return Sequences(
        user_id=pa.array(range(count)),
        offsets=offsets,
        item_index=np.append(sequences.item_index, np.full(count, PADDING_INDEX, np.int32))[order],
        action_index=np.append(sequences.action_index, np.full(count, search_action, np.int16))[order],
        event_time=np.append(sequences.event_time, searches.time)[order],
        columns={
            name: _with_queries(name, column, searches.query, order) for name, column in sequences.columns.items()
        },
    )


def _with_queries(name: str, column: EncodedColumn, queries: pa.Array, order: np.ndarray) -> EncodedColumn:
    """A column of the events and then of the searches, who have a query and nothing else, in some order."""
    if name != QUERY:
        code = np.append(column.code, np.zeros(len(queries), column.code.dtype))
        return replace(column, code=code[order])
    new = encode_column(column.kind, queries)
    shifted = np.where(new.code > 0, new.code + len(column.tokens) - 1, 0)  # its text 0 is the missing one too
    return EncodedColumn(
        kind=column.kind,
        code=np.append(column.code, shifted)[order],
        tokens=np.concatenate([column.tokens, new.tokens[1:]]),
    )
