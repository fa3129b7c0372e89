"""A driver for `test_drained_node`: trains on two nodes, of which one is announced to go (T4), and then goes.

Run as `python -m tests.faults.drained_node FOLDER`, alone in its process: it has a Ray cluster of its own.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster

from cluster.config import ClusterSettings
from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from model.checkpoint_form import newest_position
from model.engine import StepResult
from model.flops import StepSize
from ray_jobs.train_loop import TrainRun
from ray_jobs.training import run_workers
from ray_jobs.watch import Watch
from tests.trainings import LedgerTrainer, make_training

STEP_S = 0.4
DEADLINE_S = 60


class PacedTrainer(LedgerTrainer):
    """Steps that take as long as those of a real network, so that a notice comes in the middle of an epoch."""

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        time.sleep(STEP_S)
        return super()._step(loaded, size, global_step, order)


def pace(run: TrainRun, _: torch.device, watch: Watch) -> None:
    torch.set_num_threads(1)
    with watch:
        trainer = PacedTrainer(run, Path(run.work_url).parent / "ledger")
        trainer.watch = watch
        trainer.train()


def take_node_away(cluster: Cluster, node: object, run: TrainRun, ledger: Path, seen: dict[str, object]) -> None:
    """Announce it once training runs on it, wait for the checkpoint that answers, and end it without a warning."""
    while not list(ledger.glob("*-002.json")):
        time.sleep(0.05)
    node_id = node.node_id  # pyright: ignore
    command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
    command += ["--address", cluster.address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    announced = time.monotonic()
    told = subprocess.run([*command, "--deadline-remaining-seconds", str(DEADLINE_S)], capture_output=True, text=True)
    seen["drain"] = told.stderr[-500:] if told.returncode else ""
    while newest_position(run.checkpoints_url)[1] <= 0 and time.monotonic() - announced < DEADLINE_S:
        time.sleep(0.05)
    seen["saved_after_s"] = time.monotonic() - announced
    seen["position"] = newest_position(run.checkpoints_url)
    cluster.remove_node(node, allow_graceful=False)  # pyright: ignore


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(address=cluster.address, log_to_driver=True)
    seen: dict[str, object] = {}
    try:
        run = make_training(
            folder, checkpoint_every_steps=None, num_epochs=5
        )  # no checkpoint within an epoch but by the notice
        harm = threading.Thread(target=take_node_away, args=(cluster, node, run, folder / "ledger", seen))
        harm.start()
        run_workers(
            run, ClusterSettings(num_workers=(1, 2), max_failures=0, hang_timeout_s=60, worker_timeout_s=30), pace
        )
        harm.join()
        seen["num_examples"] = int(run.index.num_examples.sum())
        seen["num_epochs"] = run.training.num_epochs
        (folder / "seen.json").write_text(json.dumps(seen))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
