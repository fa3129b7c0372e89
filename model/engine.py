"""The engine: the only place that knows DeepSpeed.

Steps an objective under ZeRO 0 to 3 with AdamW, the same path on CPU (gloo) and GPU (nccl). Invariant: an optimizer
step sees the gradient of the mean loss over the targets of the whole global batch, whatever the number of workers, the
micro-batch size or the ZeRO stage; and all ranks take it or none does.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers.pytorch_utils import Conv1D

from data_io.batch import Batch
from model.averaging import WeightAverage
from model.embedding import ItemTable
from model.encoder import ClickformerEncoder, TensorBatch
from model.guarded_adamw import GradientGuard, GuardedAdamW
from model.held_state import MEAN, Part, held_means, held_parts, held_rows, publish_weights, set_num_steps
from model.row_shard import RowShard
from model.training_config import OptimizerSettings, TrainingSettings

_MIN_RATE_SHARE = 0.01
REDUCED_AT_ONCE = 50_000_000
"""Numbers in DeepSpeed's buffers for the exchange of gradients; by its own default they would take 2 GB each."""


def to_tensors(batch: Batch, device: torch.device) -> TensorBatch:
    """A batch as tensors on a device."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}


def learning_rate_at(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine decay to a hundredth at num_steps."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.learning_rate * (_MIN_RATE_SHARE + (1 - _MIN_RATE_SHARE) * cosine)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices of linear layers decay; tables, norms and biases do not."""
    linear = [child for child in module.modules() if isinstance(child, nn.Linear | Conv1D)]
    decayed = {id(child.weight) for child in linear if child.weight.requires_grad}
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in learning if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16; the device is asked, not DeepSpeed, which says yes on every CPU."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def num_micro_batches(training: TrainingSettings) -> int:
    """Micro-batches of a global batch, over all workers."""
    return -(-training.global_batch_size // training.micro_batch_size)


def accumulation_steps(training: TrainingSettings, world_size: int) -> int:
    """Micro-batches of one worker in an optimizer step; where they do not go round, some workers get padding."""
    return -(-num_micro_batches(training) // world_size)


def deepspeed_config(
    training: TrainingSettings, world_size: int, device: torch.device, num_learning: int
) -> dict[str, Any]:
    """DeepSpeed's own configuration for our settings; it clips nothing, since `GuardedAdamW` does.

    Args:
        training: settings.
        world_size: number of workers.
        device: of this worker.
        num_learning: numbers in parameters that learn.
    """
    at_once = 2 * -(-min(max(num_learning, 2), REDUCED_AT_ONCE) // 2)  # even, as DeepSpeed wants it
    zero: dict[str, Any] = {"stage": training.zero_stage}
    zero |= {"reduce_bucket_size": at_once, "allgather_bucket_size": at_once}
    if training.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if training.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(training, world_size),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        "steps_per_print": 1_000_000_000,
    }
    if uses_bfloat16(training.precision, device):
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step."""

    loss: float
    """Mean over the targets of the global batch."""
    gradient_norm: float
    """Before clipping."""
    skipped: bool
    """Whether the weights were left as they were, on all ranks: the loss or the norm was not finite or a spike."""
    beside: tuple[float, ...] = ()
    """Sums over ranks of what each gave to `TrainEngine.step`."""


class TrainEngine:
    """An objective under DeepSpeed; torch.distributed must be initialised."""

    def __init__(
        self, objective: nn.Module, training: TrainingSettings, optimizer: OptimizerSettings, device: torch.device
    ) -> None:
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._settings = optimizer
        self._accumulation = accumulation_steps(training, self.world_size)
        self._zero_stage = training.zero_stage
        self._guard = GradientGuard(optimizer.max_gradient_norm, optimizer.spike_factor)
        self._shards = prepare(objective, training, device)
        self._engine, adamw = _initialize(objective, training, optimizer, self.world_size, device)
        adamw.scale = self._scale
        rows = [shard.rows for shard in self._shards.values()]
        self._average = WeightAverage(self._engine.module, optimizer.average_decay, rows)
        self._num_steps = 0
        self._loss = self._norm = self._of_rows = 0.0
        self._factor: float | None = None

    @property
    def module(self) -> nn.Module:
        """The objective itself."""
        return self._engine.module

    def step(
        self,
        micro_batches: Iterable[Batch],
        weight: int,
        seed: int,
        step: int,
        num_steps: int,
        beside: Sequence[float] = (),
    ) -> StepResult:
        """One optimizer step.

        Args:
            micro_batches: exactly as many as gradients are accumulated, some perhaps only padding; of all of the step,
                every world_size-th from this rank's on.
            weight: number of targets in this rank's micro-batches together.
            seed: of the step. Dropout and negatives of a micro-batch are fixed by seed and its number in the step, so
                that they are the same on any number of workers.
            step, num_steps: place in the learning-rate schedule.
            beside: numbers that are summed over ranks beside the loss.
        """
        total_weight = max(1.0, self.sum_over_ranks(float(weight)))
        self._set_learning_rate(learning_rate_at(self._settings, step, num_steps))
        self._engine.train()
        total, sums = torch.zeros((), dtype=torch.float64, device=self.device), [0.0]
        for index, batch in enumerate(micro_batches):
            drawn_by = seed + index * self.world_size + self.rank
            _seed(drawn_by, self.device)
            loss = self._engine(to_tensors(batch, self.device), seed=drawn_by)
            total += loss.detach()
            self._engine.backward(loss * (self.world_size * self._accumulation / total_weight))
            if index == self._accumulation - 1:
                sums = self._sums(torch.cat([total[None], total.new_tensor(beside)])).tolist()
                self._loss = sums[0] / total_weight
                self._factor, self._norm = None, float("nan")
                self._of_rows = self._square_sum_of_rows()
            self._engine.step()
        taken = self._factor is not None
        self._step_shards(step, num_steps)
        if taken:
            self._num_steps += 1
            self._average.update(step)
        return StepResult(self._loss, self._norm, skipped=not taken, beside=tuple(sums[1:]))

    def parts(self) -> list[Part]:
        """What this rank holds of the training state, to be written to a checkpoint or from one."""
        parts = held_parts(self._engine, self._zero_stage, self.rank)
        parts += held_means(self._average.held_means(), self._zero_stage, self.rank)
        for name, shard in self._shards.items():
            parts += held_rows(name, shard)
        for name, shard, mean in zip(self._shards, self._shards.values(), self._average.means_beside(), strict=False):
            parts.append(Part(name, MEAN, shard.first * shard.width, mean.view(-1)))
        return parts

    def counters(self) -> dict[str, Any]:
        """The few numbers of the training state that all ranks share."""
        return {"num_steps": self._num_steps, "guard": self._guard.state()}

    def take_over(self, counters: dict[str, Any]) -> None:
        """Go on from what was written to `parts`, with the `counters` of the same moment; all ranks call it."""
        publish_weights(self._engine, self._zero_stage)
        set_num_steps(self._engine, self._zero_stage, counters["num_steps"])
        self._num_steps = counters["num_steps"]
        self._guard.load(counters["guard"])

    @contextmanager
    def gathered_parameters(self) -> Iterator[None]:
        """A context in which every parameter is whole on every rank and its mean, for validation and export."""
        import deepspeed

        parameters, enabled = list(self.module.parameters()), self._zero_stage == 3
        with (
            self._average.in_place(),
            deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=enabled),
        ):
            yield

    def sum_over_ranks(self, value: float | Tensor) -> float:
        """The sum of what each rank gives; all ranks call it."""
        return float(self._sums(torch.as_tensor(value, dtype=torch.float64, device=self.device).clone()))

    def _sums(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def _square_sum_of_rows(self) -> float:
        """Of the gradients of all ranks' rows of sharded tables."""
        sums = [shard.gradient_square_sum() for shard in self._shards.values()]
        return self.sum_over_ranks(torch.stack(sums).sum()) if sums else 0.0

    def _scale(self) -> float | None:
        """Factor of this step's gradients, which DeepSpeed has summed up by now; None where it is not taken.

        Asked once for each part of the parameters, and decided once. Under ZeRO 1 to 3 DeepSpeed does not even ask
        where the norm is not finite.
        """
        if math.isnan(self._norm):
            self._norm = self._gradient_norm()
            self._factor = self._guard.scale_of(self._norm) if math.isfinite(self._loss) else None
        return self._factor

    def _gradient_norm(self) -> float:
        if self._zero_stage:
            norm = float(self._engine.optimizer._global_grad_norm)
        else:
            norm = float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        return math.sqrt(norm**2 + self._of_rows)

    def _step_shards(self, step: int, num_steps: int) -> None:
        """Move the rows of sharded tables by the decision on the whole step."""
        for shard in self._shards.values():
            if self._factor is None:
                shard.discard()
            else:
                rate = learning_rate_at(self._settings, step, num_steps)
                shard.step(rate, self._factor, self._num_steps + 1)

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate


def _seed(seed: int, device: torch.device) -> None:
    """As torch.manual_seed, which for ever notes a call stack for each kind of device that is not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def prepare(objective: nn.Module, training: TrainingSettings, device: torch.device) -> dict[str, RowShard]:
    """What is done to an objective before DeepSpeed gets it; the shards of its tables. All ranks call it."""
    if training.activation_checkpointing:
        for encoder in (module for module in objective.modules() if isinstance(module, ClickformerEncoder)):
            encoder.recompute_blocks()
    return shard_item_tables(objective, training.shard_items_from, device)


def shard_item_tables(objective: nn.Module, shard_from: int, device: torch.device) -> dict[str, RowShard]:
    """Shards of the tables of at least so many items, by the names that their weights had; all ranks call it."""
    tables = [(name, module) for name, module in objective.named_modules() if isinstance(module, ItemTable)]
    return {f"{name}.rows": table.shard_rows(device) for name, table in tables if is_sharded(table, shard_from)}


def is_sharded(table: ItemTable, shard_from: int) -> bool:
    """Whether a table is to be sharded by rows."""
    return table.num_items >= max(4, shard_from)


@torch.no_grad()
def copy_weights(model: nn.Module, target: nn.Module) -> None:
    """Bring the state of a model, whose tables may be sharded, into one of the same form; all ranks call it."""
    state = model.state_dict()
    for name, table in model.named_modules():
        if isinstance(table, ItemTable) and table.shard is not None:
            del state[f"{name}.unknown"]
            state[f"{name}.weight"] = target.get_parameter(f"{name}.weight").data
            table.copy_to(state[f"{name}.weight"])
    target.load_state_dict(state)


def _initialize(
    objective: nn.Module,
    training: TrainingSettings,
    optimizer: OptimizerSettings,
    world_size: int,
    device: torch.device,
) -> tuple[Any, GuardedAdamW]:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if device.type == "cpu":
        # Building this operator takes two minutes and a C++ compiler, and gloo does without it.
        __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    objective.to(device)
    groups = parameter_groups(objective, optimizer.weight_decay)
    num_learning = sum(parameter.numel() for group in groups for parameter in group["params"])
    adamw = GuardedAdamW(groups, lr=optimizer.learning_rate, fused=True)
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=adamw,
        config=deepspeed_config(training, world_size, device, num_learning),
        dist_init_required=False,
    )
    return engine, adamw


def weight_of(targets: Tensor | np.ndarray) -> int:
    """Number of positions that have a target."""
    return int((targets > 0).sum())
