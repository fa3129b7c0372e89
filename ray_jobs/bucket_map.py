"""Work that spreads bucket by bucket over the cluster with Ray Data.

A task of Ray Data costs some 10 ms whatever is in it, so a task takes several buckets. Values and results travel by
pickle, one row each.
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

_VALUE, _RESULT = "value", "result"
_EXPECTED = (DataContractError, SettingsError, storage.OutOfDiskError, storage.StorageError)
In = TypeVar("In")
Out = TypeVar("Out")

_SPANS_PER_CORE = 4
_BUCKETS_PER_SPAN = 16
"""So that a task's memory does not grow with the store."""


def map_tasks(function: Callable[[In], Out], values: Iterable[In], *, here: bool = False) -> Iterator[Out]:
    """What a function makes of each value, as it comes: in a task each, or in order on threads of this process."""
    if here:
        return map_on_threads(function, values)
    rows = [{_VALUE: pickle.dumps(value)} for value in values]
    return _results(_dataset(rows).map(lambda row: _guarded(function, row))) if rows else iter(())


def map_buckets(function: Callable[[int], Out], buckets: Iterable[int]) -> Iterator[Out]:
    """What a function makes of each bucket, as it comes, in tasks of several buckets."""
    for results in map_tasks(lambda span: [function(bucket) for bucket in span], spans_of(buckets)):
        yield from results


def map_on_threads(function: Callable[[In], Out], values: Iterable[In]) -> Iterator[Out]:
    """What a function makes of each value, in order, on threads of this process."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, values)


def spans_of(buckets: Iterable[int], *, here: bool = False) -> list[range]:
    """Ranges of neighbouring buckets, each of which one task takes together.

    What lies side by side in a file is then read at once; there are still enough tasks for every core.
    """
    buckets = list(buckets)
    cores = (os.cpu_count() or 1) if here else int(ray.cluster_resources().get("CPU", 1))
    most = min(-(-len(buckets) // (_SPANS_PER_CORE * cores)), _BUCKETS_PER_SPAN)
    spans: list[range] = []
    for bucket in buckets:
        if spans and spans[-1].stop == bucket and len(spans[-1]) < most:
            spans[-1] = range(spans[-1].start, bucket + 1)
        else:
            spans.append(range(bucket, bucket + 1))
    return spans


def map_actors(
    worker: Callable[[Any], Callable[[In], Out]], run: object, values: Iterable[In], cluster: ClusterSettings
) -> Iterator[Out]:
    """What `worker(run)` makes of each value, as it comes, in actors that load what they need once."""
    rows = [{_VALUE: pickle.dumps(value)} for value in values]
    if not rows:
        return iter(())
    mapped = _dataset(rows).map(
        cast(Callable[..., Any], _GuardedWorker),
        fn_constructor_args=(worker, run),
        concurrency=min(num_scorers(cluster), len(rows)),
        num_cpus=1,
        num_gpus=1 if uses_gpu(cluster) else 0,
    )
    return _results(mapped)


def _dataset(rows: list[dict[str, bytes]]) -> ray.data.Dataset:
    """One block for each row."""
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    # The reservation keeps room for other operators, of which there are none: with it the first second of work is done
    # by one core, and each core waits some 0.2 s between two tasks (Ray 2.60).
    dataset.context.op_resource_reservation_enabled = False
    return dataset


def _guarded(function: Callable[[Any], Any], row: dict[str, bytes]) -> dict[str, bytes]:
    """What a function makes of a value, or the error it expects: Ray Data would not hand its cause to the driver."""
    try:
        return {_RESULT: pickle.dumps(function(pickle.loads(row[_VALUE])))}
    except _EXPECTED as error:
        return {_RESULT: pickle.dumps(error)}


class _GuardedWorker:
    """A worker of `map_actors` whose expected errors reach the driver as they are."""

    def __init__(self, worker: Callable[..., Any], run: object) -> None:
        self.worker = worker(run)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return _guarded(self.worker, row)


def _results(mapped: ray.data.Dataset) -> Iterator[Any]:
    # Threads of Ray Data that are at work when Ray is shut down end the process before it has said why. So none reads
    # ahead, and what the error's traceback would keep alive is let go of.
    blocks: Iterator[Any] = iter(mapped.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
    try:
        for block in blocks:
            for value in block.column(_RESULT):
                result = pickle.loads(value.as_py())
                if isinstance(result, Exception):
                    raise result
                yield result
    finally:
        del blocks, mapped
