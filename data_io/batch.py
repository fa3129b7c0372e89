"""Batches: what the network sees. Names, shapes, and the function that makes them.

A batch is a dict of NumPy arrays (B examples, T events, left-aligned), turned into tensors by `model`. padding_mask is
True where an event is real. Invariant: what stands at a real position does not depend on the other examples of the
batch.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from data_io.columns import padding_rows
from data_io.examples import Examples
from data_io.schema import FIRST_INDEX, PADDING_INDEX
from data_io.sequences import Sequences

ITEM_INDEX: Final = "item_index"
"""[B, T] int64: the item of each event."""
ACTION_INDEX: Final = "action_index"
"""[B, T] int64: the action of each event."""
GAP: Final = "gap"
"""[B, T] int64: time bucket of the time since the user's event before."""
ELAPSED: Final = "elapsed"
"""[B, T] int64: time bucket of the time to the next event of the span, or from its last event to now."""
MOMENT: Final = "moment"
"""[B, T] int64: when each event was, microseconds since 1970 UTC; 0 at padding."""
ASKED_ACTION: Final = "asked_action"
"""[B, T] int64: the action of the event that is asked for after each, 0 for any; made by objectives and encoders."""
PADDING_MASK: Final = "padding_mask"
"""[B, T] bool: True where an event is real."""
TARGET_ITEM_INDEX: Final = "target_item_index"
"""[B, T] int64: the item to predict at each position; 0 where nothing is asked."""
TARGET_ACTION_INDEX: Final = "target_action_index"
"""[B, T] int64: the action of the event after each position; 0 where there is none."""
OUTCOME: Final = "outcome"
"""[B, L] float32: labels of questions; NaN where one is not asked."""
FEATURES: Final = "features"
"""[B, F] float32: counts and recency of the whole history (`data_io.features`)."""
CANDIDATE: Final = "candidate"
"""[B, K] int64: items that are shown, and may be responded to (`data_io.responses`)."""
PAIR_FEATURES: Final = "pair_features"
"""[B, K, 2] float32: what the user had with each of them before."""
PER_EXAMPLE: Final = (OUTCOME, FEATURES, CANDIDATE, PAIR_FEATURES)
"""Tensors that have no place for each event."""

COLUMN: Final = "column:"
"""Before the name of a further column of the events: [B, T] int64, of text [B, T, K] (`data_io.columns`)."""

Batch = dict[str, np.ndarray]

NUM_TIME_BUCKETS: Final = 64
"""Half-octaves of seconds: bucket 0 means no event before, 1 under 0.41 s, 63 beyond 68 years."""


def time_bucket(seconds: np.ndarray) -> np.ndarray:
    """Half-octave bucket (1 to 63) of non-negative durations."""
    return np.clip(1 + np.floor(2 * np.log2(np.maximum(seconds, 0) + 1)), 1, NUM_TIME_BUCKETS - 1).astype(np.int64)


def collate(sequences: Sequences, examples: Examples) -> Batch:
    """The batch of some examples, padded to the longest of them (at least one event wide), with all columns there are.

    Args:
        sequences: the bucket the examples point into.
        examples: B of them; an empty span gives a row of padding.
    """
    length = max(1, int((examples.end - examples.start).max(initial=1)))
    places = examples.start[:, None] + np.arange(length)
    real = places < examples.end[:, None]
    places = np.where(real, places, 0)
    if not len(sequences.item_index):
        return padding_batch(len(examples), {name: column.kind for name, column in sequences.columns.items()})
    is_first = places == sequences.starts[examples.row][:, None]
    previous = np.where(is_first, places, places - 1)
    time = sequences.event_time
    is_last = places == examples.end[:, None] - 1
    following = np.where(is_last, examples.now[:, None], time[np.minimum(places + 1, len(time) - 1)])
    gap = np.where(is_first, 0, time_bucket((time[places] - time[previous]) / 1e6))
    elapsed = time_bucket((following - time[places]) / 1e6)
    return {
        ITEM_INDEX: np.where(real, sequences.item_index[places], PADDING_INDEX).astype(np.int64),
        ACTION_INDEX: np.where(real, sequences.action_index[places], PADDING_INDEX).astype(np.int64),
        GAP: np.where(real, gap, 0),
        ELAPSED: np.where(real, elapsed, 0),
        MOMENT: np.where(real, time[places], 0),
        PADDING_MASK: real,
    } | {f"{COLUMN}{name}": column.at(places, real) for name, column in sequences.columns.items()}


def shifted_targets(
    sequences: Sequences, examples: Examples, target_actions: np.ndarray | None, *, new_only: bool = False
) -> np.ndarray:
    """[B, T] the item of the event after each input of training windows; 0 where it is not to be predicted.

    To be predicted are events of the target actions (None: all) that have a known item, with `new_only` one that the
    user did not have before.
    """
    real, following = _following(examples)
    target = sequences.item_index[following].astype(np.int64)
    wanted = real & (target >= FIRST_INDEX)
    if target_actions is not None:
        wanted &= np.isin(sequences.action_index[following], target_actions)
    if new_only:
        wanted &= sequences.first_times[following]
    return np.where(wanted, target, PADDING_INDEX)


def shifted_actions(sequences: Sequences, examples: Examples) -> np.ndarray:
    """[B, T] the action of the event after each input of training windows; 0 at padding."""
    real, following = _following(examples)
    return np.where(real, sequences.action_index[following].astype(np.int64), PADDING_INDEX)


def _following(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Which places [B, T] of training windows are real, and the event after each of them."""
    length = max(1, int((examples.end - examples.start).max(initial=1)))
    places = examples.start[:, None] + np.arange(length)
    real = places < examples.end[:, None]
    return real, np.where(real, places + 1, 0)


def merge_batches(batches: list[Batch]) -> Batch:
    """One batch of several (at least one), padded to the longest."""
    length = max(batch[ITEM_INDEX].shape[1] for batch in batches)
    return {name: np.concatenate([_widen(name, batch[name], length) for batch in batches]) for name in batches[0]}


def _widen(name: str, array: np.ndarray, length: int) -> np.ndarray:
    if name in PER_EXAMPLE or array.shape[1] == length:
        return array
    wide = np.zeros((len(array), length, *array.shape[2:]), array.dtype)
    wide[:, : array.shape[1]] = array
    return wide


def padding_batch(num_examples: int, columns: Mapping[str, str] | None = None) -> Batch:
    """A batch without a single real event; further columns are given by name and kind."""
    names = (ITEM_INDEX, ACTION_INDEX, GAP, ELAPSED, MOMENT)
    batch = {name: np.zeros((num_examples, 1), np.int64) for name in names}
    batch |= {f"{COLUMN}{name}": padding_rows(kind, num_examples) for name, kind in (columns or {}).items()}
    return batch | {PADDING_MASK: np.zeros((num_examples, 1), bool)}
