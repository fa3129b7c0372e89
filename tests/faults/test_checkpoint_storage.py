"""Storage that fails a training's checkpoints (T21, T23), and memory that does not suffice (T24)."""

import resource
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs
import torch

from data_io.storage import OutOfDiskError
from data_io.vocabulary import Vocabulary
from model.checkpoint import save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from ray_jobs.train_loop import DeviceMemoryError, TrainRun
from ray_jobs.training import _reason
from tests.processes import run_workers
from tests.s3_faults import FaultyS3
from tests.trainings import LedgerTrainer, check_each_user_once_an_epoch, losses_of, make_training, read_ledger

BUCKET = "clickformer-checkpoints"


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Path]:
    folder = tmp_path_factory.mktemp("storage")
    run = make_training(folder, checkpoint_every_steps=2)
    run_workers(train, 2, run, folder / "ledger")
    return run, folder / "ledger"


def train(rank: int, run: TrainRun, ledger: Path) -> None:
    LedgerTrainer(run, ledger).train()


@pytest.mark.faults
def test_a_model_is_not_published_on_a_full_disk(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 8}
    model = ClickformerEncoder(ClickformerConfig(vocabulary_size=1_000, num_actions=3, **sizes))
    run_workers(publish_on_a_full_disk, 1, model, tmp_path)
    assert not (tmp_path / "model").exists()


def publish_on_a_full_disk(rank: int, model: ClickformerEncoder, folder: Path) -> None:
    vocabulary = Vocabulary(pa.array([f"i{number}" for number in range(998)]))
    with file_size_limit(), pytest.raises(OutOfDiskError, match=r"model.safetensors: no room for its [\d,]{6,} bytes"):
        save_model(model, vocabulary, str(folder / "model"), {"kind": "next_item"})


def train_on_a_full_disk(rank: int, run: TrainRun, ledger: Path) -> str:
    """After some steps no file may grow past a few bytes."""
    with ExitStack() as stack:
        trainer = LedgerTrainer(run, ledger)
        step = trainer._step

        def step_on_full_disk(*arguments: object) -> object:
            if arguments[2] == 2:
                trainer.checkpoints.wait()
                torch.distributed.barrier()
                stack.enter_context(file_size_limit())
            return step(*arguments)  # pyright: ignore

        trainer._step = step_on_full_disk  # pyright: ignore
        try:
            trainer.train()
        except OutOfDiskError as error:
            return str(error)
    return ""


@contextmanager
def file_size_limit() -> Iterator[None]:
    """A block in which the disk is as good as full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.faults
def test_a_full_disk_ends_a_training_with_its_path_and_leaves_the_checkpoint_before(
    undisturbed: tuple[TrainRun, Path], tmp_path: Path
) -> None:
    run, ledger = replace(undisturbed[0], work_url=str(tmp_path / "work")), tmp_path / "ledger"
    messages = run_workers(train_on_a_full_disk, 1, run, ledger)
    assert str(tmp_path / "work/checkpoints") in messages[0]
    assert max(step for step, _ in read_ledger(ledger)) < len(losses_of(undisturbed[1])) - 1, "it ended in the middle"
    run_workers(train, 2, run, ledger)
    check_each_user_once_an_epoch(ledger, int(run.index.num_examples.sum()), run.training.num_epochs)


@pytest.mark.faults
def test_checkpoints_go_through_an_object_store_on_a_bad_day(
    undisturbed: tuple[TrainRun, Path], faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    s3fs.S3FileSystem(endpoint_url=faulty_s3.url).makedirs(BUCKET, exist_ok=True)
    run = replace(undisturbed[0], work_url=f"s3://{BUCKET}/{uuid.uuid4().hex}")
    with faulty_s3(kinds=("503", "500", "reset", "lost"), rate=0.1, seed=3) as faults:
        run_workers(train, 2, run, tmp_path / "ledger")
    assert sum(faults.injected.values()) > 5
    assert losses_of(tmp_path / "ledger") == losses_of(undisturbed[1])


def train_without_memory(rank: int, run: TrainRun, ledger: Path) -> str:
    trainer = LedgerTrainer(run, ledger)

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB")

    trainer.engine.module.register_forward_hook(refuse)
    try:
        trainer.train()
    except DeviceMemoryError as error:
        return str(error)
    return ""


@pytest.mark.faults
def test_a_step_that_does_not_fit_into_a_gpu_says_what_to_change(
    undisturbed: tuple[TrainRun, Path], tmp_path: Path
) -> None:
    run = replace(undisturbed[0], work_url=str(tmp_path / "work"))
    message = run_workers(train_without_memory, 1, run, tmp_path / "ledger")[0]
    assert "out of GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB): set training.activation" in message


def test_a_worker_that_was_killed_to_spare_its_machine_says_what_to_change() -> None:
    error = RuntimeError("worker 0: The actor is dead because its node was running low on memory")
    assert _reason(error).startswith("a worker's machine ran out of memory; set training.activation_checkpointing")
    assert _reason(RuntimeError("first\nlast line\n")) == "last line"
