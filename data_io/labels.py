"""Labels: answers to questions about users at a moment, read off the events that follow it.

Pure functions on the flat columns of a bucket. A label is NaN where a question is not asked of a user. Invariant: only
events in [moment, moment + horizon) decide an answer, and who is asked, save for conversion, whose open items are known
at the moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from data_io.label_table import Asked
from data_io.question_config import (
    Answer,
    CategoriesQuestion,
    ChurnQuestion,
    ConversionQuestion,
    EventQuestion,
    NextCategoryQuestion,
    QuestionSettings,
    RatingQuestion,
    SegmentQuestion,
    SpendQuestion,
    TableQuestion,
    horizon_of,
)
from data_io.schema import PADDING_INDEX, PRICE, QUANTITY, RATING
from data_io.sequences import Sequences
from data_io.splits import DAY_US

NO_CLASS = -1


class HeldLabels(Protocol):
    """Labels that do not come from events."""

    def labels(self, user_ids: pa.Array, moment: int, horizon: int, asked: Asked) -> np.ndarray:
        """[U] labels of users of a bucket, as `LabelTable.labels` gives them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question as it can be asked of a store."""

    name: str
    settings: QuestionSettings
    classes: tuple[str, ...] = ()
    """What is told apart, by place; empty where no class is."""
    item_class: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    """[V] class of each item, or 1 where an item counts and 0 where not; -1 is none. Empty where any item
    does."""
    actions: np.ndarray | None = None
    """Indices of actions that count; None: any event."""
    opening: np.ndarray | None = None
    """Indices of actions that open an item."""
    table: HeldLabels | None = None
    """Labels that stand in a table, the user table among them."""

    @property
    def answer(self) -> Answer:
        """What an answer is."""
        return self.settings.answer

    @property
    def width(self) -> int:
        """Columns of its labels."""
        return len(self.classes) if self.answer == "labels" else 1


def longest_horizon(questions: Sequence[Question]) -> float:
    """Days after a moment that any of the questions looks at."""
    return max(horizon_of(question.settings) for question in questions)


def label_users(
    questions: Sequence[Question], sequences: Sequences, moment: int, asked: Asked = "training"
) -> np.ndarray:
    """[U, L] float32 labels of every user of a bucket, the columns of one question after the other.

    Args:
        questions: what is asked.
        sequences: of the bucket, with the numbers that labels are made of.
        moment: microseconds since 1970 UTC.
        asked: what for; labels that hold at all times are asked of other users for each.
    """
    parts = [
        _labels(question, sequences, moment, asked).reshape(sequences.num_users, question.width)
        for question in questions
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _labels(question: Question, sequences: Sequences, moment: int, asked: Asked) -> np.ndarray:
    settings = question.settings
    if isinstance(settings, SegmentQuestion | TableQuestion):
        assert question.table is not None
        return question.table.labels(sequences.user_id, moment, int(horizon_of(settings) * DAY_US), asked)
    followers = _Followers(question, sequences, moment)
    match settings:
        case EventQuestion():
            return (followers.sums(followers.of_wanted_items()) > 0).astype(np.float64)
        case ChurnQuestion():
            return (followers.sums() == 0).astype(np.float64)
        case SpendQuestion():
            return followers.sums(_amounts(sequences))
        case RatingQuestion():
            ratings = sequences.numbers[RATING]
            return followers.first(~np.isnan(ratings), ratings)
        case NextCategoryQuestion():
            classes = question.item_class[sequences.item_index]
            return followers.first(classes != NO_CLASS, classes)
        case CategoriesQuestion():
            return followers.any_of_classes()
        case ConversionQuestion():
            return followers.conversions(settings.open_days)


class _Followers:
    """The wanted events that follow a moment within the horizon.

    Args:
        question: that says which are wanted.
        sequences: of a bucket.
        moment: microseconds since 1970 UTC.
    """

    def __init__(self, question: Question, sequences: Sequences, moment: int) -> None:
        self.question, self.sequences, self.moment = question, sequences, moment
        self.row = np.repeat(np.arange(sequences.num_users), np.diff(sequences.offsets))
        until = moment + int(horizon_of(question.settings) * DAY_US)
        self.inside = (sequences.event_time >= moment) & (sequences.event_time < until)
        if question.actions is not None:
            self.inside &= np.isin(sequences.action_index, question.actions)

    def of_wanted_items(self) -> np.ndarray:
        """[E] 1 at events whose item counts."""
        if not len(self.question.item_class):
            return np.ones(len(self.row))
        return (self.question.item_class[self.sequences.item_index] > 0).astype(np.float64)

    def sums(self, values: np.ndarray | None = None) -> np.ndarray:
        """[U] sum of values [E] over them; None: their number."""
        weights = None if values is None else values[self.inside]
        return np.bincount(self.row[self.inside], weights, self.sequences.num_users)

    def first(self, counts: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[U] the value [E] of the first of them that `counts` [E]; NaN where there is none."""
        found = np.full(self.sequences.num_users, np.nan)
        places = np.flatnonzero(self.inside & counts)[::-1]
        found[self.row[places]] = values[places]  # of several the last one written stays: the earliest
        return found

    def any_of_classes(self) -> np.ndarray:
        """[U, C] whether any of them is of a class."""
        labels = np.zeros((self.sequences.num_users, len(self.question.classes)))
        classes = self.question.item_class[self.sequences.item_index]
        places = self.inside & (classes != NO_CLASS)
        labels[self.row[places], classes[places]] = 1
        return labels

    def conversions(self, open_days: float) -> np.ndarray:
        """[U] whether any of them is of an item that is open at the moment; NaN where none is."""
        time, has_item = self.sequences.event_time, self.sequences.item_index > PADDING_INDEX
        pair = self.row * (int(self.sequences.item_index.max(initial=0)) + 1) + self.sequences.item_index
        before = (time < self.moment) & has_item
        opening, closing = self.question.opening, self.question.actions
        assert opening is not None, "find_question gives a conversion its actions"
        assert closing is not None, "find_question refuses a conversion without actions"
        opens = before & np.isin(self.sequences.action_index, opening)
        opens &= time >= self.moment - int(open_days * DAY_US)
        closes = before & np.isin(self.sequences.action_index, closing)
        open_pairs = _open_pairs(pair, opens, closes)
        is_open = np.isin(pair, open_pairs)
        asked = np.bincount(self.row[opens & is_open], minlength=self.sequences.num_users) > 0
        bought = self.sums(is_open.astype(np.float64)) > 0
        return np.where(asked, bought, np.nan)


def _open_pairs(pair: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
    """Pairs (of user and item) whose last event of both kinds opens; events of a user stand in order."""
    places = np.flatnonzero(opens | closes)[::-1]
    last, first_place = np.unique(pair[places], return_index=True)
    return last[opens[places[first_place]]]


def _amounts(sequences: Sequences) -> np.ndarray:
    """[E] price times quantity; a missing price is nothing, a missing quantity one piece."""
    price = np.nan_to_num(sequences.numbers[PRICE].astype(np.float64))
    quantity = sequences.numbers.get(QUANTITY)
    return price if quantity is None else price * np.nan_to_num(quantity.astype(np.float64), nan=1.0)


def split_labels(questions: Sequence[Question], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Labels [N, L] by question, [N] or, where an answer has several columns, [N, W]."""
    ends = np.cumsum([question.width for question in questions])
    parts = np.split(labels, ends[:-1], axis=1)
    return {
        question.name: part if question.answer == "labels" else part[:, 0]
        for question, part in zip(questions, parts, strict=True)
    }
