"""Which models a store takes: those that mean by their item indices the items it means, and may know fewer of them."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from data_io.config import SettingsError
from data_io.snapshots import publish_manifest
from data_io.store import SequenceStore
from data_io.vocabulary import Vocabulary, build_vocabulary, grow_vocabulary, write_vocabulary
from ray_jobs.learning import check_vocabulary


@pytest.fixture
def store(tmp_path: Path) -> SequenceStore:
    """A store built with b and a, to which events of c were appended, and one of rare, which is unknown."""
    counts = [{"item_id": ["a", "b"], "count": [2, 3]}, {"item_id": ["c", "rare"], "count": [9, 1]}]
    table = grow_vocabulary(build_vocabulary(pl.DataFrame(counts[0]), 2), pl.DataFrame(counts[1]), 2)
    write_vocabulary(str(tmp_path), table)
    return SequenceStore(str(tmp_path), publish_manifest(str(tmp_path), {"num_buckets": 1}, after=None))


def made_with(*items: str) -> dict[str, object]:
    """What the manifest of a model says that was trained on these items."""
    vocabulary = Vocabulary(pa.array(items, pa.large_string()))
    return {"vocabulary_sha256": vocabulary.digest(), "vocabulary_size": vocabulary.size}


@pytest.mark.parametrize("items", [["b"], ["b", "a"], ["b", "a", "c"], []], ids=str)
def test_a_model_fits_that_was_trained_before_the_newest_items_came_up(store: SequenceStore, items: list[str]) -> None:
    check_vocabulary(made_with(*items), store, "run/encoder")


@pytest.mark.parametrize(
    "items", [["a", "b"], ["b", "c"], ["b", "a", "c", "rare"], ["b", "a", "c", "d"], ["other"]], ids=str
)
def test_a_model_of_other_items_is_refused(store: SequenceStore, items: list[str]) -> None:
    message = (
        rf"run/encoder was trained on vocabulary [0-9a-f]{{12}}, the store {store.url} has [0-9a-f]{{12}}: train it"
    )
    with pytest.raises(SettingsError, match=message):
        check_vocabulary(made_with(*items), store, "run/encoder")


def test_a_model_of_the_version_before_is_refused_with_what_to_do(store: SequenceStore) -> None:
    with pytest.raises(SettingsError, match="train it again"):
        check_vocabulary({"kind": "next_item", "vocabulary_sha256": "0" * 64}, store, "run/encoder")
