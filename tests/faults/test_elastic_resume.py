"""A training stopped in the middle of an epoch goes on with fewer or more workers, under every ZeRO stage (T10)."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_jobs.train_loop import TrainRun
from tests.processes import run_workers
from tests.trainings import (
    LedgerTrainer,
    StopHereError,
    check_each_user_once_an_epoch,
    losses_of,
    make_training,
    read_ledger,
)

STAGES = [(3,), pytest.param((0, 1, 2), marks=pytest.mark.faults)]
CHANGES = [(2, 1), (1, 2), (2, 3)]
STOP_AFTER = 6
"""Two steps are lost: the newest checkpoint is from after step 4, counted from 0 as steps are."""


def train(rank: int, runs: list[tuple[TrainRun, Path, int | None]]) -> None:
    for run, ledger, stop_after in runs:
        trainer = LedgerTrainer(run, ledger, stop_after)
        try:
            trainer.train()
        except StopHereError:
            continue


@pytest.fixture(scope="module", params=STAGES, ids=str)
def trained(
    ray_cluster: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainRun, tuple[int, ...]]:
    """Undisturbed and changed runs of some stages, by five groups of workers."""
    stages: tuple[int, ...] = request.param
    folder = tmp_path_factory.mktemp("elastic")
    run = make_training(folder, checkpoint_every_steps=5)

    def of(stage: int, name: str) -> TrainRun:
        training = run.training.model_copy(update={"zero_stage": stage})
        return replace(run, training=training, work_url=str(folder / name / "work"))

    def broken(before: int) -> list[tuple[TrainRun, Path, int | None]]:
        names = [(stage, f"stage {stage} of {before}") for stage in stages]
        return [(of(stage, name), folder / name / "ledger", STOP_AFTER) for stage, name in names]

    run_workers(train, 1, [(of(1, "undisturbed"), folder / "undisturbed/ledger", None), *broken(1)])
    run_workers(train, 2, broken(2))
    for before, after in CHANGES:
        for stage in stages:
            shutil.copytree(folder / f"stage {stage} of {before}", folder / f"stage {stage} {before} to {after}")
    for before, after in CHANGES:
        names = [(stage, f"stage {stage} {before} to {after}") for stage in stages]
        run_workers(train, after, [(of(stage, name), folder / name / "ledger", None) for stage, name in names])
    return folder, run, stages


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]} to {change[1]}")
def test_a_run_resumed_by_other_workers_goes_on_as_the_undisturbed_one(
    trained: tuple[Path, TrainRun, tuple[int, ...]], change: tuple[int, int]
) -> None:
    folder, run, stages = trained
    undisturbed = folder / "undisturbed/ledger"
    order = {key: entry["users"] for key, entry in read_ledger(undisturbed).items()}
    expected = losses_of(undisturbed)
    for stage in stages:
        ledger = folder / f"stage {stage} {change[0]} to {change[1]}/ledger"
        assert {key: entry["users"] for key, entry in read_ledger(ledger).items()} == order
        check_each_user_once_an_epoch(ledger, int(run.index.num_examples.sum()), run.training.num_epochs)
        found = losses_of(ledger)
        np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), atol=1e-4, rtol=0)
