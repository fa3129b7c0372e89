"""What the tests of jobs share; see `stores` and `plain` for their builders."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from ray_jobs.bucket_map import map_on_threads
from tests.integration.stores import KEY_VARIABLE

os.environ.setdefault(KEY_VARIABLE, "a secret of more than sixteen bytes")
"""Set while tests are collected: a worker has the environment in which the cluster of the session was started."""


@pytest.fixture
def on_threads(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job would hand to tasks of Ray it does on threads, and it draws no page: many small stores a minute."""

    def map_tasks(function: Callable[[Any], Any], values: Iterable[Any], *, here: bool = False) -> Iterator[Any]:
        return map_on_threads(function, values)

    monkeypatch.setattr("ray_jobs.ingest_tasks.map_tasks", map_tasks)
    monkeypatch.setattr("ray_jobs.side_ingest.map_tasks", map_tasks)
    monkeypatch.setattr("ray_jobs.compact.map_buckets", map_on_threads)
    monkeypatch.setattr("ray_jobs.quality_reports.write_quality_page", lambda url, report: None)
