"""What options of training cost and spare: seconds of a step and memory of one worker, on a GPU where there is one.

Each option trains the same largest micro-batches, on its own engine, in turn in one process, and writes a checkpoint to
a local disk: training stands still for `stall`, and behind it the rest is written. `time` is beside the first option.
Usage: python -m tests.benchmarks.train_options [--quick]
"""

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from data_io.batch import TARGET_ITEM_INDEX, Batch, padding_batch
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import TrainEngine
from model.loss_config import SampledSoftmax
from model.memory import largest_batch, peak_of_tensors
from model.objectives import ItemLoss, NextItemObjective
from model.training_config import OptimizerSettings, TrainingSettings
from tests.benchmarks.harness import is_quick

OPTIONS: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "activation checkpointing": {"zero_stage": 1, "activation_checkpointing": True},
    "compiled feed-forward": {"zero_stage": 1},
    "float32": {"zero_stage": 1, "precision": "float32"},
    "offload optimizer": {"zero_stage": 2, "offload": "optimizer"},
    "offload parameters": {"zero_stage": 3, "offload": "parameters"},
}
ROUNDS = 10


def main() -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    width, length, micro, items = (256, 200, 256, 200_000) if on_gpu else (64, 64, 16, 5_000)
    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl" if on_gpu else "gloo", init_method=f"file://{folder}/init", rank=0, world_size=1)
        print(
            f"{'option':<26} {'step s':>8} {'time':>6} {'events/s':>12} {'peak MB':>9} "
            f"{'ckpt MB':>8} {'stall s':>8} {'write s':>8}"
        )
        base = 0.0
        for name, training in OPTIONS.items():
            if not on_gpu and training.get("offload"):
                continue
            settings = TrainingSettings(global_batch_size=micro, micro_batch_size=micro, **training)
            is_compiled = name == "compiled feed-forward"
            found = train(lambda: build(width, length, items), settings, device, is_compiled)
            base = base or found.step_s
            print(
                f"{name:<26} {found.step_s:>8.4f} {found.step_s / base:>6.2f} {micro * length / found.step_s:>12,.0f} "
                f"{found.peak_bytes / 1e6:>9,.0f} {found.written_bytes / 1e6:>8,.0f} {found.stall_s:>8.2f} "
                f"{found.write_s:>8.2f}",
                flush=True,
            )
        dist.destroy_process_group()


def build(width: int, length: int, items: int) -> NextItemObjective:
    """A network of four blocks."""
    shape = {"hidden_size": width, "num_layers": 4, "num_heads": 4, "sequence_length": length}
    encoder = ClickformerEncoder(ClickformerConfig(vocabulary_size=items, num_actions=5, **shape))
    return NextItemObjective(encoder, ItemLoss(SampledSoftmax(), torch.ones(items)))


@dataclass(frozen=True, slots=True)
class Found:
    """What an option takes."""

    step_s: float
    peak_bytes: int
    written_bytes: int
    stall_s: float
    write_s: float


def train(
    make: Callable[[], NextItemObjective], settings: TrainingSettings, device: torch.device, compiled: bool
) -> Found:
    """Some steps, the median of their seconds, and a checkpoint."""
    rounds = 2 if is_quick() else ROUNDS
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0  # DeepSpeed keeps some of its engines
    with peak_of_tensors(device) as peak:
        objective = make()
        config = objective.encoder.config
        if compiled:
            for block in objective.encoder.blocks:
                block.feed_forward.compile(dynamic=True)
        engine = TrainEngine(objective, settings, OptimizerSettings(), device)
        batch = make_batch(settings.micro_batch_size, config)
        for step in range(3):
            engine.step([batch], batch[TARGET_ITEM_INDEX].size, step, step, rounds)
    seconds: list[float] = []
    for step in range(rounds):
        began = time.perf_counter()
        engine.step([batch], batch[TARGET_ITEM_INDEX].size, step, step, rounds)
        seconds.append(time.perf_counter() - began)
    found = Found(statistics.median(seconds), peak() - before, *save(engine))
    del engine, objective
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def save(engine: TrainEngine) -> tuple[int, float, float]:
    """Bytes of a checkpoint, seconds that training stands still for it, and seconds until it is written."""
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(folder, RunIdentity(fingerprint="", settings={}), keep=1)
        began = time.perf_counter()
        writer.save(engine, TrainPosition(), {})
        saved = time.perf_counter()
        writer.wait()
        written = time.perf_counter()
        writer.close()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return size, saved - began, written - saved


def make_batch(num_examples: int, config: ClickformerConfig) -> Batch:
    """Without padding."""
    empty = padding_batch(1) | {TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}
    return largest_batch(empty, num_examples, config.sequence_length, config.vocabulary_size, config.num_actions)


if __name__ == "__main__":
    main()
