"""Runs that benchmarks of training share: from a log in a folder to what each worker measured."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from cluster.config import ClusterSettings
from ray_jobs import build_sequences
from ray_jobs.config import Settings
from ray_jobs.tasks import pretraining
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.training import count_store, identity_of, make_run, open_store, run_workers
from ray_jobs.watch import Watch

_RESULT = "measured-{}.json"


def make_training(folder: Path, sections: dict[str, Any]) -> TrainRun:
    """A run on the log in folder/log, its store built and counted; in a Ray session."""
    places = {"run_dir": str(folder / "run"), "events": {"path": str(folder / "log")}}
    settings = Settings.model_validate(places | sections)
    build_sequences.run(settings)
    store, split = open_store(settings)
    learning = pretraining(settings, store, split)
    identity = identity_of(settings, settings.pretrain, {"store": store.fingerprint})
    return make_run("pretrain", settings, settings.pretrain, learning, count_store(learning), str(folder), identity)


def measure(run: TrainRun, num_workers: int, loop: Callable[[TrainRun, torch.device, Watch], None]) -> list[Any]:
    """What each worker of a loop left."""
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as work:
        run_workers(replace(run, work_url=work), ClusterSettings(num_workers=num_workers, device="cpu"), loop)
        return [json.loads((Path(work) / _RESULT.format(rank)).read_text()) for rank in range(num_workers)]


def leave(trainer: Trainer, measured: Any) -> None:
    """Leave what a worker measured, and close its trainer; all ranks call it."""
    trainer.checkpoints.close()
    trainer.recorder.close()
    (Path(trainer.run.work_url) / _RESULT.format(trainer.place.rank)).write_text(json.dumps(measured))
    dist.barrier()
