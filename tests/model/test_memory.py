"""Memory of training, predicted by part and from small passes, against what tensors take in real steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from data_io.batch import ITEM_INDEX, PADDING_MASK, TARGET_ITEM_INDEX, Batch, padding_batch
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import TrainEngine, prepare
from model.loss_config import FullSoftmax, SampledSoftmax
from model.memory import NetworkSize, checkpoint_bytes, largest_batch, pass_bytes, peak_of_tensors, stored_bytes
from model.objectives import ItemLoss, NextItemObjective
from model.training_config import OptimizerSettings, TrainingSettings
from tests.processes import run_workers

ITEMS, LENGTH, MICRO, WORLD_SIZE = 3_000, 32, 16, 2
CPU = torch.device("cpu")
SAMPLED = SampledSoftmax(num_uniform=64, num_in_batch=64)
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 1, mean of weights": {"zero_stage": 1, "average_decay": 0.9},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "stage 3, mean of weights": {"zero_stage": 3, "average_decay": 0.9},
    "two micro-batches": {"zero_stage": 1, "accumulation": 2},
    "full softmax": {"zero_stage": 1, "softmax": FullSoftmax()},
    "activations computed again": {"zero_stage": 1, "activation_checkpointing": True},
    "rows": {"zero_stage": 1, "shard_items_from": 1_000},
    "deep": {"zero_stage": 2, "num_layers": 6, "vocabulary_size": 100},
}


def make_batch(num_examples: int) -> Batch:
    empty = padding_batch(1) | {TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}
    return largest_batch(empty, num_examples, LENGTH, 100, 4)


def compare(
    accumulation: int = 1,
    average_decay: float = 0.0,
    softmax: Any = SAMPLED,
    num_layers: int = 2,
    vocabulary_size: int = ITEMS,
    **training: Any,
) -> tuple[int, int]:
    """Bytes as predicted and as measured."""
    size = MICRO * accumulation * dist.get_world_size()
    settings = TrainingSettings(global_batch_size=size, micro_batch_size=MICRO, **training)
    optimizer = OptimizerSettings(average_decay=average_decay)
    shape = {"hidden_size": 32, "num_layers": num_layers, "num_heads": 2, "sequence_length": LENGTH}

    def build() -> NextItemObjective:
        config = ClickformerConfig(vocabulary_size=vocabulary_size, num_actions=4, **shape)
        return NextItemObjective(ClickformerEncoder(config), ItemLoss(softmax, torch.ones(vocabulary_size)))

    probed = build()
    numbers = NetworkSize.of(probed, probed.encoder, settings.shard_items_from)
    prepare(probed, settings, CPU)
    in_portions = isinstance(softmax, FullSoftmax)
    needed = pass_bytes(probed, make_batch, MICRO, CPU, keeps_gradients=accumulation > 1, in_portions=in_portions)
    predicted = sum(stored_bytes(numbers, settings, optimizer, dist.get_world_size()).values()) + needed
    with peak_of_tensors(CPU) as peak:
        plain = build().encoder  # as the loop keeps one to validate
        engine = TrainEngine(build(), settings, optimizer, CPU)
        for step in range(2):
            engine.step([make_batch(MICRO)] * accumulation, MICRO * LENGTH * accumulation, step, step, 2)
    assert plain is not None
    return predicted, peak()


def work(rank: int) -> dict[str, tuple[int, int]]:
    return {name: compare(**case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, int]]:
    return run_workers(work, WORLD_SIZE)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_predicted_memory_is_within_15_percent_of_measured(found: dict[str, tuple[int, int]], case: str) -> None:
    predicted, measured = found[case]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_sharding_and_offload_lower_what_a_worker_stores() -> None:
    size = NetworkSize(learning=1_000_000, frozen=10, rows=0, model=1_000_000)

    def of(world_size: int = 8, **training: Any) -> int:
        return sum(stored_bytes(size, TrainingSettings(**training), OptimizerSettings(), world_size).values())

    by_stage = [of(zero_stage=stage) for stage in (0, 1)]
    assert by_stage[0] - by_stage[1] == pytest.approx(4e6 * 2 - 4e6 * 3 / 8 - 4e6 * (1 + 1 / 8), rel=0.01)
    assert of(zero_stage=1, world_size=16) < of(zero_stage=1)
    assert of(zero_stage=1, offload="optimizer") < of(zero_stage=1)


def test_a_catalogue_that_is_sharded_leaves_the_dense_part() -> None:
    size = NetworkSize(learning=1_000, frozen=0, rows=0, model=1_000)
    larger = size.with_items(800, 8_000, shard_from=5_000)
    assert (larger.learning, larger.rows, larger.model) == (200, 8_000, 8_200)
    assert size.with_items(800, 4_000, shard_from=5_000).learning == 4_200
    assert larger.with_items(8_000, 800, shard_from=5_000) == size
    assert checkpoint_bytes(size, OptimizerSettings()) == 12_000
    assert checkpoint_bytes(larger, OptimizerSettings(average_decay=0.9)) == 16 * 8_200


def test_the_largest_batch_has_no_padding_and_asks_everything() -> None:
    batch = make_batch(3)
    assert batch[PADDING_MASK].all()
    assert batch[PADDING_MASK].shape == (3, LENGTH)
    assert (batch[ITEM_INDEX] >= 2).all()
    assert (batch[TARGET_ITEM_INDEX] > 0).all()
