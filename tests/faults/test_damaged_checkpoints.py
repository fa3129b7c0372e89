"""Checkpoints that a kill left unfinished (T7), or that are damaged or of another run (T8, T9): none is half loaded."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import multiprocessing as mp

from data_io import storage
from data_io.snapshots import MANIFEST_NAME
from model.checkpoint import CheckpointError
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.engine import TrainEngine
from model.resuming import resume
from ray_jobs.train_loop import TrainRun
from tests.model.test_zero import make_engine, run_steps
from tests.processes import run_workers
from tests.trainings import LedgerTrainer, check_each_user_once_an_epoch, losses_of, make_training

IDENTITY = RunIdentity(fingerprint="a", settings={"section": {"rate": 1, "loss": "full"}, "inputs": {"store": "x"}})
OTHER = RunIdentity(fingerprint="b", settings={"section": {"rate": 2, "loss": "full"}, "inputs": {"store": "y"}})


def flip(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def lose(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def tear(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:200])


def empty(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b"")


def change_step(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def drop_part(folder: Path) -> None:
    """A manifest that fits its own checksum but does not name all parts."""
    from model.checkpoint_form import manifest_checksum

    path = folder / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    parts = manifest["files"][0]["parts"]
    del parts[next(iter(parts))]
    path.write_text(json.dumps(manifest | {"checksum": manifest_checksum(manifest)}))


def leave_out_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


DAMAGES: dict[Callable[[Path], None], str] = {
    flip: "differs from what was written",
    truncate: "differs from what was written",
    lose: "is missing",
    tear: "cannot be read",
    empty: "cannot be read",
    change_step: "differs from what was written",
    drop_part: "lacks part of",
    leave_out_manifest: "was never finished",
    delete: "",
}


def outcome(engine: TrainEngine, url: Path, identity: RunIdentity = IDENTITY) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    try:
        return resume(engine, str(url), identity, warnings.append).position.step, warnings
    except CheckpointError as error:
        return str(error), warnings


def damage_all(rank: int, folder: Path) -> dict[str, Any]:
    """Two checkpoints; what resuming finds after the newest, and then both, are damaged in every way."""
    with patch("tests.model.test_zero.WORLD_SIZE", 1):
        engine = make_engine(1)
        writer = CheckpointWriter(str(folder / "good"), IDENTITY, keep=3)
        for step in (1, 2):
            run_steps(engine, range(step - 1, step))
            writer.save(engine, TrainPosition(step=step), {})
            writer.wait()
        found: dict[str, Any] = {"whole": outcome(engine, folder / "good")}
        found["other run"] = outcome(engine, folder / "good", OTHER)
        for damage in DAMAGES:
            url = folder / damage.__name__
            shutil.copytree(folder / "good", url)
            newest, oldest = sorted(url.iterdir(), reverse=True)
            damage(newest)
            first = outcome(engine, url)
            if damage not in (delete, leave_out_manifest, change_step):
                damage(oldest)
            found[damage.__name__] = first, outcome(engine, url)
        newer = sorted((folder / "good").iterdir())[-1] / MANIFEST_NAME
        manifest = json.loads(newer.read_text())
        newer.write_text(json.dumps(manifest | {"format_version": 99}))
        found["newer"] = outcome(engine, folder / "good")
        with torch.no_grad():
            next(engine.module.parameters()).fill_(float("nan"))
        engine.parts()[0].numbers.fill_(float("nan"))
        try:
            writer.save(engine, TrainPosition(step=9), {})
        except CheckpointError as error:
            found["not finite"] = str(error)
        found["left"] = sorted(path.name.split("-")[1] for path in (folder / "good").iterdir())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_workers(damage_all, 1, tmp_path_factory.mktemp("damaged"))[0]


def test_the_newest_checkpoint_is_taken(found: dict[str, Any]) -> None:
    assert found["whole"] == (2, [])


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_found_out_before_it_is_loaded_and_an_older_one_taken(
    found: dict[str, Any], damage: Callable[[Path], None]
) -> None:
    (step, warnings), (second, _) = found[damage.__name__]
    assert step == 1
    assert all(DAMAGES[damage] in warning for warning in warnings), warnings
    assert len(warnings) == (damage is not delete)
    if damage in (delete, leave_out_manifest, change_step):
        assert second == 1
    else:
        assert "every checkpoint is damaged" in second
        assert DAMAGES[damage] in second


def test_a_checkpoint_of_another_run_or_version_is_refused_with_what_differs(found: dict[str, Any]) -> None:
    message = found["other run"][0]
    assert "(inputs.store 'x' then, 'y' now; section.rate 1 then, 2 now)" in message
    assert "loss" not in message
    assert "is of checkpoint format 99 and this version of clickformer reads 2" in found["newer"][0]


def test_weights_that_are_not_finite_are_never_saved(found: dict[str, Any]) -> None:
    assert "is not finite after step 9; nothing was saved" in found["not finite"]
    assert found["left"] == ["step=00000001", "step=00000002"]


KILLED_AT = {
    "after one of two parts": (1, ".safetensors", "after"),
    "before the manifest": (0, MANIFEST_NAME, "before"),
    "while the manifest is written": (0, MANIFEST_NAME, "during"),
}


def train(rank: int, run: TrainRun, ledger: Path, killed: tuple[int, str, str] | None) -> None:
    write, replace_file = storage.write_bytes, os.replace

    def is_chosen(url: str) -> bool:
        return killed is not None and rank == killed[0] and "step=00000006" in url and url.endswith(killed[1])

    def write_or_die(url: str, content: Any) -> None:
        assert killed is not None
        if is_chosen(url) and killed[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(url, content)
        if is_chosen(url) and killed[2] == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source: Any, target: Any, **named: Any) -> None:
        if is_chosen(str(target)) and killed is not None and killed[2] == "during":
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(source, target, **named)

    if killed is not None:
        storage.write_bytes, os.replace = write_or_die, replace_or_die
    LedgerTrainer(run, ledger).train()


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Path]:
    folder = tmp_path_factory.mktemp("unfinished")
    run = make_training(folder, checkpoint_every_steps=3, keep_checkpoints=5)
    run_workers(train, 2, run, folder / "ledger", None)
    return run, folder / "ledger"


@pytest.mark.faults
@pytest.mark.parametrize("place", KILLED_AT)
def test_a_checkpoint_that_was_being_written_by_a_killed_worker_is_as_if_it_had_never_been_begun(
    undisturbed: tuple[TrainRun, Path], tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run, ledger = replace(undisturbed[0], work_url=str(tmp_path / "work")), tmp_path / "ledger"
    with pytest.raises(mp.ProcessExitedException):
        run_workers(train, 2, run, ledger, KILLED_AT[place])
    unfinished = [path for path in (tmp_path / "work/checkpoints").iterdir() if "step=00000006" in path.name]
    assert unfinished, "it was begun"
    assert not (unfinished[0] / MANIFEST_NAME).exists()
    run_workers(train, 2, run, ledger, None)
    assert "was never finished and is deleted" in capfd.readouterr().out
    assert not unfinished[0].exists()
    check_each_user_once_an_epoch(ledger, int(run.index.num_examples.sum()), run.training.num_epochs)
    assert losses_of(ledger) == losses_of(undisturbed[1])
