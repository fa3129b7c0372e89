"""Searches made up from categories, and what the split and the training windows make of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io.batch import collate, shifted_targets
from data_io.config import SourceSettings
from data_io.examples import next_item_examples, window_examples
from data_io.schema import DataContractError
from data_io.sequences import Sequences
from data_io.sources import read_source, read_source_items
from data_io.splits import LastTargets

CATEGORIES = [["Lee", None, "Hunting & Fishing", "The Hunting"], [None, None, "Cycling"], ["Lee", None]]
SEARCH, PURCHASE = 2, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Sports.txt").write_text("1 10 12 11\n2 12 10\n")
    items = {"item_id": pa.array([10, 11, 12], pa.uint32()), "attr_names": CATEGORIES}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    return tmp_path


def read_rows(path: Path, share: float = 1.0) -> list[tuple[object, ...]]:
    settings = SourceSettings(name="amazon_search", path=str(path), search_share=share)
    frame = pl.DataFrame(pa.concat_tables(read_source(settings)))
    return frame.select("user_id", "item_id", "action", "query", pl.col("event_time").dt.second()).rows()


def test_a_search_for_its_category_stands_before_each_purchase_that_has_one(folder: Path) -> None:
    assert read_rows(folder) == [
        (1, None, "search", "hunting fishing", 0),
        (1, 10, "purchase", None, 1),
        (1, 12, "purchase", None, 3),
        (1, None, "search", "cycling", 4),
        (1, 11, "purchase", None, 5),
        (2, 12, "purchase", None, 1),
        (2, None, "search", "hunting fishing", 2),
        (2, 10, "purchase", None, 3),
    ]


def test_items_come_along_and_are_needed(folder: Path) -> None:
    items = read_source_items(SourceSettings(name="amazon_search", path=str(folder)))
    assert items is not None
    assert items.column("brand").to_pylist() == ["Lee", None, "Lee"]
    (folder / "items.parquet").unlink()
    with pytest.raises(DataContractError, match=r"there is no items\.parquet, from whose categories queries are made"):
        read_rows(folder)


def test_a_share_is_the_same_each_time_and_about_as_large(folder: Path) -> None:
    lines = [f"{user} " + " ".join(["10"] * 50) for user in range(40)]
    (folder / "Sports.txt").write_text("\n".join(lines))
    rows = read_rows(folder, 0.7)
    searched = sum(row[2] == "search" for row in rows)
    assert abs(searched / 2000 - 0.7) < 0.05
    assert rows == read_rows(folder, 0.7)
    assert set(read_rows(folder, 0.7)) <= set(read_rows(folder, 1.0))


def test_a_share_is_for_this_source_only() -> None:
    with pytest.raises(ValueError, match="search_share is for source amazon_search, not for taobao"):
        SourceSettings(name="taobao", path="x", search_share=0.5)


def bought_after_searches(*items: int) -> Sequences:
    """One user who searches before each purchase."""
    num_events = 2 * len(items)
    return Sequences(
        user_id=pa.array([7]),
        offsets=np.array([0, num_events]),
        item_index=np.array([part for item in items for part in (0, item)], np.int32),
        action_index=np.array([SEARCH, PURCHASE] * len(items), np.int16),
        event_time=np.arange(num_events) * 1_000_000,
    )


def test_the_position_of_a_search_learns_what_is_bought_after_it_and_nothing_held_out() -> None:
    sequences, split = bought_after_searches(11, 12, 13, 14), LastTargets(actions=(PURCHASE,))
    windows = window_examples(sequences, split, length=64)
    batch = collate(sequences, windows)
    targets = shifted_targets(sequences, windows, np.array([PURCHASE]))
    assert batch["action_index"].tolist() == [[SEARCH, PURCHASE, SEARCH, PURCHASE]]
    assert targets.tolist() == [[11, 0, 12, 0]], "13 is the validation target, 14 that of the test"


@pytest.mark.parametrize(("stage", "target", "end"), [("validation", 13, 5), ("test", 14, 7)])
def test_the_search_of_the_held_out_purchase_is_the_last_event_of_its_history(
    stage: str, target: int, end: int
) -> None:
    sequences, split = bought_after_searches(11, 12, 13, 14), LastTargets(actions=(PURCHASE,))
    examples = next_item_examples(sequences, split, stage, 64, np.array([PURCHASE]))  # pyright: ignore[reportArgumentType]
    assert (examples.target.tolist(), examples.end.tolist()) == ([target], [end])
    assert sequences.action_index[end - 1] == SEARCH


def test_real_sports_has_a_search_before_almost_every_purchase(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("amazon_sports")
    tables = read_source(SourceSettings(name="amazon_search", path=str(folder)))
    events = pl.DataFrame(pa.concat_tables(tables))
    counts = dict(events["action"].value_counts().iter_rows())
    assert counts["purchase"] == 296_337
    assert 0.98 < counts["search"] / counts["purchase"] < 1
    before = events.with_columns(pl.col("action").shift(-1).over("user_id").alias("next"))
    assert before.filter(pl.col("action") == "search")["next"].unique().to_list() == ["purchase"]
