"""Data and workers that are uneven (T28, T29): all take the same steps, each user is trained on once, nothing waits."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from model.engine import StepResult
from model.flops import StepSize
from ray_jobs.train_loop import TrainRun
from tests.processes import run_workers
from tests.trainings import LedgerTrainer, check_each_user_once_an_epoch, losses_of, make_training

STAGES = range(4)


class SlowTrainer(LedgerTrainer):
    """The last worker takes ten times as long as the others."""

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        began = time.perf_counter()
        result = super()._step(loaded, size, global_step, order)
        if self.place.rank == self.place.world_size - 1:
            time.sleep(9 * (time.perf_counter() - began))  # the fault itself
        return result


def train_slowly(rank: int, run: TrainRun, ledger: Path) -> None:
    SlowTrainer(run, ledger).train()


def train_stages(rank: int, runs: list[tuple[TrainRun, Path]]) -> None:
    for run, ledger in runs:
        LedgerTrainer(run, ledger).train()


def of_stage(run: TrainRun, stage: int, folder: Path) -> tuple[TrainRun, Path]:
    training = run.training.model_copy(update={"zero_stage": stage})
    return replace(run, training=training, work_url=str(folder / f"{stage}/work")), folder / f"{stage}/ledger"


@pytest.mark.faults
def test_a_bucket_ten_times_as_large_and_a_slow_worker(ray_cluster: None, tmp_path: Path) -> None:
    run = make_training(tmp_path, largest_bucket=10)
    counts = run.index.num_examples
    assert counts.max() >= 8 * np.median(counts)
    run_workers(train_slowly, 2, run, tmp_path / "ledger")
    check_each_user_once_an_epoch(tmp_path / "ledger", int(counts.sum()), run.training.num_epochs)


@pytest.mark.faults
def test_workers_without_any_batch_take_part_under_every_stage(ray_cluster: None, tmp_path: Path) -> None:
    run = make_training(tmp_path, num_users=6)
    assert run.index.num_examples.sum() <= 8, "two micro-batches of the four of a step"
    run_workers(train_stages, 4, [of_stage(run, stage, tmp_path) for stage in STAGES])
    run_workers(train_stages, 1, [(replace(run, work_url=str(tmp_path / "one/work")), tmp_path / "one/ledger")])
    expected = losses_of(tmp_path / "one/ledger")
    for stage in STAGES:
        ledger = tmp_path / f"{stage}/ledger"
        check_each_user_once_an_epoch(ledger, int(run.index.num_examples.sum()), run.training.num_epochs)
        np.testing.assert_allclose(list(losses_of(ledger).values()), list(expected.values()), atol=1e-4, rtol=0)
