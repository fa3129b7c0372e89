"""How much arithmetic training takes, and how much a device could do.

Counted are products of matrices that a perfect implementation needs, two operations for each multiplication and
addition, and the backward pass as two forward ones; nothing that is computed again counts. Invariant: a count depends
on the real events and targets of a batch, never on its padding.

Source:
    Chowdhery et al. 2022, "PaLM", appendix B, on the share of peak operations (model FLOPs utilisation).
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from data_io.schema import FIRST_INDEX
from model.encoder import ClickformerEncoder

_FORWARD_AND_BACKWARD = 3
_PEAK_OF_GPUS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense products in bfloat16 (V100 and T4: float16) a second, by part of the name, as their makers state them."""
_MEASURED_SIZE = 1024
_MEASURED_TIMES = 5


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step consists of, over all workers."""

    num_tokens: float
    """Real events."""
    num_positions: float
    """Events with padding."""
    sum_of_squares: float
    """Of the lengths of windows."""
    num_targets: float
    """What is predicted."""


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What a network costs to train, by parts of a step."""

    per_token: float
    """Operations of layers on one event."""
    per_pair: float
    """Operations of attention on one pair of events of a window."""
    per_target: float
    """Operations of holding one state against items."""

    @classmethod
    def of(cls, encoder: ClickformerEncoder, num_scored: int | None) -> "TrainingCost":
        """The cost of a whole encoder.

        Args:
            encoder: not sharded.
            num_scored: items that each target is held against; None: the catalogue.
        """
        config = encoder.config
        layers = [encoder.blocks, encoder.readout] if encoder.backbone is None else [encoder.backbone, encoder.readout]
        weights = sum(_product_weights(module) for part in layers for module in part.modules())
        pairs = 0.0 if config.block == "gru" else 4.0 * config.hidden_size * config.num_layers
        if config.attention == "causal":
            pairs /= 2
        scored = config.vocabulary_size - FIRST_INDEX if num_scored is None else num_scored
        return cls(
            per_token=_FORWARD_AND_BACKWARD * 2.0 * weights,
            per_pair=_FORWARD_AND_BACKWARD * pairs,
            per_target=_FORWARD_AND_BACKWARD * 2.0 * scored * config.hidden_size,
        )

    def of_step(self, size: StepSize) -> float:
        """Operations of a step."""
        return (
            self.per_token * size.num_tokens + self.per_pair * size.sum_of_squares + self.per_target * size.num_targets
        )


def peak_flops(device: torch.device) -> float:
    """Operations a second that products of matrices could have on a device.

    Of known GPUs as their makers state it; of others and of CPUs, with as many threads as torch has, as measured now in
    float32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in _PEAK_OF_GPUS.items() if part in name), None)
        if known is not None:
            return known
    return _measured_peak(device)


def _product_weights(module: nn.Module) -> int:
    """Weights of a module's own products of matrices; a convolution over events counts as one."""
    if isinstance(module, nn.Linear | Conv1D):
        return module.weight.numel()
    if isinstance(module, nn.GRU):
        return sum(weight.numel() for name, weight in module.named_parameters(recurse=False) if "weight" in name)
    return 0


@cache
def _measured_peak(device: torch.device) -> float:
    left = torch.randn(_MEASURED_SIZE, _MEASURED_SIZE, device=device)
    best = float("inf")
    for _ in range(_MEASURED_TIMES):
        began = time.perf_counter()
        (left @ left).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2 * _MEASURED_SIZE**3 / best
