"""Splits: where a user's history ends and targets begin.

By time: training history lies strictly before the validation cutoff, validation history strictly before the test
cutoff's targets, and no event at or after a cutoff enters a history. Leave-one-out exists to hold results against
papers: it leaks time between users, as theirs do. It holds out the last two events of a user or, where only some
actions are to be predicted, the last two events of these; a history is all that stands before the event held out.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from data_io.config import LeaveOneOut, TimeSplit
from data_io.schema import PADDING_INDEX, DataContractError
from data_io.sequences import Sequences
from data_io.store import MINUTE_US

Stage = Literal["validation", "test"]
DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutoffs:
    """Moments of a time split, microseconds since 1970 UTC."""

    validation: int
    test: int
    end: int
    """Just after the last event."""

    def of(self, stage: Stage) -> int:
        """The cutoff at which a stage's targets begin."""
        return self.validation if stage == "validation" else self.test

    def training_moments(self, num_moments: int, horizon_days: float, every_days: float | None = None) -> np.ndarray:
        """[C] moments so many days (None: one horizon) apart, the last one horizon before the validation cutoff."""
        every = horizon_days if every_days is None else every_days
        last = self.validation - int(horizon_days * DAY_US)
        return last - int(every * DAY_US) * np.arange(num_moments - 1, -1, -1)

    def describe(self) -> dict[str, str]:
        """The moments as text."""
        names = ("validation", "test", "end")
        return {name: datetime.fromtimestamp(getattr(self, name) / 1e6, UTC).isoformat() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTargets:
    """Leave-one-out where only some actions are to be predicted.

    Of each user the last event of these actions that has an item is the test target, the one before it the validation
    target. A user with fewer than two is not held out: all events train.
    """

    actions: tuple[int, ...]
    """Indices of the actions."""

    def describe(self) -> dict[str, str]:
        """The actions, by index, as text."""
        return {"last_targets_of": ", ".join(map(str, self.actions))}

    def places(self, sequences: Sequences, from_last: int) -> np.ndarray:
        """[U] the last (1) or last but one (2) target event of each user; the end of one that is not held out."""
        wanted = np.isin(sequences.action_index, self.actions) & (sequences.item_index != PADDING_INDEX)
        targets = np.flatnonzero(wanted)
        until = np.searchsorted(targets, sequences.ends)
        held_out = until - np.searchsorted(targets, sequences.starts) >= 2
        places = sequences.ends.copy()
        places[held_out] = targets[until[held_out] - from_last]
        return places


Split = Cutoffs | LastTargets | None
"""A resolved split: cutoffs in time, or leave-one-out of target events, or (None) of any events."""


def resolve_split(
    settings: TimeSplit | LeaveOneOut,
    minutes: np.ndarray,
    counts: np.ndarray,
    target_actions: np.ndarray | None = None,
) -> Split:
    """The split of a store, from its settings and its histogram of time.

    Args:
        settings: shares or explicit cutoffs, or leave-one-out.
        minutes, counts: as `SequenceStore.read_time_histogram` gives them.
        target_actions: indices of the actions that are to be predicted, which leave-one-out goes by; None: all.

    Raises:
        DataContractError: a part of the split would hold no event.
    """
    if isinstance(settings, LeaveOneOut):
        return None if target_actions is None else LastTargets(actions=tuple(target_actions.tolist()))
    end = int(minutes[-1] + 1) * MINUTE_US
    if settings.validation_cutoff_time and settings.test_cutoff_time:
        validation, test = _micros(settings.validation_cutoff_time), _micros(settings.test_cutoff_time)
    else:
        cumulative = np.cumsum(counts) / counts.sum()
        train_share = 1 - settings.validation_share - settings.test_share
        validation = _minute_after(minutes, cumulative, train_share)
        test = _minute_after(minutes, cumulative, 1 - settings.test_share)
    begins = minutes.astype(np.int64) * MINUTE_US
    between = (begins < test) & (begins + MINUTE_US > validation)
    if not (begins[0] < validation < test < end and between.any()):
        raise DataContractError(
            f"the time split leaves a part without events: log from {_text(int(begins[0]))} to {_text(end)}, "
            f"validation cutoff {_text(validation)}, test cutoff {_text(test)}; set split.validation_cutoff_time and "
            "split.test_cutoff_time inside the log, or split kind leave_one_out"
        )
    return Cutoffs(validation=validation, test=test, end=end)


def history_ends(sequences: Sequences, split: Split, stage: Stage) -> np.ndarray:
    """[U] one past the last event of each user's history at a stage; the target, if any, is the event there."""
    held_out = 2 if stage == "validation" else 1
    match split:
        case None:
            return np.maximum(sequences.ends - held_out, sequences.starts)
        case LastTargets():
            return split.places(sequences, held_out)
        case Cutoffs():
            return ends_before(sequences, split.of(stage))


def target_ends(sequences: Sequences, split: Split, stage: Stage) -> np.ndarray:
    """[U] one past the last event of each user that may be a target of a stage."""
    if not isinstance(split, Cutoffs):
        return np.minimum(history_ends(sequences, split, stage) + 1, sequences.ends)
    return ends_before(sequences, split.test) if stage == "validation" else sequences.ends


def ends_before(sequences: Sequences, cutoff: int) -> np.ndarray:
    """[U] one past the last event of each user strictly before a moment."""
    before = np.concatenate([[0], np.cumsum(sequences.event_time < cutoff)])
    return sequences.starts + before[sequences.ends] - before[sequences.starts]


def _minute_after(minutes: np.ndarray, cumulative: np.ndarray, share: float) -> int:
    """The end of the first minute by which this share of the events has happened."""
    return int(minutes[min(np.searchsorted(cumulative, share), len(minutes) - 1)] + 1) * MINUTE_US


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _text(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat()
