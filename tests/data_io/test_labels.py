"""Labels against naive loops over the events, question by question."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.labels import NO_CLASS, Question, label_users, longest_horizon, split_labels
from data_io.question_config import (
    CategoriesQuestion,
    ChurnQuestion,
    ConversionQuestion,
    EventQuestion,
    NextCategoryQuestion,
    RatingQuestion,
    SpendQuestion,
)
from data_io.sequences import Sequences
from data_io.splits import DAY_US

VIEW, CART, BUY = 2, 3, 4
Event = tuple[int, int, int]
USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(2, 4)), max_size=8).map(
        lambda user: sorted(user, key=lambda event: event[0])
    ),
    min_size=1,
    max_size=4,
)
CLASSES = np.array([NO_CLASS, NO_CLASS, 0, 1, 0, NO_CLASS], np.int16)


def make_users(users: list[list[Event]]) -> Sequences:
    """Users with events of (day, item, action); the price of an event is its item, its rating its day, each third one
    has none."""
    flat = [event for user in users for event in user]
    third = np.arange(len(flat)) % 3 == 0
    day, item = (np.array([event[part] for event in flat], np.float64) for part in (0, 1))
    return Sequences(
        user_id=pa.array([f"u{row}" for row in range(len(users))], pa.large_string()),
        offsets=np.cumsum([0, *map(len, users)]).astype(np.int64),
        item_index=item.astype(np.int32),
        action_index=np.array([event[2] for event in flat], np.int16),
        event_time=(day * DAY_US).astype(np.int64),
        numbers={
            "price": item.astype(np.float32),
            "quantity": np.where(third, np.nan, 2.0).astype(np.float32),
            "rating": np.where(third, np.nan, day).astype(np.float32),
        },
    )


def naive(users: list[list[Event]], answer: Callable[[list[Event], list[int]], float]) -> list[float]:
    """The answer of each user, from events and their places in the log."""
    places = np.cumsum([0, *map(len, users)])
    return [answer(user, list(range(places[row], places[row + 1]))) for row, user in enumerate(users)]


def inside(event: Event, moment: int, horizon: int) -> bool:
    return moment <= event[0] < moment + horizon


@given(USERS, st.integers(0, 9), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_labels_are_those_a_naive_loop_finds(users: list[list[Event]], moment: int, horizon: int) -> None:
    asked = {"horizon_days": horizon}
    bought = np.array([BUY])
    questions = [
        Question(name="buys", settings=EventQuestion(**asked), actions=bought),
        Question(name="gone", settings=ChurnQuestion(**asked)),
        Question(name="spends", settings=SpendQuestion(**asked), actions=bought),
        Question(name="rates", settings=RatingQuestion(**asked)),
        Question(name="next", settings=NextCategoryQuestion(**asked), classes=("a", "b"), item_class=CLASSES),
        Question(name="all", settings=CategoriesQuestion(**asked), classes=("a", "b"), item_class=CLASSES),
    ]
    found = split_labels(questions, label_users(questions, make_users(users), moment * DAY_US))

    def follows(user: list[Event], places: list[int], *, wanted: bool) -> list[tuple[Event, int]]:
        pairs = zip(user, places, strict=True)
        return [(e, p) for e, p in pairs if inside(e, moment, horizon) and (not wanted or e[2] == BUY)]

    def first(values: list[float]) -> float:
        return values[0] if values else float("nan")

    expected = {
        "buys": naive(users, lambda u, p: float(bool(follows(u, p, wanted=True)))),
        "gone": naive(users, lambda u, p: float(not follows(u, p, wanted=False))),
        "spends": naive(
            users, lambda u, p: sum(e[1] * (1 if n % 3 == 0 else 2) for e, n in follows(u, p, wanted=True))
        ),
        "rates": naive(users, lambda u, p: first([e[0] for e, n in follows(u, p, wanted=False) if n % 3])),
        "next": naive(
            users, lambda u, p: first([CLASSES[e[1]] for e, _ in follows(u, p, wanted=False) if CLASSES[e[1]] >= 0])
        ),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)
    for place in (0, 1):
        any_of = naive(
            users, lambda u, p, c=place: float(any(CLASSES[e[1]] == c for e, _ in follows(u, p, wanted=False)))
        )
        assert found["all"][:, place].tolist() == any_of


@given(USERS, st.integers(0, 9), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_conversion_asks_those_with_an_open_item(
    users: list[list[Event]], moment: int, horizon: int, open_days: int
) -> None:
    def answer(user: list[Event], _: list[int]) -> float:
        is_open = set()
        for day, item, action in user:
            if day >= moment or item == 0:
                continue
            if action == CART and day >= moment - open_days:
                is_open.add(item)
            if action == BUY:
                is_open.discard(item)
        bought = [e for e in user if inside(e, moment, horizon) and e[2] == BUY and e[1] in is_open]
        return float(bool(bought)) if is_open else float("nan")

    question = Question(
        name="cart",
        settings=ConversionQuestion(horizon_days=horizon, open_days=open_days),
        actions=np.array([BUY]),
        opening=np.array([CART]),
    )
    found = label_users([question], make_users(users), moment * DAY_US)[:, 0]
    np.testing.assert_equal(found, np.array(naive(users, answer), np.float32))


def test_only_items_that_count_do() -> None:
    counts = np.array([0, 0, 1, 0], np.int16)
    question = Question(name="", settings=EventQuestion(), item_class=counts)
    assert label_users([question], make_users([[(1, 2, BUY)], [(1, 3, BUY)]]), 0).tolist() == [[1.0], [0.0]]


def test_the_longest_horizon_is_that_of_any_question() -> None:
    questions = [Question(name=str(days), settings=EventQuestion(horizon_days=days)) for days in (7, 28, 1)]
    assert longest_horizon(questions) == 28
