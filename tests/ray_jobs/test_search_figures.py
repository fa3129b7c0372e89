"""What is said of ranks: the weight chosen on validation, figures of the test, and gains user by user."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter
from data_io.schema import DataContractError
from ray_jobs import forget
from ray_jobs.search_figures import lines_of, search_figures

RANKERS = ("popularity", "query_popularity", "bm25", "query_only", "history_only", "personalised")


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(function: Callable[[int], Any], buckets: Iterable[int]) -> Iterator[Any]:
        return map(function, buckets)

    monkeypatch.setattr("ray_jobs.search_figures.map_buckets", in_turn)


def publish(folder: Path, stages: list[str], **ranks: list[int]) -> str:
    """Ranks of two buckets, the same in both."""
    columns = {"user_id": pa.array(range(len(stages))), "stage": pa.array(stages)}
    columns |= {f"rank_{name}": pa.array(np.array(own)) for name, own in ranks.items()}
    writer = BucketWriter(url=str(folder), fingerprint="f")
    writer.publish([writer.commit(bucket, 2, pa.table(columns), {}) for bucket in (0, 1)], {"num_buckets": 2})
    return str(folder)


def test_the_weight_is_chosen_on_validation_and_measured_on_the_test(tmp_path: Path) -> None:
    stages = ["validation", "validation", "test", "test"]
    ranks = {name: [1, 1, 50, 50] for name in RANKERS} | {"personalised": [9, 9, 1, 3]}
    blends = {"blend_0": [5, 5, 1, 1], "blend_1": [1, 3, 3, 40]}
    kinds = ("", "query_", "counted_", "counted_query_")
    lifts = {name.replace("blend", "counted_lift"): own for name, own in blends.items()}
    blends = lifts | {f"{kind}{name}": own for kind in kinds for name, own in blends.items()}
    figures = search_figures(publish(tmp_path, stages, **ranks, **blends), (0.5, 2.0), num_resamples=20, seed=0)
    assert figures["num_searches"] == {"validation": 4, "test": 4}
    assert figures["weight"] == 2.0, "better on validation, though worse on the test"
    assert figures["rankers"]["blend"]["ndcg_at_10"]["value"] == pytest.approx(0.25)
    assert figures["rankers"]["blend"]["recall_at_10"]["value"] == pytest.approx(0.5)
    assert figures["rankers"]["personalised"]["ndcg_at_10"]["value"] == pytest.approx(0.75)
    gains = {(gain["of"], gain["over"]): gain for gain in figures["gains"]}
    assert gains["personalised", "query_only"]["value"] == pytest.approx(0.75)
    assert gains["blend", "personalised"]["value"] == pytest.approx(-0.5)
    assert gains["personalised", "query_only"]["interval"][0] > 0
    assert any(line.startswith("personalised beats query_only in ndcg_at_10: gain +0.75") for line in lines_of(figures))


def test_forgetting_users_reaches_what_search_has_written(tmp_path: Path) -> None:
    places = [publish(tmp_path / "search" / name, ["test"], bm25=[1]) for name in ("users", "ranked")]
    assert forget._other_outputs(str(tmp_path)) == places


def test_a_log_without_such_searches_is_told(tmp_path: Path) -> None:
    blends = ("blend_0", "query_blend_0", "counted_blend_0", "counted_query_blend_0", "counted_lift_0")
    url = publish(tmp_path, ["validation"], **{name: [1] for name in (*RANKERS, *blends)})
    with pytest.raises(DataContractError, match="no test search led to an item of target_actions right after it"):
        search_figures(url, (1.0,), num_resamples=20, seed=0)
