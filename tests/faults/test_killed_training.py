"""Workers that are killed or stopped in the middle of training (T1, T2): nothing is lost, doubled or left hanging."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist

from cluster.config import ClusterSettings
from data_io.loader import LoadedStep
from data_io.order import EpochOrder
from model.engine import StepResult
from model.flops import StepSize
from ray_jobs.train_loop import TrainRun
from ray_jobs.training import run_workers
from ray_jobs.watch import Watch
from tests.trainings import LedgerTrainer, check_each_user_once_an_epoch, losses_of, make_training

NUM_WORKERS = 2


class HarmedTrainer(LedgerTrainer):
    """A trainer whose worker is harmed at set places, once at each."""

    def __init__(self, run: TrainRun, ledger: Path, watch: Watch, harms: dict[int, tuple[int, str]]) -> None:
        super().__init__(run, ledger)
        self.watch, self.harms = watch, harms

    def _step(self, loaded: LoadedStep, size: StepSize, global_step: int, order: EpochOrder) -> StepResult:
        rank, place = self.harms.get(global_step, (-1, ""))
        mark = self.ledger / f"harmed-{global_step}"
        if rank == self.place.rank and not mark.exists():
            mark.touch()
            self._harm(place)
        return super()._step(loaded, size, global_step, order)

    def _harm(self, place: str) -> None:
        match place:
            case "before the step":
                os.kill(os.getpid(), signal.SIGKILL)
            case "between forward and backward":
                self.engine.module.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            case "in the backward pass":
                parameter = next(iter(self.engine.module.parameters()))
                parameter.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
            case "in a collective":
                reduce, handles = dist.all_reduce, []

                def die(*arguments: Any, **named: Any) -> Any:
                    handles.append(reduce(*arguments, **named | {"async_op": True}))
                    os.kill(os.getpid(), signal.SIGKILL)

                dist.all_reduce = die
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)


def loop_with(ledger: Path, harms: dict[int, tuple[int, str]]) -> Callable[[TrainRun, torch.device, Watch], None]:
    def loop(run: TrainRun, _: torch.device, watch: Watch) -> None:
        torch.set_num_threads(1)
        with watch:
            HarmedTrainer(run, ledger, watch, harms).train()

    return loop


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Path]:
    """A run that nothing happens to, and its ledger."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = make_training(folder, checkpoint_every_steps=2)
    run_workers(run, ClusterSettings(num_workers=NUM_WORKERS), loop_with(folder / "ledger", {}))
    return run, folder / "ledger"


def check_like_undisturbed(run: TrainRun, ledger: Path, undisturbed: tuple[TrainRun, Path]) -> None:
    check_each_user_once_an_epoch(ledger, int(run.index.num_examples.sum()), run.training.num_epochs)
    assert losses_of(ledger) == losses_of(undisturbed[1])
    expected, found = (load_file(f"{each.work_url}/best/model.safetensors") for each in (undisturbed[0], run))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), "bit-equal weights"


@pytest.mark.parametrize("num_kills", [1, pytest.param(5, marks=pytest.mark.faults)])
def test_kills_at_random_steps_leave_the_weights_bit_equal_and_each_user_once(
    undisturbed: tuple[TrainRun, Path], tmp_path: Path, num_kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(undisturbed[0], work_url=str(tmp_path / "work"))
    drawn = np.random.default_rng()
    steps = sorted(drawn.choice(np.arange(1, 18), num_kills, replace=False).tolist())
    places = ["before the step", "between forward and backward", "in the backward pass", "in a collective"]
    harms = {step: (int(drawn.integers(NUM_WORKERS)), str(drawn.choice(places))) for step in steps}
    # steps take milliseconds here, so that all kills may come before the next checkpoint is written
    cluster = ClusterSettings(num_workers=NUM_WORKERS, max_failures=num_kills)
    run_workers(run, cluster, loop_with(tmp_path / "ledger", harms))
    assert len(list((tmp_path / "ledger").glob("harmed-*"))) == num_kills, harms
    assert capsys.readouterr().out.count("workers were lost") == num_kills
    check_like_undisturbed(run, tmp_path / "ledger", undisturbed)


@pytest.mark.faults
def test_a_worker_that_hangs_is_found_its_peers_stacks_are_saved_and_the_run_goes_on(
    undisturbed: tuple[TrainRun, Path], tmp_path: Path
) -> None:
    run = replace(undisturbed[0], work_url=str(tmp_path / "work"))
    cluster = ClusterSettings(num_workers=NUM_WORKERS, hang_timeout_s=8)
    run_workers(run, cluster, loop_with(tmp_path / "ledger", {7: (1, "stopped")}))
    check_like_undisturbed(run, tmp_path / "ledger", undisturbed)
    stacks = "".join(path.read_text() for path in (tmp_path / "work").glob("stacks-*.txt"))
    assert "all_reduce" in stacks or "backward" in stacks, "where the peer waited"
