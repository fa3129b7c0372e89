"""The engine: the only place that knows DeepSpeed.

Steps an objective under ZeRO 0 to 3 with AdamW, the same path on CPU (gloo) and GPU (nccl). Invariant: an optimizer
step sees the gradient of the mean loss over the targets of the whole global batch, whatever the number of workers, the
micro-batch size or the ZeRO stage.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers.pytorch_utils import Conv1D

from data_io.batch import Batch
from data_io.config import SettingsError
from model.averaging import WeightAverage
from model.config import OptimizerSettings, TrainingSettings
from model.encoder import TensorBatch

_MIN_RATE_SHARE = 0.01
_MEANS = "means"
"""Key of the mean weights in a checkpoint."""


class NonFiniteLossError(Exception):
    """The loss became not-a-number or infinite; the message says at which step."""


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


def accumulation_steps(settings: TrainingSettings, world_size: int) -> int:
    """Micro-batches of one worker in an optimizer step.

    Raises:
        SettingsError: the global batch does not divide evenly.
    """
    per_pass = settings.micro_batch_size * world_size
    if settings.global_batch_size % per_pass:
        raise SettingsError(
            f"global_batch_size {settings.global_batch_size} must be a multiple of micro_batch_size "
            f"{settings.micro_batch_size} times {world_size} workers"
        )
    return settings.global_batch_size // per_pass


def deepspeed_config(
    training: TrainingSettings, optimizer: OptimizerSettings, world_size: int, device: torch.device
) -> dict[str, Any]:
    """DeepSpeed's own configuration for our settings."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(training, world_size),
        "gradient_clipping": optimizer.max_gradient_norm,
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    if uses_bfloat16(training.precision, device):
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step: mean loss over the global batch and the gradient norm before clipping."""

    loss: float
    gradient_norm: float


class TrainEngine:
    """An objective under DeepSpeed; torch.distributed must be initialised."""

    def __init__(
        self, objective: nn.Module, training: TrainingSettings, optimizer: OptimizerSettings, device: torch.device
    ) -> None:
        self.device = device
        self.world_size = dist.get_world_size()
        self._settings = optimizer
        self._accumulation = accumulation_steps(training, self.world_size)
        self._zero_stage = training.zero_stage
        self._engine = _initialize(objective, training, optimizer, self.world_size, device)
        self._average = WeightAverage(self._engine.module, optimizer.average_decay)

    @property
    def module(self) -> nn.Module:
        """The objective itself."""
        return self._engine.module

    def step(self, micro_batches: Iterable[Batch], weight: int, seed: int, step: int, num_steps: int) -> StepResult:
        """One optimizer step.

        Args:
            micro_batches: exactly as many as gradients are accumulated, some perhaps only padding.
            weight: number of targets in this rank's micro-batches together.
            seed: fixes dropout and negatives of this step, so that a resumed run draws the same.
            step, num_steps: place in the learning-rate schedule.

        Raises:
            NonFiniteLossError: the loss is not finite; the weights are as before the step.
        """
        total_weight = max(1.0, self._sum(float(weight)))
        self._set_learning_rate(learning_rate_at(self._settings, step, num_steps))
        torch.manual_seed(seed * self.world_size + dist.get_rank())
        self._engine.train()
        total = 0.0
        for index, batch in enumerate(micro_batches):
            loss = self._engine(to_tensors(batch, self.device), seed=seed + index)
            total += float(loss.detach())
            if index == self._accumulation - 1:
                self._check_finite(total / total_weight, step)
            self._engine.backward(loss * (self.world_size * self._accumulation / total_weight))
            self._engine.step()
        self._average.update(step)
        norm = self._engine.get_global_grad_norm()
        return StepResult(self._sum(total) / total_weight, float(norm) if norm is not None else float("nan"))

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer state; all ranks must call it."""
        self._engine.save_checkpoint(
            str(folder), tag="state", save_latest=False, client_state={_MEANS: self._average.state()}
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; all ranks must call it, as many as saved."""
        _, kept = self._engine.load_checkpoint(str(folder), tag="state")
        self._average.load(kept[_MEANS])

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

    def _sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def _check_finite(self, mean_loss: float, step: int) -> None:
        if self._sum(0.0 if math.isfinite(mean_loss) else 1.0):
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite; lower optimizer.learning_rate, or look for absurd input"
            )

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate


def _initialize(
    objective: nn.Module,
    training: TrainingSettings,
    optimizer: OptimizerSettings,
    world_size: int,
    device: torch.device,
) -> Any:
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
    adamw = torch.optim.AdamW(groups, lr=optimizer.learning_rate, fused=True)
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=adamw,
        config=deepspeed_config(training, optimizer, world_size, device),
        dist_init_required=False,
    )
    return engine


def weight_of(targets: Tensor | np.ndarray) -> int:
    """Number of positions that have a target."""
    return int((targets > 0).sum())
