"""The engine on a GPU: every stage and offload against plain PyTorch, resuming, and memory as predicted."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import distributed as dist

from data_io.batch import TARGET_ITEM_INDEX, Batch, padding_batch
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import TrainEngine, prepare
from model.loss_config import FullSoftmax, SampledSoftmax
from model.memory import NetworkSize, largest_batch, pass_bytes, peak_of_tensors, stored_bytes
from model.objectives import ItemLoss, NextItemObjective
from model.resuming import resume
from model.training_config import OptimizerSettings, TrainingSettings
from tests.model.test_zero import MICRO, NUM_STEPS, OPTIMIZER, make_objective, plain_losses, run_steps
from tests.processes import free_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WAYS = [(0, "none"), (1, "none"), (2, "none"), (3, "none")]
WAYS += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module", autouse=True)
def one_worker() -> Iterator[None]:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
    with patch.dict(os.environ, places | {"LOCAL_RANK": "0"}), patch("tests.model.test_zero.WORLD_SIZE", 1):
        dist.init_process_group("nccl", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def make_engine(stage: int, offload: Any) -> TrainEngine:
    training = TrainingSettings(
        global_batch_size=MICRO, micro_batch_size=MICRO, zero_stage=stage, offload=offload, precision="float32"
    )
    return TrainEngine(make_objective(), training, OPTIMIZER, GPU)


@pytest.mark.parametrize(("stage", "offload"), WAYS)
def test_a_stage_with_its_offload_gives_the_losses_of_plain_pytorch_and_resumes(
    stage: int, offload: str, tmp_path: Path
) -> None:
    engine = make_engine(stage, offload)
    losses = run_steps(engine, range(NUM_STEPS // 2))
    writer = CheckpointWriter(str(tmp_path), RunIdentity(fingerprint="a", settings={}), keep=1)
    writer.save(engine, TrainPosition(step=NUM_STEPS // 2), {})
    writer.wait()
    losses += run_steps(engine, range(NUM_STEPS // 2, NUM_STEPS))
    np.testing.assert_allclose(losses, plain_losses(), atol=2e-3, rtol=0)
    other = make_engine(1, "none")
    resume(other, str(tmp_path), RunIdentity(fingerprint="a", settings={}))
    np.testing.assert_allclose(run_steps(other, range(NUM_STEPS // 2, NUM_STEPS)), losses[NUM_STEPS // 2 :], atol=1e-3)


ITEMS, LENGTH, LARGE_MICRO = 50_000, 200, 128
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "mean of weights": {"zero_stage": 1, "average_decay": 0.9},
    "float32": {"zero_stage": 1, "precision": "float32"},
    "activations computed again": {"zero_stage": 1, "activation_checkpointing": True},
    "offload": {"zero_stage": 2, "offload": "optimizer"},
    "full softmax": {"zero_stage": 1, "softmax": FullSoftmax()},
    "rows": {"zero_stage": 1, "shard_items_from": 1_000},
}


def make_large_batch(num_examples: int) -> Batch:
    empty = padding_batch(1) | {TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}
    return largest_batch(empty, num_examples, LENGTH, ITEMS, 4)


@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_is_within_15_percent_of_measured(case: str) -> None:
    options = dict(CASES[case])
    softmax = options.pop("softmax", SampledSoftmax())
    optimizer = OptimizerSettings(average_decay=options.pop("average_decay", 0.0))
    settings = TrainingSettings(global_batch_size=LARGE_MICRO, micro_batch_size=LARGE_MICRO, **options)
    shape = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "sequence_length": LENGTH}

    def build() -> NextItemObjective:
        encoder = ClickformerEncoder(ClickformerConfig(vocabulary_size=ITEMS, num_actions=4, **shape))
        return NextItemObjective(encoder, ItemLoss(softmax, torch.ones(ITEMS)))

    before = torch.cuda.memory_allocated(GPU)
    probed = build()
    numbers = NetworkSize.of(probed, probed.encoder, settings.shard_items_from)
    prepare(probed, settings, GPU)
    probed.to(GPU)
    in_portions = isinstance(softmax, FullSoftmax)
    with torch.autocast("cuda", torch.bfloat16, enabled=settings.precision == "auto"):
        needed = pass_bytes(probed, make_large_batch, LARGE_MICRO, GPU, keeps_gradients=False, in_portions=in_portions)
    predicted = sum(stored_bytes(numbers, settings, optimizer, 1).values()) + needed
    del probed
    with peak_of_tensors(GPU) as peak:
        plain = build().encoder.to(GPU)
        engine = TrainEngine(build(), settings, optimizer, GPU)
        for step in range(2):
            engine.step([make_large_batch(LARGE_MICRO)], LARGE_MICRO * LENGTH, step, step, 2)
        measured = peak() - before
    del plain, engine
    print(f"{case}: predicted {predicted / 1e6:,.0f} MB, measured {measured / 1e6:,.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.15)
