"""Losses and gradients that are absurd on one worker (T11): all workers skip the step, and nothing absurd is saved."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from data_io.batch import TARGET_ITEM_INDEX
from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from model.engine import StepResult, TrainEngine
from model.flops import StepSize
from model.guarded_adamw import GradientGuard
from ray_jobs.train_loop import TrainingDivergedError, TrainRun
from tests.model.test_zero import NUM_STEPS, WORLD_SIZE, make_engine, published_weights, run_steps, step_batches
from tests.processes import run_workers
from tests.trainings import LedgerTrainer, check_each_user_once_an_epoch, make_training

STAGES = range(4)
POISONS = {"loss": float("nan"), "gradient": float("inf"), "spike": 1e6}
BAD_STEP = 5


@contextmanager
def poisoned(engine: TrainEngine, poison: str) -> Iterator[None]:
    """On the worker that is in it: the loss, or the gradients of a parameter, are multiplied by something absurd."""
    factor = POISONS[poison]
    if poison == "loss":
        hook = engine.module.register_forward_hook(lambda _, __, loss: loss * factor)
    else:
        parameter = next(p for name, p in engine.module.named_parameters() if name.endswith("item_table.weight"))
        hook = parameter.register_hook(lambda gradient: gradient * factor)
    try:
        yield
    finally:
        hook.remove()


def take_bad_step(engine: TrainEngine, rank: int, poison: str) -> StepResult:
    batches = step_batches(BAD_STEP, rank, 1)
    weight = int((batches[0][TARGET_ITEM_INDEX] > 0).sum())
    if rank != 1:
        return engine.step(batches, weight, BAD_STEP, BAD_STEP, NUM_STEPS)
    with poisoned(engine, poison):
        return engine.step(batches, weight, BAD_STEP, BAD_STEP, NUM_STEPS)


def take_steps(rank: int) -> dict[str, Any]:
    found = {}
    for stage in STAGES:
        for poison in POISONS:
            engine = make_engine(stage)
            run_steps(engine, range(BAD_STEP))
            engine._guard.load({"usual_norm": engine._guard._usual, "num_norms": 1_000})  # known for long
            before = published_weights(engine)
            result = take_bad_step(engine, rank, poison)
            after = published_weights(engine)
            rest = run_steps(engine, range(BAD_STEP + 1, NUM_STEPS))
            found[stage, poison] = {
                "result": result,
                "same": all(np.array_equal(before[name], weights) for name, weights in after.items()),
                "rest": rest,
                "steps": engine.counters()["num_steps"],
            }
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_workers(take_steps, WORLD_SIZE)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_absurd_on_one_worker_is_skipped_by_all(
    found: list[dict[str, Any]], stage: int, poison: str
) -> None:
    for rank in range(WORLD_SIZE):
        seen = found[rank][stage, poison]
        assert seen["result"].skipped
        assert seen["same"], "weights and their mean are as before"
        assert seen["steps"] == NUM_STEPS - 1
        assert np.isfinite(seen["rest"]).all()
        assert seen["rest"] == found[0][stage, poison]["rest"]
    np.testing.assert_allclose(found[0][stage, poison]["rest"], found[0][0, "loss"]["rest"], atol=1e-4, rtol=0)


def test_the_guard_knows_a_spike_only_once_it_knows_what_is_usual() -> None:
    guard = GradientGuard(max_norm=1.0, spike_factor=10.0)
    assert guard.scale_of(1000.0) == pytest.approx(1e-3), "the beginning is clipped, not skipped"
    for _ in range(200):
        assert guard.scale_of(0.5) == 1.0
    assert guard.scale_of(1000.0) is None
    assert guard.scale_of(0.5) == 1.0, "a spike does not change what is usual"
    assert guard.scale_of(float("nan")) is None
    assert GradientGuard(max_norm=1.0, spike_factor=None).scale_of(1e30) == pytest.approx(1e-30)


class PoisonedTrainer(LedgerTrainer):
    """The loss of one worker is not a number in set steps."""

    def __init__(self, run: TrainRun, ledger: Path, bad: range) -> None:
        super().__init__(run, ledger)
        self.bad = bad

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        if global_step in self.bad and self.place.rank == 1:
            with poisoned(self.engine, "loss"):
                return super()._step(loaded, size, global_step, order)
        return super()._step(loaded, size, global_step, order)


def train(rank: int, run: TrainRun, ledger: Path, bad: range) -> dict[str, Any]:
    trainer = PoisonedTrainer(run, ledger, bad)
    try:
        trainer.train()
    except TrainingDivergedError as error:
        return {"error": str(error), "troubles": asdict(trainer.troubles)}
    return {"error": "", "troubles": asdict(trainer.troubles)}


@pytest.fixture(scope="module")
def run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    return make_training(
        tmp_path_factory.mktemp("bad-steps"), checkpoint_every_steps=2, max_skipped_steps=3, zero_stage=2
    )


def all_saved_are_finite(work: Path) -> bool:
    files = [*work.glob("best/*.safetensors"), *work.glob("checkpoints/*/*.safetensors")]
    assert files
    return all(tensor.isfinite().all() for file in files for tensor in load_file(file).values())


@pytest.mark.faults
def test_a_few_absurd_steps_are_skipped_counted_and_got_over(
    run: TrainRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = replace(run, work_url=str(tmp_path / "work"))
    results = run_workers(train, 2, run, tmp_path / "ledger", range(5, 7))
    assert results == [{"error": "", "troubles": {"skipped_steps": 2, "skipped_in_a_row": 0, "rollbacks": 0}}] * 2
    assert "epoch 1: step 6 is skipped (loss nan, gradient norm nan), 1 so far" in capfd.readouterr().out
    check_each_user_once_an_epoch(tmp_path / "ledger", int(run.index.num_examples.sum()), run.training.num_epochs)
    assert all_saved_are_finite(tmp_path / "work")


@pytest.mark.faults
def test_past_the_limit_the_weights_go_back_to_a_checkpoint(
    run: TrainRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = replace(run, work_url=str(tmp_path / "work"))
    results = run_workers(train, 2, run, tmp_path / "ledger", range(5, 8))
    assert results == [{"error": "", "troubles": {"skipped_steps": 3, "skipped_in_a_row": 0, "rollbacks": 1}}] * 2
    assert "the weights go back to epoch 1, step 4" in capfd.readouterr().out
    assert all_saved_are_finite(tmp_path / "work")


@pytest.mark.faults
def test_a_training_that_stays_absurd_is_given_up_with_what_to_change(run: TrainRun, tmp_path: Path) -> None:
    run = replace(run, work_url=str(tmp_path / "work"))
    for result in run_workers(train, 2, run, tmp_path / "ledger", range(5, 1_000)):
        assert "3 steps in a row up to step" in result["error"]
        assert "lower optimizer.learning_rate" in result["error"]
    assert all_saved_are_finite(tmp_path / "work")
    newest = sorted((tmp_path / "work/checkpoints").iterdir())[-1]
    assert json.loads((newest / "_MANIFEST.json").read_text())["engine"]["num_steps"] == 4, "none of them was taken"
