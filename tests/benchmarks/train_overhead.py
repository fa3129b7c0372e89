"""What Ray, DeepSpeed, the loader and all the care of the training loop cost, and how it scales to a second worker.

The network has the shape of movielens_1m.yaml. After each step of the loop that `pretrain` runs, with reading, seeds,
guard, figures and trackers, the first worker takes the same global batch by a bare loop of plain PyTorch (AdamW,
clipping), on one thread like every worker. On one worker that shows what the loop costs; how two workers scale is their
time and that of one, each over the bare loop's beside it. Sides take turns so closely because this kind of machine
changes its speed by half from one minute to the next.
Validation and start-up do not count, and no checkpoint is written within an epoch.
Usage: python -m tests.benchmarks.train_overhead [--quick]
"""

import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from cluster.config import ClusterSettings
from cluster.session import ray_session
from data_io.batch import Batch
from data_io.config import SyntheticSettings
from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from data_io.storage import write_parquet
from data_io.synthetic import generate_events
from model.checkpoint_form import TrainPosition
from model.engine import StepResult, learning_rate_at, parameter_groups, to_tensors
from model.flops import StepSize
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.watch import Watch
from tests.benchmarks.harness import finish, is_quick
from tests.benchmarks.training_runs import leave, make_training, measure

MOST_OVERHEAD, LEAST_SCALING = 0.08, 1.7
SECTIONS = {
    "encoder": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "sequence_length": 200},
    "pretrain": {
        "training": {"num_epochs": 100, "global_batch_size": 256, "micro_batch_size": 32, "zero_stage": 1},
        "softmax": {"kind": "sampled"},
    },
}


def main() -> None:
    num_users, rounds = (400, 2) if is_quick() else (2_000, 4)
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name, ray_session(ClusterSettings()):
        make_log(Path(name), num_users)
        run = make_training(Path(name), SECTIONS)
        print(f"epochs of {int(run.index.num_examples.sum()):,} windows")
        loop = partial(in_turn, rounds=rounds)
        one = compare("one worker", "bare loop", *measure(run, 1, loop)[0])
        two = compare("two workers", "bare loop", *measure(run, 2, loop)[0])
    figures = {"overhead": one - 1, "most_overhead": MOST_OVERHEAD, "over_bare": 1 / two, "scaling": one / two}
    finish("train_overhead", figures, LEAST_SCALING, ok=one - 1 <= MOST_OVERHEAD and one / two >= LEAST_SCALING)


def compare(first: str, second: str, ours: list[float], bare: list[float]) -> float:
    """Print the seconds of both sides; the median over epochs of the first's time over the second's."""
    for side, seconds in ((first, ours), (second, bare)):
        print(f"{side:<12} median {statistics.median(seconds):6.2f} s: {' '.join(f'{s:.2f}' for s in seconds)}")
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    print(f"{first} over {second}: {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    return statistics.median(ratios)


def make_log(folder: Path, num_users: int) -> None:
    """A generated log."""
    shape = SyntheticSettings(num_users=num_users, num_items=3_000, num_days=180, mean_events_per_user=120)
    write_parquet(str(folder / "log/part-0.parquet"), generate_events(shape))


def in_turn(run: TrainRun, device: torch.device, watch: Watch, *, rounds: int) -> None:
    """Seconds of epochs of the loop, and of the bare one that takes each step after it."""
    torch.set_num_threads(1)
    with watch:
        trainer = PairedTrainer(run, device, watch)
        found = [trainer.train_epoch(epoch) for epoch in range(rounds + 1)][1:]  # the first is a warm-up
        leave(trainer, list(zip(*found, strict=True)))


class PairedTrainer(Trainer):
    """Has a bare loop on the first worker take each step after it."""

    def __init__(self, run: TrainRun, device: torch.device, watch: Watch) -> None:
        super().__init__(run, device, watch)
        self.bare = BareLoop(run, device)
        self.bare_s = 0.0
        self.whole_steps: list[list[Batch]] = []

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Seconds of an epoch of the loop, and of the bare one."""
        alone = replace(self.place, rank=0, world_size=1)
        self.whole_steps = [loaded.batches for loaded in self.loader.steps(self.order(epoch), alone, 0)]
        dist.barrier()
        self.bare_s, began = 0.0, time.perf_counter()
        self._train_epoch(TrainPosition(epoch=epoch))
        return time.perf_counter() - began - self.bare_s, self.bare_s

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        result = super()._step(loaded, size, global_step, order)
        began = time.perf_counter()
        if self.place.rank == 0:
            self.bare.train(self.whole_steps[global_step % order.num_steps])
        dist.barrier()
        self.bare_s += time.perf_counter() - began
        return result


class BareLoop:
    """The training loop that one would write: nothing but forward, backward, clipping and AdamW."""

    def __init__(self, run: TrainRun, device: torch.device) -> None:
        torch.manual_seed(run.seed)
        self.run, self.device = run, device
        self.objective: nn.Module = run.learning.build(run.index).to(device)
        groups = parameter_groups(self.objective, run.optimizer.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=run.optimizer.learning_rate, fused=True)
        self.num_steps = 0

    def train(self, batches: list[Batch]) -> None:
        """One step."""
        run = self.run
        self.objective.train()
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
