"""Work that spreads bucket by bucket over the cluster with Ray Data.

A block of Ray Data costs some 30 ms whatever is in it, so short tasks share blocks, a few for each core.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from cluster.config import ClusterSettings
from cluster.session import num_scorers, uses_gpu

_BLOCKS_PER_CORE = 4


def map_buckets(buckets: Iterable[int], function: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Any]:
    """Rows of a function applied to {"bucket": b} for each bucket, as they come, in tasks."""
    return map_rows([{"bucket": int(bucket)} for bucket in buckets], function)


def map_rows(rows: list[dict[str, Any]], function: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Any]:
    """Rows of a function applied to each row, as they come, in tasks."""
    if not rows:
        return iter(())
    blocks = min(len(rows), _BLOCKS_PER_CORE * int(ray.cluster_resources().get("CPU", 1)))
    return iter(ray.data.from_items(rows, override_num_blocks=blocks).map(function).iter_rows())


def map_buckets_in_actors(
    buckets: list[int], worker: Callable[..., Any], run: object, cluster: ClusterSettings
) -> Iterator[Any]:
    """Rows of `worker(run)` called with {"bucket": b} for each bucket, in actors that load what they need once."""
    if not buckets:
        return iter(())
    rows = [{"bucket": bucket} for bucket in buckets]
    mapped = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        worker,
        fn_constructor_args=(run,),
        concurrency=min(num_scorers(cluster), len(buckets)),
        num_cpus=1,
        num_gpus=1 if uses_gpu(cluster) else 0,
    )
    return iter(mapped.iter_rows())
