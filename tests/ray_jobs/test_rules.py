"""Rules from settings to what a ranker reads: what items and users match, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_io import storage
from data_io.config import SettingsError
from data_io.examples import history_examples
from data_io.sequences import Sequences
from data_io.splits import DAY_US
from data_io.store import SequenceStore
from ray_jobs.popularity import segments_of
from ray_jobs.rules import RulePlan, plan_rules
from ray_jobs.scoring_config import ScoringSettings
from ray_jobs.user_classes import UserClasses
from tests.ray_jobs.conftest import USERS, MakeStore

ITEMS = pa.table(
    {
        "brand": ["A", "B", None, "A"],
        "category": pa.array([["food", "tea"], ["food"], [], ["home", "tea"]], pa.list_(pa.string())),
        "price": [1.0, 2.5, None, 10.0],
    }
)
PEOPLE = pa.table(
    {"user_id": [*"abcd"], "in_table": [True] * 4, "region": ["DE", "FR", None, "DE"], "age": [15, 40, 9, 30]}
)


DENY = {"effect": "deny", "items": {"column": "brand", "is_in": ["A"]}}


@pytest.fixture
def shop(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> SequenceStore:
    """The store of USERS with an item table and a user table."""

    def read_items(self: SequenceStore, columns: list[str]) -> pa.Table:
        return ITEMS.select([name for name in columns if name in ITEMS.column_names])

    def read_user_table(self: SequenceStore, bucket: int, user_ids: pa.Array) -> pa.Table:
        return PEOPLE.filter(pa.array(np.isin(PEOPLE["user_id"].to_pylist(), user_ids.to_pylist())))

    monkeypatch.setattr(SequenceStore, "read_items", read_items)
    monkeypatch.setattr(SequenceStore, "read_user_table", read_user_table)
    return make_store()


def plan(store: SequenceStore, *rules: dict[str, Any], **further: Any) -> RulePlan:
    named = [{"name": f"rule {number}"} | rule for number, rule in enumerate(rules)]
    return plan_rules(ScoringSettings.model_validate({"rules": named} | further), store)


def matched(store: SequenceStore, condition: dict[str, Any]) -> list[int]:
    """Items, by their place in the table, that a condition holds for."""
    found = plan(store, {"effect": "deny", "items": condition}).matches
    assert not found[:2].any(), "padding and unknown"
    return np.flatnonzero(found[2:]).tolist()


@pytest.mark.parametrize(
    ("condition", "items"),
    [
        ({"column": "brand", "is_in": ["A"]}, [0, 3]),
        ({"column": "brand", "is_in": ["A", "B", "C"]}, [0, 1, 3]),
        ({"column": "category", "is_in": ["tea"]}, [0, 3]),
        ({"column": "category", "is_in": ["food", "home"]}, [0, 1, 3]),
        ({"column": "price", "at_least": 2.5}, [1, 3]),
        ({"column": "price", "at_least": 2, "at_most": 3}, [1]),
        ({"column": "price", "at_most": 2.5}, [0, 1]),
        ({"column": "item_id", "is_in": ["i3", "i9"]}, [1]),
    ],
    ids=str,
)
def test_items_that_match_a_condition(shop: SequenceStore, condition: dict[str, Any], items: list[int]) -> None:
    assert matched(shop, condition) == items


def test_ids_of_a_file_match_and_those_nobody_knows_are_told(
    shop: SequenceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("i2\n\n i5 \nlost\n")
    assert matched(shop, {"column": "item_id", "file": str(tmp_path / "ids.txt")}) == [0, 3]
    assert "1 of 3 item ids of rule rule 0 are not in the vocabulary" in capsys.readouterr().out
    storage.write_parquet(str(tmp_path / "ids.parquet"), pa.table({"item_id": ["i4"]}))
    assert matched(shop, {"column": "item_id", "file": str(tmp_path / "ids.parquet")}) == [2]


def test_classes_are_users_under_the_same_rules(shop: SequenceStore) -> None:
    german = {"column": "region", "is_in": ["DE"]}
    rules = plan(
        shop,
        {"effect": "deny", "items": {"column": "brand", "is_in": ["A"]}, "users": german},
        {"effect": "only", "items": {"column": "price", "at_most": 5}, "users": {"column": "age", "at_most": 17}},
        {"effect": "boost", "items": {"column": "item_id", "is_in": ["i3"]}, "factor": 3},
    )
    kinds, found = UserClasses(rules).of(pa.array([*"abcd"]), lambda: PEOPLE)
    assert len(found.denied) == 4, "DE and minor, FR, minor, DE"
    by_user = found.denied[kinds][:, 2:]
    assert by_user.tolist() == [[1, 0, 2, 3], [0, 0, 0, 0], [0, 0, 2, 2], [1, 0, 0, 1]]
    assert found.boost[kinds][:, 2:] == pytest.approx(np.tile([0, np.log(3), 0, 0], (4, 1)))
    assert found.boosted_by[kinds][:, 2:].tolist() == [[0, 4, 0, 0]] * 4


def test_a_class_keeps_its_number_as_others_turn_up(shop: SequenceStore) -> None:
    rules = plan(
        shop,
        {
            "effect": "deny",
            "items": {"column": "brand", "is_in": ["A"]},
            "users": {"column": "user_id", "is_in": ["a"]},
        },
    )
    classes = UserClasses(rules)
    assert classes.of(pa.array(["b"]), lambda: PEOPLE)[0].tolist() == [0]
    kinds, found = classes.of(pa.array(["a", "b"]), lambda: PEOPLE)
    assert kinds.tolist() == [1, 0]
    assert found.denied[:, 2:].tolist() == [[0, 0, 0, 0], [1, 0, 0, 1]]


def test_without_rules_there_is_nothing_to_look_up(shop: SequenceStore) -> None:
    kinds, found = UserClasses(plan(shop)).of(pa.array(["a"]), lambda: pytest.fail("the user table was read"))
    assert (kinds.tolist(), len(found.denied), len(found.boost), found.num_rules) == ([0], 0, 0, 0)


@pytest.mark.parametrize(("column", "groups"), [("brand", [0, 1, -1, 0]), ("category", [0, 1, -1, 0])])
def test_a_cap_counts_items_of_a_brand_or_of_the_last_level_of_a_category(
    shop: SequenceStore, column: str, groups: list[int]
) -> None:
    rules = plan(shop, cap={"column": column, "most": 2})
    assert rules.group.tolist() == [-1, -1, *groups]
    assert (rules.names, rules.of_classes(np.zeros(1, np.uint32)).cap) == ((f"cap:{column}",), 0)


@pytest.mark.parametrize("now_day", [None, 9])
def test_seen_items_by_action_and_window_equal_a_naive_loop(
    shop: SequenceStore, sequences: Sequences, now_day: int | None
) -> None:
    seen = [{"name": "bought", "actions": ["buy"]}, {"name": "lately", "within_days": 2}]
    rules = plan(shop, exclude_seen=seen)
    examples = history_examples(sequences, None if now_day is None else now_day * DAY_US, 4)
    expected: dict[tuple[int, int], int] = {}
    for row, events in enumerate(USERS):
        now = (events[-1][0] * DAY_US + 1) / DAY_US if now_day is None else now_day
        for day, item, action in events:
            bits = (1 if action == 3 else 0) | (2 if day >= now - 2 else 0)
            if day < now and item >= 2 and bits:
                expected[row, item] = expected.get((row, item), 0) | bits
    found = rules.seen_pairs(sequences, examples)
    assert {(row, item): by for row, item, by in zip(*(part.tolist() for part in found), strict=True)} == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"items": {"column": "colour", "is_in": ["red"]}},
            "item table has no column colour; declare it in items.feat",
        ),
        ({"items": {"column": "brand", "at_least": 1}}, "items.brand is string and has no range; give is_in"),
        (
            {"items": {"column": "price", "is_in": ["cheap"]}},
            "items.price is double, and is_in or file has another",
        ),
        (
            {"users": {"column": "town", "is_in": ["X"]}},
            "users.town: the user table has no such column; .* region,",
        ),
        ({"users": {"column": "region", "at_least": 1}}, "users.region is string and has no range"),
    ],
    ids=str,
)
def test_a_rule_that_cannot_hold_is_refused_before_any_work(
    shop: SequenceStore, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(shop, DENY | rule)


def test_an_action_the_log_has_not_is_refused(shop: SequenceStore) -> None:
    with pytest.raises(SettingsError, match="action rent is not in the log"):
        plan(shop, exclude_seen=[{"actions": ["rent"]}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": [DENY | {"name": "x"}, DENY | {"name": "x"}]}, "two rules are called x"),
        ({"exclude_seen": [{}, {"within_days": 3}]}, "two rules are called seen"),
        ({"rules": [{"name": "x", "effect": "deny", "items": {"column": "brand"}}]}, "says nothing; give is_in"),
        ({"rules": [{"name": "x", "effect": "deny", "items": {"column": "p", "is_in": [1], "at_most": 2}}]}, "a range"),
        ({"incremental": True}, "needs as_of last_event"),
        ({"incremental": True, "as_of": "last_event"}, "needs tasks"),
    ],
    ids=str,
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoringSettings.model_validate(settings)


def test_segments_are_numbered_by_their_values_and_the_rest_is_everyone(shop: SequenceStore) -> None:
    users = pa.array([*"abcd"])
    assert segments_of(shop, 0, users, "region", ["FR", "DE"]).tolist() == [2, 1, 0, 2]
    assert segments_of(shop, 0, users, "age", [9]).tolist() == [0, 0, 1, 0]
    assert segments_of(shop, 0, users, None, []).tolist() == [0] * 4


def test_another_file_of_users_is_another_plan(shop: SequenceStore, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("a")
    rule = DENY | {"users": {"column": "user_id", "file": str(tmp_path / "users.txt")}}
    before = plan(shop, rule).digest()
    assert plan(shop, rule).digest() == before
    (tmp_path / "users.txt").write_text("b")
    assert plan(shop, rule).digest() != before
