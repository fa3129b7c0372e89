"""Work that spreads bucket by bucket over the cluster with Ray Data.

A block of Ray Data costs some 30 ms whatever is in it, so short tasks share blocks, a few for each core.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import ray
import ray.data

from cluster.config import ClusterSettings
from cluster.session import num_scorers, uses_gpu
from data_io import storage
from data_io.config import SettingsError
from data_io.schema import DataContractError

_RESULT = "result"
_EXPECTED = (DataContractError, SettingsError, storage.OutOfDiskError, storage.StorageError)
In = TypeVar("In")
Out = TypeVar("Out")

_BLOCKS_PER_CORE = 4
_BUCKETS_PER_SPAN = 16
"""So that a task's memory does not grow with the store."""


def map_buckets(buckets: Iterable[int], function: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Any]:
    """Rows of a function applied to {"bucket": b} for each bucket, as they come, in tasks."""
    return map_rows([{"bucket": int(bucket)} for bucket in buckets], function)


def map_rows(
    rows: list[dict[str, Any]], function: Callable[[dict[str, Any]], dict[str, Any]], *, here: bool = False
) -> Iterator[Any]:
    """Rows of a function applied to each row, as they come, in tasks, or here: on threads of this process."""
    if not rows:
        return iter(())
    if here:
        return map_on_threads(rows, function)
    blocks = min(len(rows), _BLOCKS_PER_CORE * int(ray.cluster_resources().get("CPU", 1)))
    mapped = ray.data.from_items(rows, override_num_blocks=blocks).map(lambda row: _guarded(function, row))
    return _results(mapped)


def map_on_threads(values: Iterable[In], function: Callable[[In], Out]) -> Iterator[Out]:
    """A function applied to each value, in order, on threads of this process."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, values)


def spans_of(buckets: list[int], *, here: bool) -> list[dict[str, int]]:
    """Rows {"first": b, "last": c} of neighbouring buckets b to c - 1, which one task takes together.

    What lies side by side in a file is then read at once; there are still enough tasks for every core.
    """
    cores = (os.cpu_count() or 1) if here else int(ray.cluster_resources().get("CPU", 1))
    most = -(-len(buckets) // (_BLOCKS_PER_CORE * cores))
    rows: list[dict[str, int]] = []
    for bucket in buckets:
        if rows and rows[-1]["last"] == bucket and bucket - rows[-1]["first"] < min(most, _BUCKETS_PER_SPAN):
            rows[-1]["last"] = bucket + 1
        else:
            rows.append({"first": bucket, "last": bucket + 1})
    return rows


def map_buckets_in_actors(
    buckets: list[int], worker: Callable[..., Any], run: object, cluster: ClusterSettings
) -> Iterator[Any]:
    """Rows of `worker(run)` called with {"bucket": b} for each bucket, in actors that load what they need once."""
    if not buckets:
        return iter(())
    rows = [{"bucket": bucket} for bucket in buckets]
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Callable[..., Any], _GuardedWorker),
        fn_constructor_args=(worker, run),
        concurrency=min(num_scorers(cluster), len(buckets)),
        num_cpus=1,
        num_gpus=1 if uses_gpu(cluster) else 0,
    )
    return _results(mapped)


def _guarded(function: Callable[[dict[str, Any]], dict[str, Any]], row: dict[str, Any]) -> dict[str, bytes]:
    """What a function makes of a row, or the error it expects: Ray Data would not hand its cause to the driver."""
    try:
        return {_RESULT: pickle.dumps(function(row))}
    except _EXPECTED as error:
        return {_RESULT: pickle.dumps(error)}


class _GuardedWorker:
    """A worker of `map_buckets_in_actors` whose expected errors reach the driver as they are."""

    def __init__(self, worker: Callable[..., Any], run: object) -> None:
        self.worker = worker(run)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        return _guarded(self.worker, row)


def _results(mapped: ray.data.Dataset) -> Iterator[Any]:
    for row in mapped.iter_rows():
        result = pickle.loads(row[_RESULT])
        if isinstance(result, Exception):
            raise result
        yield result
