"""A dry run of a training on its workers: the largest step and a few real ones, measured, and a checkpoint.

Nothing that it trains is kept. Invariant: it runs the very loop's own parts, so that what it measures is what training
will take.
"""

import gc
import time
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import distributed as dist

from data_io import storage
from data_io.batch import Batch
from model.checkpoint_form import TrainPosition
from model.engine import accumulation_steps, prepare
from model.flops import peak_flops
from model.loss_config import FullSoftmax
from model.memory import NetworkSize, largest_batch, pass_bytes, peak_of_tensors, resident_peak
from model.objectives import ItemObjective
from ray_jobs.recorder import size_of
from ray_jobs.train_loop import Trainer, TrainRun
from ray_jobs.watch import Watch

RESULT = "dry_run.json"
_REAL_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run found; memory is of the worker that took most."""

    size: NetworkSize
    """Of the network."""
    loss: str
    """Kind of the loss over items; empty where items are not learned."""
    num_workers: int
    """That took part."""
    pass_bytes: int
    """Predicted from small passes: what the largest micro-batch needs beside what is stored."""
    peak_bytes: int
    """Measured in steps of the largest micro-batches, on the device."""
    resident_bytes: int
    """Measured: what a worker's process took of its host's memory, libraries included."""
    device_bytes: int
    """Memory of the device; 0: a CPU."""
    largest_step_s: float
    """Seconds of a step of the largest micro-batches."""
    step_s: float
    """Seconds of a step as they come in the epoch, waiting for input included."""
    step_tokens: float
    """Real events of such a step."""
    save_s: float
    """Seconds that training stands still for a checkpoint."""
    write_s: float
    """Seconds until it is written, behind training."""

    @classmethod
    def read(cls, work_url: str) -> "DryRun":
        """What `dry_loop` left there."""
        content: dict[str, Any] = storage.read_json(storage.join(work_url, RESULT))
        size = NetworkSize(**content.pop("size"))
        return cls(size=size, **content)


def dry_loop(run: TrainRun, device: torch.device, watch: Watch) -> None:
    """What each worker runs; the first leaves a `DryRun` below the run's work folder."""
    with watch:
        peak_flops(device)  # measured once, with matrices that do not belong to training
        probed = _probe(run, device)
        with peak_of_tensors(device) as peak:
            trainer = Trainer(run, device, watch)
            for _ in range(2):  # Adam's moments are there from the second on
                _largest_step(trainer)
        try:
            took: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(took, (peak(), resident_peak()))
            measured: dict[str, Any] = {"largest_step_s": _largest_step(trainer)}
            measured |= _real_steps(trainer) | _checkpoint(trainer)
        finally:
            trainer.checkpoints.close()
            trainer.recorder.close()
        on_gpu = device.type == "cuda"
        found = DryRun(
            **probed | measured,
            num_workers=dist.get_world_size(),
            peak_bytes=max(tensors for tensors, _ in took),
            resident_bytes=max(resident for _, resident in took),
            device_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        )
        if dist.get_rank() == 0:
            storage.write_json(storage.join(run.work_url, RESULT), asdict(found))
        dist.barrier()


def _probe(run: TrainRun, device: torch.device) -> dict[str, Any]:
    """Sizes, and small passes, of a network of its own."""
    torch.manual_seed(run.seed)
    objective = run.learning.build(run.index)
    size = NetworkSize.of(objective, run.learning.model_of(objective), run.training.shard_items_from)
    shards = prepare(objective, run.training, device)
    objective.to(device)
    loss = objective.item_loss.softmax.kind if isinstance(objective, ItemObjective) else ""
    needed = pass_bytes(
        objective,
        lambda number: _largest(run, number),
        run.training.micro_batch_size,
        device,
        keeps_gradients=accumulation_steps(run.training, dist.get_world_size()) > 1,
        in_portions=loss == FullSoftmax().kind,
    )
    del objective, shards
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {"size": size, "pass_bytes": needed, "loss": loss}


def _largest(run: TrainRun, num_examples: int) -> Batch:
    shape = run.learning.encoder_config
    return largest_batch(
        run.learning.empty_batch(),
        num_examples,
        shape["sequence_length"],
        shape["vocabulary_size"],
        shape["num_actions"],
    )


def _largest_step(trainer: Trainer) -> float:
    """Seconds of a step of the largest micro-batches."""
    run = trainer.run
    batch = _largest(run, run.training.micro_batch_size)
    batches = [batch] * accumulation_steps(run.training, dist.get_world_size())
    weight = run.learning.num_targets(batch) * len(batches)
    began = time.perf_counter()
    trainer.engine.step(batches, weight, 0, 0, 1)
    return time.perf_counter() - began


def _real_steps(trainer: Trainer) -> dict[str, Any]:
    """Mean seconds and events of the first steps of the epoch, but for the very first where there are more."""
    run, order = trainer.run, trainer.order(0)
    seconds, tokens = [], []
    began = time.perf_counter()
    for number, loaded in enumerate(islice(trainer.loader.steps(order, trainer.place, 0), _REAL_STEPS)):
        size = size_of(loaded.batches, sum(run.learning.num_targets(batch) for batch in loaded.batches))
        result = trainer.engine.step(
            loaded.batches, int(size.num_targets), number, number, order.num_steps, (size.num_tokens,)
        )
        seconds.append(time.perf_counter() - began)
        tokens.append(result.beside[0])
        began = time.perf_counter()
    seconds, tokens = seconds[1:] or seconds, tokens[1:] or tokens
    return {"step_s": sum(seconds) / len(seconds), "step_tokens": sum(tokens) / len(tokens)}


def _checkpoint(trainer: Trainer) -> dict[str, Any]:
    began = time.perf_counter()
    trainer.checkpoints.save(trainer.engine, TrainPosition(), {})
    saved = time.perf_counter()
    trainer.checkpoints.wait()
    dist.barrier()
    return {"save_s": saved - began, "write_s": time.perf_counter() - saved}
