"""Inputs: which names there are, what is said of others, and the kinds of a store's columns."""

import pytest

from data_io.config import SettingsError
from data_io.inputs import CONTRACT_COLUMNS, OWN, check_inputs, columns_among, columns_of_store, with_kinds
from data_io.schema import CARRIED_KINDS

CARRIED = {"price": "float", "query": "string", "device": "string", "discount": "float"}


def test_inputs_know_the_columns_of_the_contract() -> None:
    assert set(CONTRACT_COLUMNS) == set(CARRIED_KINDS)
    stored = {name: "float" if kind == "numeric" else "string" for name, kind in CONTRACT_COLUMNS.items()}
    assert stored == CARRIED_KINDS


def test_every_known_name_is_taken_and_none_is_an_answer_too() -> None:
    check_inputs([], [])
    check_inputs(["action", "gap", "elapsed", "asked_action", "calendar", "query", "device"], ["device"])


@pytest.mark.parametrize(
    ("names", "features", "message"),
    [
        (["prize"], ["device"], "encoder.inputs names prize, which is unknown; known are action, .*, rating, device"),
        (["gap", "gap"], [], "names gap twice"),
        (["gap"], ["gap"], "an input of every log and a feature of events.features too; rename"),
    ],
)
def test_other_names_are_refused(names: list[str], features: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_inputs(names, features)


def test_kinds_come_from_the_contract_and_from_the_store() -> None:
    columns = columns_of_store(CARRIED)
    assert columns == {"price": "numeric", "query": "text", "device": "categorical", "discount": "numeric"}
    found = with_kinds(("query", "gap", "discount"), columns)
    assert found == {"query": "text", "gap": OWN, "discount": "numeric"}
    assert list(columns_among(found)) == ["discount", "query"]


def test_a_column_the_log_did_not_have_is_named_with_those_it_had() -> None:
    with pytest.raises(SettingsError, match=r"names rating, a column that the log .* did not have; .* price, query"):
        with_kinds(["rating"], columns_of_store(CARRIED))
    with pytest.raises(SettingsError, match="there are: none"):
        with_kinds(["rating"], {})
