"""A session on a Ray cluster: join one or start one, and ask what it has.

Invariant: a session that was started here is ended here, and one that was joined is left running.
"""

import logging
import os
import signal
import threading
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
    on_terminate = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # ray puts its own in its place
    _quieten_loggers()
    try:
        yield
    finally:
        ray.shutdown()


def _quieten() -> None:
    # Relative paths must mean the same in a worker as in the driver.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
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
        return num_gpus >= settings.least_workers
    return settings.device == "cuda"


def check_workers_fit(settings: ClusterSettings) -> None:
    """Fail at once where training workers could never be placed.

    Raises:
        ClusterError: the cluster has too few cores or GPUs (a cluster that grows on demand has to be up first).
    """
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    needed = settings.least_workers * settings.cpus_per_worker
    if needed > num_cpus:
        raise ClusterError(
            f"{settings.least_workers} workers of {settings.cpus_per_worker} cores need {needed} cores and the cluster "
            f"has {num_cpus}; lower cluster.num_workers or cluster.cpus_per_worker"
        )
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if settings.device == "cuda" and settings.least_workers > num_gpus:
        raise ClusterError(
            f"{settings.least_workers} workers need a GPU each and the cluster has {num_gpus}; lower "
            "cluster.num_workers"
        )


def num_scorers(settings: ClusterSettings) -> int:
    """How many scoring actors run side by side."""
    kind = "GPU" if uses_gpu(settings) else "CPU"
    available = max(1, int(ray.cluster_resources().get(kind, 1)))
    return min(settings.num_scorers or available, available)
