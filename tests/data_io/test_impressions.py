"""Impressions: read in the order of time, bad rows counted by reason, wrong tables refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.impressions import ImpressionColumns, read_impressions
from data_io.schema import DataContractError

COLUMNS = ImpressionColumns(
    item_id="item",
    reward="click",
    propensity="p",
    policy="policy",
    position="position",
    time="time",
    history="had",
    context=("device",),
)
GOOD = {
    "item": [7, 3, 7],
    "click": [0, 1, 0],
    "p": [0.5, 0.25, 1.0],
    "policy": ["b", "a", "b"],
    "position": [2, 1, 1],
    "time": [3, 1, 2],
    "had": [[3, 9], None, [7]],
    "device": ["phone", None, "phone"],
}


def write(folder: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), folder / "impressions.parquet")
    return str(folder / "impressions.parquet")


def test_rows_stand_in_the_order_of_time_as_places(tmp_path: Path) -> None:
    found = read_impressions(write(tmp_path, GOOD), COLUMNS)
    assert (found.items, found.policies) == (("3", "7"), ("a", "b"))
    assert (found.item.tolist(), found.policy.tolist(), found.position.tolist()) == ([0, 1, 1], [0, 1, 1], [0, 0, 1])
    assert (found.reward.tolist(), found.propensity.tolist()) == ([1, 0, 0], [0.25, 1.0, 0.5])
    assert found.history.tolist() == [[0, 0], [2, 0], [1, 0]], "an item that is never shown is none"
    assert found.context[0] == 0
    assert found.context[1] == found.context[2] > 0
    assert not found.quarantined
    assert found.take(found.item == 1).reward.tolist() == [0, 0]


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = {
        "item": [1, None, 1, 1, 1, 1],
        "click": [1, 1, 2, 1, 0, None],
        "p": [0.5, 0.5, 0.5, 0.0, None, 0.5],
    }
    columns = ImpressionColumns(
        item_id="item", reward="click", propensity="p", policy=None, position=None, time=None, history=None, context=()
    )
    found = read_impressions(write(tmp_path, bad), columns)
    assert len(found) == 1
    assert found.policies == ("log",)
    assert found.quarantined == {
        "no item": 1,
        "reward neither 0 nor 1": 2,
        "propensity not above 0 and up to 1": 1,
        "no propensity": 1,
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({name: values for name, values in GOOD.items() if name != "p"}, "impressions have no column p"),
        (GOOD | {"click": ["yes", "no", "no"]}, "click is string, expected numbers"),
        (GOOD | {"p": [2.0, 2.0, 2.0]}, "none of 3 impressions can be used"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        read_impressions(write(tmp_path, columns), COLUMNS)
