"""Figures of lists against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter
from ray_jobs.evaluator import HISTORIES
from ray_jobs.list_figures import list_figures

TRAINING = np.array([0, 0, 4, 2, 2, 0])


def make_lists(*rows: tuple[str, int, int]) -> pa.Table:
    """Rows of ranker, item and users in whose list it stands."""
    rankers, items, counts = zip(*rows, strict=True) if rows else ((), (), ())
    types = {"ranker": pa.string(), "item_index": pa.int32(), "num_listed": pa.int64()}
    columns = zip(types.items(), (rankers, items, counts), strict=True)
    return pa.table({name: pa.array(values, kind) for (name, kind), values in columns})


def publish(folder: Path, *tables: pa.Table) -> str:
    writer = BucketWriter(url=str(folder / "lists"), fingerprint="this")
    writer.publish([writer.commit(bucket, len(tables), table, {}) for bucket, table in enumerate(tables)], {})
    return writer.url


def test_figures_are_sums_over_buckets(tmp_path: Path) -> None:
    first = make_lists(("encoder", 2, 1), ("encoder", 3, 1), ("popularity", 2, 2), (HISTORIES, 5, 1))
    second = make_lists(("encoder", 2, 2), (HISTORIES, 2, 3))
    found = list_figures(publish(tmp_path, first, second), TRAINING, k=10)
    assert found["rankers"]["encoder"] == pytest.approx(
        {"coverage": 0.5, "novelty_bits": (3 * 1 + 2) / 4, "popularity_percentile": (3 * 87.5 + 50) / 4}
    )
    assert found["rankers"]["popularity"] == {"coverage": 0.25, "novelty_bits": 1, "popularity_percentile": 87.5}
    assert found["histories_popularity_percentile"] == (3 * 87.5 + 12.5) / 4
    assert found["histories_novelty_bits"] == (3 * 1 + 3) / 4
    assert HISTORIES not in found["rankers"]


def test_no_list_gives_no_number(tmp_path: Path) -> None:
    found = list_figures(publish(tmp_path, make_lists()), TRAINING, k=10)
    assert found["rankers"] == {}
    assert np.isnan(found["histories_popularity_percentile"])
