"""Responses: which items that a user is shown after a moment are responded to, and what is known of the pair.

Pure functions on the flat columns of a bucket, without a loop over users. Invariants: what is shown is given and only
the response is predicted; whatever else is told of a pair stems from events strictly before the moment.
"""

from dataclasses import dataclass

import numpy as np

from data_io.examples import Examples, concatenate
from data_io.schema import FIRST_INDEX
from data_io.scores import history_places
from data_io.sequences import Sequences
from data_io.splits import DAY_US, ends_before

NUM_PAIR_FEATURES = 2
_RECENT_DAYS = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownItems:
    """What counts as shown, what as a response, and within what time."""

    shown: np.ndarray
    """Indices of actions that show an item."""
    actions: np.ndarray
    """Indices of actions that respond to it."""
    horizon_days: float
    """Days after the moment in which both must fall."""
    most_candidates: int
    """Items of a user and moment that are asked about, the first by time."""


def response_examples(sequences: Sequences, moments: np.ndarray, length: int, asked: ShownItems) -> Examples:
    """An example for each user with history, moment and item that is shown within the horizon.

    The label is 1 where a response to the same item stands at or after its first showing, within the horizon too.
    Examples of a user and moment stand together, in the order of showing.

    Args:
        sequences: of a bucket.
        moments: [C] microseconds since 1970 UTC.
        length: most events of a span.
        asked: what is shown, and what responds.
    """
    parts = [_at_moment(sequences, moment, length, asked) for moment in moments.tolist()]
    return concatenate(parts)


def _at_moment(sequences: Sequences, moment: int, length: int, asked: ShownItems) -> Examples:
    ends = ends_before(sequences, moment)
    row = np.repeat(np.arange(sequences.num_users), np.diff(sequences.offsets))
    pair = row * (int(sequences.item_index.max(initial=0)) + 1) + sequences.item_index
    time = sequences.event_time
    inside = (time >= moment) & (time < moment + int(asked.horizon_days * DAY_US))
    inside &= (sequences.item_index >= FIRST_INDEX) & (ends > sequences.starts)[row]
    pairs, first = _firsts(pair, np.flatnonzero(inside & np.isin(sequences.action_index, asked.shown)))
    responses = np.flatnonzero(inside & np.isin(sequences.action_index, asked.actions))
    label = _last_of(pair, responses, pairs) >= first
    order = np.argsort(first)  # events of a bucket stand user by user, each user's in time
    order = order[_place_in_run(row[first[order]]) < asked.most_candidates]
    first, label = first[order], label[order]
    own = row[first]
    return Examples(
        row=own,
        start=np.maximum(ends[own] - length, sequences.starts[own]),
        end=ends[own],
        now=np.full(len(own), moment),
        target=label[:, None].astype(np.float32),
        candidate=sequences.item_index[first].astype(np.int32),
    )


def pair_features(sequences: Sequences, examples: Examples) -> np.ndarray:
    """[N, 2] or [N, K, 2] float32 of each candidate: log(1 + events the user had with it before now), over the whole
    history, and exp(-days since the last of them / 7), 0 where there is none."""
    shape = examples.candidate.shape
    spans = examples.row * (len(sequences.item_index) + 1) + examples.end
    _, first, user = np.unique(spans, return_index=True, return_inverse=True)
    event_user, places = history_places(sequences, examples.take(first))
    size = 1 + max(int(part.max(initial=0)) for part in (sequences.item_index, examples.candidate))
    asked = user.reshape(-1, *[1] * (len(shape) - 1)) * size + examples.candidate
    pairs, back = np.unique(asked, return_inverse=True)
    events = event_user * size + sequences.item_index[places]
    slot = np.minimum(np.searchsorted(pairs, events), max(len(pairs) - 1, 0))
    hit = pairs[slot] == events if len(pairs) else np.zeros(len(events), bool)
    count = np.bincount(slot[hit], minlength=len(pairs))[back].reshape(shape)
    last = np.full(len(pairs), -1)
    last[slot[hit]] = places[hit]  # of several the last one written stays: the newest
    last = last[back].reshape(shape)
    now = examples.now.reshape(-1, *[1] * (len(shape) - 1))
    times = np.append(sequences.event_time, 0)[last]
    recency = np.where(last >= 0, np.exp(-np.maximum(now - times, 0) / (DAY_US * _RECENT_DAYS)), 0.0)
    return np.stack([np.log1p(count), recency], axis=-1).astype(np.float32)


def by_user(examples: Examples) -> tuple[Examples, tuple[np.ndarray, np.ndarray]]:
    """Examples of a candidate each as examples [U, K] of all candidates of a user and moment, 0 where there is no
    further one; and where each was put: its row [N] and column [N]."""
    changes = np.ones(len(examples), bool)
    changes[1:] = (np.diff(examples.row) != 0) | (np.diff(examples.now) != 0)
    row = np.cumsum(changes) - 1
    column = _place_in_run(row)
    users = examples.take(np.flatnonzero(changes))
    grid = np.zeros((len(users), int(column.max(initial=0)) + 1), np.int32)
    grid[row, column] = examples.candidate
    return users.with_candidates(grid), (row, column)


def _firsts(pair: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs among events at rising places, rising, and the first place of each."""
    pairs, first = np.unique(pair[places], return_index=True)
    return pairs, places[first]


def _last_of(pair: np.ndarray, places: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[N] the last of some events at rising places with each of these rising pairs [N]; -1 where there is none."""
    last = np.full(len(pairs), -1)
    known = np.isin(pair[places], pairs)
    last[np.searchsorted(pairs, pair[places][known])] = places[known]  # of several the last one written stays
    return last


def _place_in_run(values: np.ndarray) -> np.ndarray:
    """[N] how many equal values stand right before each."""
    begins = np.ones(len(values), bool)
    begins[1:] = values[1:] != values[:-1]
    starts = np.flatnonzero(begins)
    return np.arange(len(values)) - starts[np.cumsum(begins) - 1] if len(values) else np.zeros(0, np.int64)
