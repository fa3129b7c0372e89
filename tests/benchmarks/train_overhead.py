"""What Ray, DeepSpeed, the loader and all the care of the training loop cost, and how it scales to a second worker.

One worker, one thread: an epoch of the loop that `pretrain` runs, with reading, seeds, guard, figures and trackers, and
an epoch of a bare loop of plain PyTorch (AdamW, clipping) over the same micro-batches, which it has in memory, in turn
in the same process. Then epochs of the loop on one single-threaded worker and on two, in turn, at the same global
batch.
Validation and start-up do not count, and no checkpoint is written within an epoch.
Usage: python -m tests.benchmarks.train_overhead [--quick]
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from cluster.config import ClusterSettings
from cluster.session import ray_session
from data_io.batch import Batch
from data_io.config import SyntheticSettings
from data_io.storage import write_parquet
from data_io.synthetic import generate_events
from model.checkpoint_form import TrainPosition
from model.engine import learning_rate_at, parameter_groups, to_tensors
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.watch import Watch
from tests.benchmarks.harness import finish, is_quick
from tests.benchmarks.training_runs import leave, make_training, measure

MOST_OVERHEAD, LEAST_SCALING = 0.08, 1.7
ROUNDS = 5
SECTIONS = {
    "encoder": {"hidden_size": 64, "num_layers": 2, "sequence_length": 128},
    "pretrain": {
        "training": {"num_epochs": 100, "global_batch_size": 128, "micro_batch_size": 32, "zero_stage": 1},
        "softmax": {"kind": "sampled"},
    },
}


def main() -> None:
    num_users = 400 if is_quick() else 1_500
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name, ray_session(ClusterSettings()):
        make_log(Path(name), num_users)
        run = make_training(Path(name), SECTIONS)
        both = measure(run, 1, in_turn)[0]
        overhead = statistics.median(both["ours"]) / statistics.median(both["bare"]) - 1
        print(f"{'loop':<24} {'median s':>9}   each epoch of {int(run.index.num_examples.sum()):,} windows")
        for side in ("bare", "ours"):
            print(f"{side:<24} {statistics.median(both[side]):>9.2f}   {' '.join(f'{s:.2f}' for s in both[side])}")
        alone: list[float] = []
        together: list[float] = []
        for _ in range(1 if is_quick() else 2):
            alone += measure(run, 1, ours_only)[0]["ours"]
            together += measure(run, 2, ours_only)[0]["ours"]
        scaling = statistics.median(alone) / statistics.median(together)
        for side, seconds in (("one worker", alone), ("two workers", together)):
            print(f"{side:<24} {statistics.median(seconds):>9.2f}   {' '.join(f'{s:.2f}' for s in seconds)}")
    figures = {"overhead": overhead, "most_overhead": MOST_OVERHEAD, "scaling": scaling}
    finish("train_overhead", figures, LEAST_SCALING, ok=overhead <= MOST_OVERHEAD and scaling >= LEAST_SCALING)


def make_log(folder: Path, num_users: int) -> None:
    """A generated log."""
    shape = SyntheticSettings(num_users=num_users, num_items=3_000, num_days=90, mean_events_per_user=120)
    write_parquet(str(folder / "log/part-0.parquet"), generate_events(shape))


def in_turn(run: TrainRun, device: torch.device, watch: Watch) -> None:
    """Epochs of the loop and of a bare one."""
    torch.set_num_threads(1)
    with watch:
        trainer = Trainer(run, device, watch)
        bare = BareLoop(run, device)
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for epoch in range(ROUNDS + 1):
            steps = [loaded.batches for loaded in trainer.loader.steps(trainer.order(epoch), trainer.place, 0)]
            began = time.perf_counter()
            bare.train(steps)
            between = time.perf_counter()
            train_epoch(trainer, epoch)
            ended = time.perf_counter()
            if epoch:  # the first is a warm-up
                seconds["bare"].append(between - began)
                seconds["ours"].append(ended - between)
        leave(trainer, seconds)


def ours_only(run: TrainRun, device: torch.device, watch: Watch) -> None:
    """Epochs of the loop."""
    torch.set_num_threads(1)
    with watch:
        trainer = Trainer(run, device, watch)
        seconds: list[float] = []
        for epoch in range(ROUNDS // 2 + 1):
            began = time.perf_counter()
            train_epoch(trainer, epoch)
            if epoch:
                seconds.append(time.perf_counter() - began)
        leave(trainer, {"ours": seconds})


def train_epoch(trainer: Trainer, epoch: int) -> None:
    """What `Trainer.train` does in an epoch before it validates."""
    trainer._train_epoch(TrainPosition(epoch=epoch))


class BareLoop:
    """The training loop that one would write: nothing but forward, backward, clipping and AdamW."""

    def __init__(self, run: TrainRun, device: torch.device) -> None:
        torch.manual_seed(run.seed)
        self.run, self.device = run, device
        self.objective: nn.Module = run.learning.build(run.index).to(device)
        groups = parameter_groups(self.objective, run.optimizer.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=run.optimizer.learning_rate, fused=True)
        self.num_steps = 0

    def train(self, steps: list[list[Batch]]) -> None:
        """One epoch."""
        run = self.run
        self.objective.train()
        for batches in steps:
            num_targets = sum(run.learning.num_targets(batch) for batch in batches)
            self.optimizer.zero_grad()
            for batch in batches:
                self.num_steps += 1
                loss = self.objective(to_tensors(batch, self.device), seed=self.num_steps) / num_targets
                loss.backward()
            nn.utils.clip_grad_norm_(self.objective.parameters(), run.optimizer.max_gradient_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(run.optimizer, self.num_steps // len(batches), 10_000)
            self.optimizer.step()


if __name__ == "__main__":
    main()
