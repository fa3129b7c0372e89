"""From the settings of questions to questions that a store can answer.

Invariant: what a place among classes means is fixed when a model is trained and stands in its manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from data_io.buckets import bucket_of, hash64
from data_io.config import SettingsError
from data_io.label_table import Asked, asked_of, most_frequent, places_of, read_label_table
from data_io.labels import NO_CLASS, HeldLabels, Question
from data_io.question_config import (
    CategoriesQuestion,
    ConversionQuestion,
    EventQuestion,
    ItemChoice,
    NextCategoryQuestion,
    QuestionSettings,
    RatingQuestion,
    SegmentQuestion,
    SpendQuestion,
    TableQuestion,
)
from data_io.schema import COUNT, FIRST_INDEX, ITEM_ID, ITEM_INDEX, PRICE, QUANTITY, RATING
from data_io.store import SequenceStore

_SETTINGS: TypeAdapter[QuestionSettings] = TypeAdapter(QuestionSettings)


def find_question(
    name: str, settings: QuestionSettings, store: SequenceStore, classes: tuple[str, ...] | None = None
) -> Question:
    """A question as a store can answer it.

    Args:
        name: of the question.
        settings: what is asked.
        store: whose users are asked.
        classes: told apart by a model that was trained before; None: those of the store.

    Raises:
        SettingsError: the store lacks an action, a column or a table that the question needs.
        DataContractError: a table of labels cannot be used.
    """
    if isinstance(settings, SegmentQuestion | TableQuestion):
        table, classes = _find_table(settings, store, classes)
        return Question(name=name, settings=settings, classes=classes, table=table)
    _check_columns(name, settings, store)
    actions, item_class = store.action_indices(settings.actions), np.zeros(0, np.int16)
    opening = None
    match settings:
        case ConversionQuestion(opened_by=opened_by):
            opening = store.action_indices(opened_by)
            if actions is None:
                raise SettingsError(f"question {name}: name the actions that close an item, such as [purchase]")
        case NextCategoryQuestion() | CategoriesQuestion():
            values = _item_values(store, settings.column, settings.level)
            classes = classes or _most_used(store, values, settings.num_classes)
            item_class = _item_classes(values, classes)
        case EventQuestion(items=ItemChoice() as items):
            item_class = _chosen_items(store, items)
        case _:
            pass
    return Question(
        name=name, settings=settings, classes=classes or (), item_class=item_class, actions=actions, opening=opening
    )


def describe_questions(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Questions for a manifest."""
    return [
        {
            "name": question.name,
            "answer": question.answer,
            "settings": question.settings.model_dump(mode="json"),
            "classes": list(question.classes),
        }
        for question in questions
    ]


def recall_questions(described: Sequence[Mapping[str, Any]], store: SequenceStore) -> list[Question]:
    """The questions of a manifest, for a store that may have grown since."""
    return [
        find_question(
            known["name"], _SETTINGS.validate_python(known["settings"]), store, tuple(known["classes"]) or None
        )
        for known in described
    ]


def with_numbers_for(store: SequenceStore, questions: Sequence[Question]) -> SequenceStore:
    """The store whose sequences bring along the numbers that labels are made of."""
    wanted: set[str] = set()
    for question in questions:
        if isinstance(question.settings, SpendQuestion):
            wanted |= {PRICE, QUANTITY} & store.event_columns.keys()
        if isinstance(question.settings, RatingQuestion):
            wanted.add(RATING)
    return store.with_numbers(sorted(wanted))


def _check_columns(name: str, settings: QuestionSettings, store: SequenceStore) -> None:
    for kind, column in ((SpendQuestion, PRICE), (RatingQuestion, RATING)):
        if isinstance(settings, kind) and column not in store.event_columns:
            raise SettingsError(f"question {name} of kind {settings.kind} needs {column}, which the log did not have")


def _item_values(store: SequenceStore, column: str, level: int = 1) -> pa.ChunkedArray:
    """[V - 2] text of each item, of a category path at a level; null where there is none.

    Raises:
        SettingsError: there is no item table, or it has no such column.
    """
    if column == ITEM_ID:
        return pa.chunked_array([store.vocabulary.item_ids.cast(pa.large_string())])
    table = store.read_items([column])
    if column not in table.column_names:
        raise SettingsError(f"the item table has no column {column}; declare it in items.features")
    values = table.column(column)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        levels = pl.Series(values).list.get(level - 1, null_on_oob=True)
        return pa.chunked_array([levels.to_arrow().cast(pa.large_string())])
    return values.cast(pa.large_string())


def _most_used(store: SequenceStore, values: pa.ChunkedArray, most: int) -> tuple[str, ...]:
    """The values whose items have the most events."""
    known = store.item_table.filter(pl.col(ITEM_INDEX) >= FIRST_INDEX).sort(ITEM_INDEX)[COUNT]
    counted = pl.DataFrame({"value": pl.Series(values), "events": known[: len(values)]}).drop_nulls()
    totals = counted.group_by("value").agg(pl.col("events").sum()).sort("events", "value", descending=[True, False])
    if totals.height < 2:
        raise SettingsError("a question about categories needs items of two of them at least")
    return tuple(totals["value"].head(most).to_list())


def _item_classes(values: pa.ChunkedArray, classes: tuple[str, ...]) -> np.ndarray:
    """[V] class of each item; `NO_CLASS` where it has none."""
    places = np.nan_to_num(places_of(values, classes), nan=NO_CLASS).astype(np.int16)
    return np.concatenate([np.full(FIRST_INDEX, NO_CLASS, np.int16), places])


def _chosen_items(store: SequenceStore, items: ItemChoice) -> np.ndarray:
    """[V] 1 at items that count.

    Raises:
        SettingsError: no item does.
    """
    chosen = {str(value) for value in items.is_in}
    matches = np.zeros(len(store.vocabulary.item_ids), bool)
    for level in range(1, _num_levels(store, items.column) + 1):
        values = _item_values(store, items.column, level)
        found = pc.call_function("is_in", [values], pc.SetLookupOptions(pa.array(sorted(chosen), values.type)))
        matches |= found.to_numpy()
    if not matches.any():
        raise SettingsError(f"no item of the store has {items.column} among {', '.join(sorted(chosen)[:5])}")
    return np.concatenate([np.zeros(FIRST_INDEX, np.int16), matches.astype(np.int16)])


def _num_levels(store: SequenceStore, column: str) -> int:
    if column == ITEM_ID:
        return 1
    values = store.read_items([column])
    if column not in values.column_names or not pa.types.is_large_list(values.schema.field(column).type):
        return 1
    return max(int(pl.Series(values.column(column)).list.len().max() or 0), 1)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserAttribute:
    """Labels that the user table of a store has, read bucket by bucket."""

    store: SequenceStore
    column: str
    classes: tuple[str, ...]

    def labels(self, user_ids: pa.Array, moment: int, horizon: int, asked: Asked) -> np.ndarray:
        """[U] the class of each user of a bucket; NaN where it is not known, or the user is kept for another stage.

        Args:
            user_ids: of one bucket.
            moment, horizon: of no matter, as what a user is holds at all times.
            asked: what for.
        """
        if not len(user_ids):
            return np.zeros(0)
        bucket = int(bucket_of(user_ids.slice(0, 1), self.store.num_buckets)[0])
        found = places_of(attribute_of(self.store, bucket, user_ids, self.column), self.classes)
        return np.where(asked_of(hash64(user_ids), asked), found, np.nan)


def _find_table(
    settings: SegmentQuestion | TableQuestion, store: SequenceStore, classes: tuple[str, ...] | None
) -> tuple[HeldLabels, tuple[str, ...]]:
    if isinstance(settings, TableQuestion):
        return read_label_table(settings, store.read_sequences(0).user_id.type, classes)
    if classes is None:
        parts = [
            attribute_of(store, bucket, store.read_sequences(bucket).user_id, settings.column).value_counts()
            for bucket in range(store.num_buckets)
        ]
        classes = most_frequent(parts, settings.num_classes)
    return UserAttribute(store=store, column=settings.column, classes=classes), classes


def attribute_of(store: SequenceStore, bucket: int, user_ids: pa.Array, column: str) -> pa.ChunkedArray:
    """[U] what the user table says of users of a bucket, as text.

    Raises:
        SettingsError: there is no user table, or no such column in it that may be seen.
    """
    table = store.read_user_table(bucket, user_ids)
    if column not in table.column_names:
        known = ", ".join(table.column_names[2:])
        raise SettingsError(f"the user table has no column {column} that a model may be told; it has {known}")
    return table.column(column).cast(pa.string())
