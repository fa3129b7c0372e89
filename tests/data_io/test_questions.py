"""Questions of a store: classes by the item table, what is missing refused, the same again from a manifest."""

from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from data_io.config import SettingsError
from data_io.labels import label_users
from data_io.question_config import QuestionSettings
from data_io.questions import describe_questions, find_question, recall_questions, with_numbers_for
from data_io.sequences import Sequences
from data_io.store import SequenceStore
from data_io.vocabulary import Vocabulary

PATHS = [["food", "fruit"], ["food", "bread"], ["toys"], None]
EVENTS = [5, 1, 4, 9]


class Shop:
    """A store of four items and two users, in memory."""

    def __init__(self, *, columns: tuple[str, ...] = ("price", "quantity")) -> None:
        self.event_columns = dict.fromkeys(columns, "numeric")
        self.numbers: list[str] = []
        self.ages = {"u": "young"}
        self.num_buckets = 1
        self.vocabulary = Vocabulary(pa.array([f"i{n}" for n in range(4)], pa.large_string()))
        self.item_table = pl.DataFrame({"count": EVENTS, "item_index": [2, 3, 4, 5]})

    def action_indices(self, names: list[str] | None) -> np.ndarray | None:
        return None if names is None else np.array([["view", "cart", "purchase"].index(name) + 2 for name in names])

    def read_items(self, columns: list[str]) -> pa.Table:
        known = {"category": pa.array(PATHS, pa.large_list(pa.large_string())), "brand": pa.array(["x", "y", "x", "z"])}
        return pa.table({name: known[name] for name in columns if name in known})

    def read_sequences(self, _: int) -> Sequences:
        return Sequences(
            user_id=pa.array(["u", "v"], pa.large_string()),
            offsets=np.array([0, 2, 3]),
            item_index=np.array([3, 4, 5], np.int32),
            action_index=np.array([2, 4, 4], np.int16),
            event_time=np.array([1, 2, 3]),
        )

    def read_user_table(self, _: int, user_ids: pa.Array) -> pa.Table:
        ages = [self.ages.get(user) for user in user_ids.to_pylist()]
        return pa.table({"user_id": user_ids, "in_table": [True] * len(user_ids), "age": pa.array(ages, pa.string())})

    def knows(self, **ages: str) -> "Shop":
        self.ages = ages
        return self

    def with_numbers(self, names: list[str]) -> "Shop":
        self.numbers = list(names)
        return self


def store(**fields: Any) -> SequenceStore:
    return cast(SequenceStore, Shop(**fields))


def ask(**fields: Any) -> QuestionSettings:
    return TypeAdapter(QuestionSettings).validate_python(fields)


def test_classes_are_those_with_the_most_events_at_a_level() -> None:
    broad = find_question("q", ask(kind="next_category"), store())
    assert (broad.classes, broad.item_class.tolist()) == (("food", "toys"), [-1, -1, 0, 0, 1, -1])
    narrow = find_question("q", ask(kind="next_category", level=2), store())
    assert (narrow.classes, narrow.item_class.tolist()) == (("fruit", "bread"), [-1, -1, 0, 1, -1, -1])
    brands = find_question("q", ask(kind="categories", column="brand", num_classes=2), store())
    assert (brands.classes, brands.width) == (("x", "z"), 2)


def test_items_are_chosen_by_any_level_or_by_id() -> None:
    fruit = find_question("q", ask(kind="event", items={"is_in": ["fruit", "toys"]}), store())
    assert fruit.item_class.tolist() == [0, 0, 1, 0, 1, 0]
    one = find_question("q", ask(kind="event", items={"column": "item_id", "is_in": ["i3"]}), store())
    assert one.item_class.tolist() == [0, 0, 0, 0, 0, 1]
    assert label_users([one], store().read_sequences(0), 0).tolist() == [[0.0], [1.0]]


def test_questions_come_out_of_a_manifest_as_they_went_in() -> None:
    asked = [
        find_question("c", ask(kind="next_category", num_classes=2, weight=0.5), store()),
        find_question("s", ask(kind="spend", actions=["purchase"]), store()),
        find_question("v", ask(kind="conversion", actions=["purchase"]), store()),
    ]
    again = recall_questions(describe_questions(asked), store())
    for one, other in zip(asked, again, strict=True):
        assert (one.name, one.settings, one.classes, one.answer) == (
            other.name,
            other.settings,
            other.classes,
            other.answer,
        )
        np.testing.assert_equal(one.item_class, other.item_class)
        np.testing.assert_equal(one.actions, other.actions)


def test_only_numbers_that_are_needed_are_read() -> None:
    spend, churn = (find_question("q", ask(kind=kind), store()) for kind in ("spend", "churn"))
    assert cast(Shop, with_numbers_for(store(), [spend, churn])).numbers == ["price", "quantity"]
    assert cast(Shop, with_numbers_for(store(columns=("price",)), [spend])).numbers == ["price"]
    assert cast(Shop, with_numbers_for(store(), [churn])).numbers == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "rating"}, "question q of kind rating needs rating"),
        ({"kind": "conversion"}, "question q: name the actions that close an item"),
        ({"kind": "next_category", "column": "colour"}, "no column colour; declare it"),
        ({"kind": "event", "items": {"is_in": ["cheese"]}}, "no item of the store has category among cheese"),
        ({"kind": "segment", "column": "income"}, "no column income that a model may be told; it has age"),
        ({"kind": "segment", "column": "age"}, r"needs two of them, and there are \['young'\]"),
        ({"kind": "next_category", "level": 5}, "needs items of two of them"),
    ],
)
def test_what_a_store_cannot_answer_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        find_question("q", ask(**fields), store())


def test_a_segment_is_read_off_the_user_table_and_asked_of_other_users_in_each_stage() -> None:
    users = [f"u{number}" for number in range(300)]
    ages = {user: ["young", "old", "old"][number % 3] for number, user in enumerate(users)} | {"u": "young", "v": "old"}
    del ages["u7"]
    question = find_question("q", ask(kind="segment", column="age"), cast(SequenceStore, Shop().knows(**ages)))
    assert question.classes == ("old", "young")
    assert question.table is not None
    labels = [question.table.labels(pa.array(users), 0, 0, asked) for asked in ("training", "validation", "test")]
    known = ~np.isnan(np.stack(labels))
    assert known.sum(axis=0).tolist() == [0 if user == "u7" else 1 for user in users]
    assert known[0].sum() > known[1].sum() > 0
    assert set(labels[0][known[0]]) == {0.0, 1.0}
