"""Auxiliary losses, augmentation and adversarial steps under ZeRO 0 to 3 on two gloo workers, against plain PyTorch."""

import os
import socket
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from data_io.batch import TARGET_ACTION_INDEX, TARGET_ITEM_INDEX, Batch
from model.auxiliary import AuxiliaryLosses, TargetRates
from model.config import AugmentationSettings, AuxiliarySettings
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import TrainEngine, learning_rate_at, parameter_groups, to_tensors
from model.loss_config import FullSoftmax
from model.objectives import Extras, ItemLoss, ItemObjective, MaskedItemObjective, NextItemObjective
from model.training_config import TrainingSettings
from tests.model.test_zero import CPU, ITEMS, LENGTH, MICRO, OPTIMIZER, WORLD_SIZE, step_batches

NUM_STEPS, WIDTH, NUM_ACTIONS = 6, 16, 4
EVENTS = AuxiliarySettings(next_action=0.5, time_to_next=0.5, contrastive=0.5)
USERS = AuxiliarySettings(contrastive=0.5)
CHANGES = AugmentationSettings(crop=0.2, mask=0.2, reorder=0.4)


def make_objective(kind: str) -> ItemObjective:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "sequence_length": LENGTH, "dropout": 0.0}
    network = {"attention": "bidirectional"} if kind == "masked" else {"block": "gru"} if kind == "gru" else {}
    encoder = ClickformerEncoder(
        ClickformerConfig(vocabulary_size=ITEMS, num_actions=NUM_ACTIONS, **shape, **network)  # pyright: ignore[reportArgumentType]
    )
    settings = USERS if kind == "masked" else EVENTS
    auxiliary = AuxiliaryLosses(settings, WIDTH, NUM_ACTIONS, TargetRates(per_event=0.9, per_window=3.0))
    item_loss = ItemLoss(FullSoftmax(), torch.ones(ITEMS))
    if kind == "masked":
        return MaskedItemObjective(encoder, item_loss, 0.4, Extras(auxiliary=auxiliary, adversarial=1.0))
    return NextItemObjective(encoder, item_loss, Extras(auxiliary=auxiliary, augmentation=CHANGES, adversarial=1.0))


def rank_batch(step: int, rank: int) -> Batch:
    (batch,) = step_batches(step, rank, 1)
    return batch | {TARGET_ACTION_INDEX: np.where(batch["padding_mask"], 2 + batch[TARGET_ITEM_INDEX] % 2, 0)}


def plain_losses(kind: str) -> list[float]:
    """The same steps in one process without DeepSpeed, each worker's part a pass of its own."""
    objective, losses = make_objective(kind), []
    optimizer = torch.optim.AdamW(parameter_groups(objective, OPTIMIZER.weight_decay), lr=1.0)
    for step in range(NUM_STEPS):
        parts = [rank_batch(step, rank) for rank in range(WORLD_SIZE)]
        num_targets = sum(int((part[TARGET_ITEM_INDEX] > 0).sum()) for part in parts)
        loss = sum(objective(to_tensors(part, CPU), seed=step + rank) for rank, part in enumerate(parts)) / num_targets
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), OPTIMIZER.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(OPTIMIZER, step, NUM_STEPS)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def engine_losses(kind: str, stage: int) -> list[float]:
    training = TrainingSettings(global_batch_size=MICRO * WORLD_SIZE, micro_batch_size=MICRO, zero_stage=stage)  # pyright: ignore[reportArgumentType]
    engine = TrainEngine(make_objective(kind), training, OPTIMIZER, CPU)
    batches = [rank_batch(step, dist.get_rank()) for step in range(NUM_STEPS)]
    weights = [int((batch[TARGET_ITEM_INDEX] > 0).sum()) for batch in batches]
    return [engine.step([batches[i]], weights[i], i, i, NUM_STEPS).loss for i in range(NUM_STEPS)]


def work(rank: int, port: int, results: Any) -> None:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in (places | {"WORLD_SIZE": WORLD_SIZE}).items()}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    found = {("next", stage): engine_losses("next", stage) for stage in range(4)}
    found |= {(kind, 3): engine_losses(kind, 3) for kind in ("masked", "gru")}
    if rank == 0:
        results.put(found)
    dist.barrier()


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, int], list[float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(work, args=(port, results), nprocs=WORLD_SIZE, join=True, start_method="spawn")
    return results.get()


@pytest.mark.parametrize(("kind", "stage"), [*(("next", stage) for stage in range(4)), ("masked", 3), ("gru", 3)])
def test_every_stage_gives_the_losses_of_plain_pytorch(
    found: dict[tuple[str, int], list[float]], kind: str, stage: int
) -> None:
    np.testing.assert_allclose(found[kind, stage], plain_losses(kind), atol=1e-4, rtol=0)
