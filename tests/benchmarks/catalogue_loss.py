"""Every loss over items, forward and backward, at 10 thousand, 100 thousand and a million items: time and peak memory.

512 positions of width 64, float32. Each case is a process of its own; its memory is the peak resident set over what
stood before, less the dense gradient of the table, which every loss leaves behind. `torch` is F.cross_entropy over all
scores. The full softmax is also held against it in value and gradient.
Usage: python -m tests.benchmarks.catalogue_loss [--quick]
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from data_io.schema import FIRST_INDEX
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.loss_config import BinaryLoss, FullSoftmax, SampledSoftmax
from model.objectives import ItemLoss
from tests.benchmarks.harness import finish, is_quick

_POSITIONS, _WIDTH = 512, 64
_LOSSES = {
    "full": FullSoftmax(),
    "sampled": SampledSoftmax(),
    "gbce": BinaryLoss(),
    "bce": BinaryLoss(calibration=0.0),
}
_MEMORY_BAR_MB, _ERROR_BAR = 300.0, 1e-5

Loss = Callable[[Tensor], Tensor]


def main() -> None:
    if "--case" in sys.argv:
        kind, num_items = sys.argv[sys.argv.index("--case") + 1 :][:2]
        print(json.dumps(measure(kind, int(num_items))))
        return
    sizes = (10_000, 100_000) if is_quick() else (10_000, 100_000, 1_000_000)
    print(f"{'loss':<8} {'items':>10} {'median s':>9} {'MB':>8}")
    found = {}
    for num_items in sizes:
        for kind in ("torch", *_LOSSES):
            case = run_case(kind, num_items)
            found[kind, num_items] = case
            print(f"{kind:<8} {num_items:>10,} {case['seconds']:>9.3f} {case['megabytes']:>8,.0f}", flush=True)
    error = largest_error(10_000)
    print(f"full against torch: largest difference of losses and of gradients {error:.1e}, relative to the largest")
    most = sizes[-1]
    full, plain = found["full", most], found["torch", most]
    figures = {
        "full_mb": full["megabytes"],
        "torch_mb": plain["megabytes"],
        "speed": plain["seconds"] / full["seconds"],
        "error": error,
    }
    finish("catalogue_loss", figures, _MEMORY_BAR_MB, ok=full["megabytes"] < _MEMORY_BAR_MB and error < _ERROR_BAR)


def run_case(kind: str, num_items: int) -> dict[str, float]:
    """Seconds and megabytes of one loss, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.catalogue_loss", "--case", kind, str(num_items)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: str, num_items: int) -> dict[str, float]:
    """Seconds of a forward and backward pass, and what it holds beside table, states and the table's gradient."""
    encoder, states, targets = make_case(num_items)
    loss = make_loss(kind, encoder, targets)
    weight = encoder.item_table.weight
    before = _peak_mb()
    seconds = []
    for _ in range(2 if num_items > 100_000 else 6):
        weight.grad = states.grad = None
        began = time.perf_counter()
        loss(states).sum().backward()
        seconds.append(time.perf_counter() - began)
    table = weight.numel() * weight.element_size() / 1e6
    return {"seconds": statistics.median(seconds[1:]), "megabytes": _peak_mb() - before - table}


def make_case(num_items: int) -> tuple[ClickformerEncoder, Tensor, Tensor]:
    """An encoder whose table has so many items, states and targets."""
    torch.manual_seed(0)
    size = num_items + FIRST_INDEX
    config = ClickformerConfig(vocabulary_size=size, hidden_size=_WIDTH, num_layers=1, repeats=False)
    encoder = ClickformerEncoder(config)
    states = torch.randn(_POSITIONS, _WIDTH, requires_grad=True)
    return encoder, states, torch.randint(FIRST_INDEX, size, (_POSITIONS,))


def make_loss(kind: str, encoder: ClickformerEncoder, targets: Tensor) -> Loss:
    """Losses [P] of states [P, D]."""
    if kind == "torch":
        return lambda states: F.cross_entropy(encoder.item_table(states=states), targets, reduction="none")
    counts = torch.ones(encoder.config.vocabulary_size)
    item_loss = ItemLoss(_LOSSES[kind], counts)
    return lambda states: item_loss(encoder, states, targets, seed=0)


def largest_error(num_items: int) -> float:
    """Largest difference of the full softmax from torch, in losses and both gradients, over their largest value."""
    encoder, states, targets = make_case(num_items)
    found = []
    for kind in ("torch", "full"):
        encoder.item_table.weight.grad = states.grad = None
        losses = make_loss(kind, encoder, targets)(states)
        losses.sum().backward()
        assert states.grad is not None
        assert encoder.item_table.weight.grad is not None
        found.append([losses.detach(), states.grad.clone(), encoder.item_table.weight.grad.clone()])
    pairs = zip(*found, strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for theirs, ours in pairs)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
