"""Work that spreads bucket by bucket over the cluster with Ray Data."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from cluster.config import ClusterSettings
from cluster.session import num_scorers, uses_gpu


def map_buckets(buckets: Iterable[int], function: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[Any]:
    """Rows of a function applied to {"bucket": b} for each bucket, as they come, in tasks."""
    return iter(_rows(buckets).map(function).iter_rows())


def map_buckets_in_actors(
    buckets: list[int], worker: Callable[..., Any], run: object, cluster: ClusterSettings
) -> Iterator[Any]:
    """Rows of `worker(run)` called with {"bucket": b} for each bucket, in actors that load what they need once."""
    if not buckets:
        return iter(())
    mapped = _rows(buckets).map(
        worker,
        fn_constructor_args=(run,),
        concurrency=min(num_scorers(cluster), len(buckets)),
        num_cpus=1,
        num_gpus=1 if uses_gpu(cluster) else 0,
    )
    return iter(mapped.iter_rows())


def _rows(buckets: Iterable[int]) -> "ray.data.Dataset":
    rows = [{"bucket": int(bucket)} for bucket in buckets]
    return ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
