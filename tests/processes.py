"""Groups of worker processes without Ray: real torch.distributed with gloo, real DeepSpeed."""

import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp


def run_workers(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What a function, called with the rank and the arguments on each worker of a group, returns on each.

    Results come back by files: a queue deadlocks where they are large.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        places = (function, world_size, port, folder, arguments)
        mp.start_processes(_work, args=places, nprocs=world_size, join=True, start_method="spawn")
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world_size)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(
    rank: int, function: Callable[..., Any], world_size: int, port: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in (places | {"WORLD_SIZE": world_size}).items()}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    found = function(rank, *arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))
    dist.barrier()
