"""Scores: one row per user with ids a shop knows, and the pairs a recommender must not repeat."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.examples import history_examples
from data_io.scores import (
    UserScores,
    put_together,
    score_facts,
    scores_table,
    seen_pairs,
    stability_index,
    task_column,
)
from data_io.sequences import Sequences
from data_io.vocabulary import Vocabulary

STRINGS = Vocabulary(pa.array(["a", "ü", "c"], pa.large_string()))
INTEGERS = Vocabulary(pa.array([30, 10, 20], pa.int64()))
NONE = -np.inf
USERS = st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=5).map(sorted), max_size=4)


def make_scores(item_index: list[list[int]], item_score: list[list[float]], **tasks: list[float]) -> UserScores:
    size = len(item_index)
    return UserScores(
        item_index=np.array(item_index, np.int64).reshape(size, -1),
        item_score=np.array(item_score, np.float32).reshape(size, -1),
        acted=np.zeros(size, np.uint32),
        source=np.zeros(size, np.int64),
        embedding=np.arange(2 * size, dtype=np.float32).reshape(size, 2),
        tasks={name: np.array(values) for name, values in tasks.items()},
    )


def make_table(sequences: Sequences, scores: UserScores, vocabulary: Vocabulary, version: str) -> pa.Table:
    return scores_table(sequences.user_id, sequences.ends - sequences.starts, scores, vocabulary, version)


def test_responses_stand_beside_the_items_they_are_of(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 2)], [])
    scores = make_scores([[3, 2], [4, 0]], [[0.5, 0.25], [2, NONE]])
    responses = {"buy": np.array([[0.5, 0.25], [0.125, 0.75]], np.float32)}
    table = make_table(sequences, replace(scores, responses=responses), STRINGS, "v1")
    assert table.column("response_buy").to_pylist() == [[0.5, 0.25], [0.125]]
    assert table.column("response_buy").type == table.column("scores").type


def test_every_user_has_one_row_with_scores_vector_and_tasks(make_sequences: Callable) -> None:
    sequences = make_sequences([(0, 2), (1, 3)], [])
    table = make_table(sequences, make_scores([[3, 2], [4, 2]], [[0.5, 0.25], [2, 1]], churn=[0.5, 1]), STRINGS, "v1")
    assert table.to_pylist() == [
        {
            "user_id": "u0",
            "item_ids": ["ü", "a"],
            "scores": [0.5, 0.25],
            "source": "model",
            "rules": [],
            "score_churn": 0.5,
            "embedding": [0.0, 1.0],
            "num_events": 2,
            "model_version": "v1",
        },
        {
            "user_id": "u1",
            "item_ids": ["c", "a"],
            "scores": [2.0, 1.0],
            "source": "model",
            "rules": [],
            "score_churn": 1.0,
            "embedding": [2.0, 3.0],
            "num_events": 0,
            "model_version": "v1",
        },
    ]


def test_lists_are_shorter_where_fewer_than_k_items_have_a_finite_score(make_sequences: Callable) -> None:
    scores = make_scores([[2, 3, 4], [4, 3, 2], [2, 3, 4]], [[3, 2, 1], [5, NONE, NONE], [NONE, NONE, NONE]])
    table = make_table(make_sequences([(0, 2)], [], [(0, 2)]), scores, STRINGS, "v1")
    assert table.column("item_ids").to_pylist() == [["a", "ü", "c"], ["c"], []]
    assert table.column("scores").to_pylist() == [[3, 2, 1], [5], []]


@pytest.mark.parametrize(("vocabulary", "ids"), [(STRINGS, ["c", "a"]), (INTEGERS, [20, 30])], ids=["string", "int"])
def test_ids_are_those_of_the_log_in_its_own_type(
    make_sequences: Callable, vocabulary: Vocabulary, ids: list[object]
) -> None:
    table = make_table(make_sequences([]), make_scores([[4, 2]], [[2, 1]]), vocabulary, "v1")
    assert table.column("item_ids").to_pylist() == [ids]
    assert table.schema.field("item_ids").type.value_type == vocabulary.item_ids.type


def test_a_bucket_without_users_has_the_columns_of_any_other(make_sequences: Callable) -> None:
    full = make_table(make_sequences([]), make_scores([[2]], [[1]], churn=[1]), STRINGS, "v1")
    none = UserScores(
        item_index=np.zeros((0, 1), np.int64),
        item_score=np.zeros((0, 1), np.float32),
        acted=np.zeros(0, np.uint32),
        source=np.zeros(0, np.int64),
        embedding=np.zeros((0, 2), np.float32),
        tasks={"churn": np.zeros(0)},
    )
    empty = make_table(make_sequences(), none, STRINGS, "v1")
    assert (empty.num_rows, empty.schema) == (0, full.schema)


def test_rules_and_sources_are_told_by_name(make_sequences: Callable) -> None:
    sequences = make_sequences([], [], [])
    scores = replace(
        make_scores([[2], [3], [4]], [[1], [1], [1]]),
        acted=np.array([0, 5, 2], np.uint32),
        source=np.array([0, 1, 0]),
    )
    table = scores_table(
        sequences.user_id, np.zeros(3), scores, STRINGS, "v1", rules=["age", "region", "seen"], sources=["model", "top"]
    )
    assert table.column("rules").to_pylist() == [[], ["age", "seen"], ["region"]]
    assert table.column("source").to_pylist() == ["model", "top", "model"]


def make_rows(lists: dict[str, list[str]], score: float = -2.0) -> pa.Table:
    content = {
        "user_id": pa.array(list(lists), pa.large_string()),
        "item_ids": pa.array(list(lists.values()), pa.large_list(pa.large_string())),
        "scores": pa.array([[score] * len(items) for items in lists.values()], pa.large_list(pa.float32())),
    }
    return pa.table(content)


def test_users_that_were_not_scored_keep_their_rows() -> None:
    fresh, before = make_rows({"b": ["x"]}), make_rows({"c": ["c"], "b": ["b"], "a": ["a"], "gone": []})
    found = put_together(pa.array(["a", "b", "c"], pa.large_string()), fresh, before)
    assert found.equals(make_rows({"a": ["a"], "b": ["x"], "c": ["c"]}))


def test_facts_compare_lists_with_those_from_before_by_hand() -> None:
    now = make_rows({"a": ["x", "y"], "b": ["x"], "c": [], "new": ["z", "x"]})
    before = make_rows({"a": ["y", "z"], "b": ["x", "y"], "c": ["x"], "gone": ["x"]}, score=-9.0)
    nobody = np.zeros(4, bool)
    facts = score_facts(now, before, 2, nobody)
    assert (facts["num_full"], facts["num_compared"], facts["overlap"]) == (2, 2, 1 / 2 + 1)
    assert (sum(facts["first_scores"]), sum(facts["first_scores_before"])) == (3, 4)
    assert stability_index(facts["first_scores_before"], facts["first_scores"]) > 0.25
    assert stability_index(facts["first_scores"], facts["first_scores"]) == 0
    assert "overlap" not in score_facts(now, None, 2, nobody)
    assert score_facts(now, now, 2, ~nobody) == score_facts(now, now, 2, nobody), "carried rows are the same"


def test_a_task_has_its_own_column() -> None:
    assert task_column("churn") == "score_churn"


@given(USERS, st.none() | st.integers(0, 6), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_seen_pairs_equal_a_naive_loop(
    make_sequences: Callable, users: list[list[tuple[int, int]]], now: int | None, order: list[int]
) -> None:
    rows = [row for row in order if row < len(users)]
    expected = [
        (place, item)
        for place, row in enumerate(rows)
        for time, item in users[row]
        if item >= 2 and (now is None or time < now)
    ]
    sequences = make_sequences([(0, 2)], *users)
    examples = history_examples(sequences, now, 1).take(np.array(rows, np.int64) + 1)
    found = seen_pairs(sequences, examples)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
