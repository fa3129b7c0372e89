"""Work spread over the cluster: everything once, nothing beside it, and expected errors as they are."""

import os
import time
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ClusterSettings
from data_io.schema import DataContractError
from ray_jobs.bucket_map import map_actors, map_buckets, map_tasks, spans_of


@given(st.sets(st.integers(0, 300), max_size=150))
def test_spans_hold_neighbours_each_once_and_in_order(buckets: set[int]) -> None:
    spans = spans_of(sorted(buckets), here=True)
    assert [bucket for span in spans for bucket in span] == sorted(buckets)
    assert all(1 <= len(span) <= 16 for span in spans)
    assert len(spans) >= min(len(buckets), os.cpu_count() or 1), "enough for every core"


def test_each_value_is_worked_on_once_and_none_is_no_work(ray_cluster: None) -> None:
    assert sorted(map_tasks(lambda value: value * 2, [1, 2, 3])) == [2, 4, 6]
    assert sorted(map_buckets(lambda bucket: bucket + 1, range(40))) == list(range(1, 41))
    assert list(map_tasks(len, [])) == []


def test_the_first_tasks_run_side_by_side(ray_cluster: None, tmp_path: Path) -> None:
    """Ray Data would keep a core for operators that there are not, and let the first task run alone."""
    if ray.cluster_resources().get("CPU", 0) < 2:
        pytest.skip("needs two cores")

    def meet_another(value: int) -> int:
        (tmp_path / str(value)).touch()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:  # for as long as it is alone, it does not end
            if time.monotonic() > deadline:
                raise DataContractError("no other task has begun")
            time.sleep(0.01)
        return value

    assert sorted(map_tasks(meet_another, [0, 1])) == [0, 1]


def fail(value: object) -> None:
    raise DataContractError(f"the log is bad at {value}")


class Failing:
    def __init__(self, run: str) -> None:
        self.run = run

    def __call__(self, value: int) -> None:
        fail(f"{self.run} {value}")


def test_expected_errors_reach_the_driver_as_they_are(ray_cluster: None) -> None:
    with pytest.raises(DataContractError, match=r"^the log is bad at 7$"):
        list(map_tasks(fail, [7]))
    with pytest.raises(DataContractError, match=r"^the log is bad at run 3$"):
        list(map_actors(Failing, "run", [3], ClusterSettings()))
