"""Examples: which events of which user form one input of the network, and what is asked about it.

An example is a span of a bucket's flat events plus the moment of prediction. Training windows, histories to score and
outcomes to learn are all examples, so that one collate function serves them all. Invariant: no event after the moment
of prediction, and none at or after a cutoff, lies in an example's span.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np

from data_io.label_table import Asked
from data_io.labels import Question, label_users
from data_io.schema import PADDING_INDEX
from data_io.sequences import Sequences
from data_io.splits import Cutoffs, Split, Stage, ends_before, history_ends, target_ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """N examples of one bucket; every array is [N], save labels of questions and several candidates of one user."""

    row: np.ndarray
    """User's row in the bucket."""
    start: np.ndarray
    """First event of the span."""
    end: np.ndarray
    """One past the last event of the span."""
    now: np.ndarray
    """Moment of prediction, microseconds since 1970 UTC."""
    target: np.ndarray
    """Item index to predict (next item), or 0 where nothing is asked; of questions [N, L] labels, NaN where one is not
    asked."""
    candidate: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """[N] or, of several items each, [N, K] int32 items that are shown; empty where the question names none."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at these places, in this order."""
        return Examples(
            row=self.row[indices],
            start=self.start[indices],
            end=self.end[indices],
            now=self.now[indices],
            target=self.target[indices],
            candidate=self.candidate[indices] if len(self.candidate) else self.candidate,
        )

    def with_candidates(self, candidate: np.ndarray) -> "Examples":
        """The same, asked about items [N] or [N, K]."""
        return replace(self, candidate=candidate.astype(np.int32))


def window_examples(sequences: Sequences, split: Split, length: int, most: int | None = None) -> Examples:
    """Training windows: each user's history at the validation cutoff, cut from its end into spans of `length` inputs.

    The target of each input is the event after it, so neighbouring windows share one event. A user with fewer than two
    events has no window.

    Args:
        sequences: of a bucket.
        split: of the run.
        length: most inputs of a window.
        most: newest windows of each user; None: all.
    """
    ends = history_ends(sequences, split, "validation") - 1
    inputs = np.maximum(ends - sequences.starts, 0)
    windows = -(-inputs // length)
    if most is not None:
        windows = np.minimum(windows, most)
    row = np.repeat(np.arange(sequences.num_users), windows)
    from_last = np.arange(len(row)) - np.repeat(np.cumsum(windows) - windows, windows)
    end = ends[row] - from_last * length
    start = np.maximum(end - length, sequences.starts[row])
    now = sequences.event_time[end] if len(end) else np.zeros(0, np.int64)
    return Examples(row=row, start=start, end=end, now=now, target=np.zeros(len(row), np.int32))


def history_examples(sequences: Sequences, now: int | None, length: int) -> Examples:
    """The newest `length` events of every user, users without events included.

    Args:
        sequences: of a bucket.
        now: moment of prediction; events at or after it are left out. None: every event counts and each user's moment
            is just after the last one.
        length: most events a span may hold.
    """
    ends = sequences.ends if now is None else ends_before(sequences, now)
    no_event = np.zeros(len(ends), np.int64)
    last = sequences.event_time[np.maximum(ends - 1, 0)] if len(sequences.event_time) else no_event
    moments = last + 1 if now is None else np.full(len(ends), now)
    return _spans(sequences, np.arange(len(ends)), ends, moments, length, np.zeros(len(ends), np.int32))


def next_item_examples(
    sequences: Sequences,
    split: Split,
    stage: Stage,
    length: int,
    target_actions: np.ndarray | None,
    *,
    new_only: bool = False,
) -> Examples:
    """One example for each user who has history before and a target after the stage's cutoff.

    The target is the first event from the cutoff on that has an item, a wanted action and, with `new_only`, an item
    that the user did not have before; an item outside the vocabulary counts, as one that no model can name. Under a
    time split the moment of prediction is the cutoff, under leave-one-out the target's own time.
    """
    ends = history_ends(sequences, split, stage)
    wanted = (sequences.item_index != PADDING_INDEX) & wanted_events(sequences, target_actions, new_only=new_only)
    target = _first_of(wanted, ends, target_ends(sequences, split, stage))
    row = np.flatnonzero((target >= 0) & (ends > sequences.starts))
    by_time = isinstance(split, Cutoffs)
    moments = np.full(len(row), split.of(stage)) if by_time else sequences.event_time[target[row]]
    return _spans(sequences, row, ends[row], moments, length, sequences.item_index[target[row]])


def question_examples(
    sequences: Sequences, cutoffs: np.ndarray, length: int, questions: Seq[Question], asked: Asked
) -> Examples:
    """Questions asked of every user with history at each of several cutoffs, if any of them can be.

    Args:
        sequences: of a bucket, with the numbers that labels are made of.
        cutoffs: [C] moments, microseconds since 1970 UTC.
        length: most events a span may hold.
        questions: what is asked; only events in [cutoff, cutoff + horizon) answer it.
        asked: what for.
    """
    parts = []
    for cutoff in cutoffs.tolist():
        ends = ends_before(sequences, cutoff)
        labels = label_users(questions, sequences, cutoff, asked)
        row = np.flatnonzero((ends > sequences.starts) & ~np.isnan(labels).all(axis=1))
        parts.append(_spans(sequences, row, ends[row], np.full(len(row), cutoff), length, labels[row]))
    return concatenate(parts)


def concatenate(parts: list[Examples]) -> Examples:
    """Examples of one bucket, one part after the other."""
    names = ("row", "start", "end", "now", "target", "candidate")
    return Examples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def wanted_events(sequences: Sequences, actions: np.ndarray | None, *, new_only: bool) -> np.ndarray:
    """[E] True at events of these actions (None: any) and, with `new_only`, of an item new to the user."""
    wanted = np.ones(len(sequences.item_index), bool)
    if actions is not None:
        wanted &= np.isin(sequences.action_index, actions)
    return wanted & sequences.first_times if new_only else wanted


def _first_of(wanted: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[U] the first wanted event in [begin, end), or -1."""
    places = np.append(np.flatnonzero(wanted), np.iinfo(np.int64).max)
    first = places[np.searchsorted(places, begins)]
    return np.where(first < ends, first, -1)


def _spans(
    sequences: Sequences, row: np.ndarray, ends: np.ndarray, moments: np.ndarray, length: int, target: np.ndarray
) -> Examples:
    start = np.maximum(ends - length, sequences.starts[row])
    kind = np.float32 if target.ndim > 1 else np.int32
    return Examples(row=row, start=start, end=ends, now=moments, target=target.astype(kind))
