"""A session on a Ray cluster: join one or start one, and ask what it has.

Invariant: a session that was started here is ended here, and one that was joined is left running.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.config import ClusterSettings


class ClusterError(Exception):
    """The cluster cannot run what was asked of it; the message says what it has and what to change."""


@contextmanager
def ray_session(settings: ClusterSettings) -> Iterator[None]:
    """Run the body on a Ray cluster; a session that is already open is used as it is."""
    if ray.is_initialized():
        yield
        return
    _quieten()
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address=address, logging_level=logging.ERROR)
    _quieten_loggers()
    try:
        yield
    finally:
        ray.shutdown()


def _quieten() -> None:
    # Relative paths must mean the same in a worker as in the driver.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Nothing here acts on a preemption notice yet, and the actor that waits for one logs an error at every start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # What libraries print to a person who can do nothing about it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _quieten_loggers() -> None:
    # Ray Data sets its levels up when it is imported, so it has to be imported first.
    import ray.data  # noqa: F401

    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def uses_gpu(settings: ClusterSettings) -> bool:
    """Whether workers get a GPU each.

    Raises:
        ClusterError: GPUs are asked for and there are too few.
    """
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if settings.device == "cuda" and num_gpus < 1:
        raise ClusterError("cluster.device is cuda, but the cluster has no GPU; set --cluster.device auto")
    if settings.device == "auto":
        return num_gpus >= settings.num_workers
    return settings.device == "cuda"


def check_workers_fit(settings: ClusterSettings) -> None:
    """Fail at once where training workers could never be placed.

    Raises:
        ClusterError: the cluster has too few cores or GPUs (a cluster that grows on demand has to be up first).
    """
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    needed = settings.num_workers * settings.cpus_per_worker
    if needed > num_cpus:
        raise ClusterError(
            f"{settings.num_workers} workers of {settings.cpus_per_worker} cores need {needed} cores and the cluster "
            f"has {num_cpus}; lower cluster.num_workers or cluster.cpus_per_worker"
        )
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if settings.device == "cuda" and settings.num_workers > num_gpus:
        raise ClusterError(
            f"{settings.num_workers} workers need a GPU each and the cluster has {num_gpus}; lower cluster.num_workers"
        )


def num_scorers(settings: ClusterSettings) -> int:
    """How many scoring actors run side by side."""
    kind = "GPU" if uses_gpu(settings) else "CPU"
    available = max(1, int(ray.cluster_resources().get(kind, 1)))
    return min(settings.num_scorers or available, available)
