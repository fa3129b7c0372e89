"""How much memory training takes on each worker: computed by part before it starts, and measured while it runs.

What is stored follows from sizes and settings; what a forward and backward pass needs besides is measured on passes of
few examples and drawn out in a line.
"""

import gc
import resource
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_io.batch import (
    ACTION_INDEX,
    ITEM_INDEX,
    MOMENT,
    PADDING_MASK,
    PER_EXAMPLE,
    TARGET_ITEM_INDEX,
    Batch,
)
from data_io.schema import FIRST_INDEX
from model.embedding import ItemTable
from model.engine import REDUCED_AT_ONCE, accumulation_steps, is_sharded, to_tensors
from model.training_config import OptimizerSettings, TrainingSettings


class DeviceMemoryError(Exception):
    """What is to be computed does not fit into the memory of a GPU; the message says what to change."""


_NUMBER = 4
"""Bytes of a number: weights and their state are float32."""
_PROBE_SHARE = 8
"""The larger of the passes that are measured has one in so many examples of a micro-batch."""
_MOST_EVENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """Numbers in a network, by what becomes of them."""

    learning: int
    """In parameters that learn, but for rows of sharded tables."""
    frozen: int
    """In parameters that do not, and in buffers."""
    rows: int
    """In rows of sharded item tables."""
    model: int
    """In the part that is published, all tables whole."""
    per_item: int = 0
    """Of the frozen ones, those in buffers that have a row for each item, such as how often it is drawn."""

    @classmethod
    def of(cls, objective: nn.Module, model: nn.Module, shard_from: int) -> "NetworkSize":
        """Sizes of an objective before any of its tables is sharded, and of the model in it."""
        sharded = [m.weight for m in objective.modules() if isinstance(m, ItemTable) and is_sharded(m, shard_from)]
        apart = {id(weight) for weight in sharded}
        parameters = [p for p in objective.parameters() if id(p) not in apart]
        learning = [p.numel() for p in parameters if p.requires_grad]
        frozen = [p.numel() for p in parameters if not p.requires_grad] + [b.numel() for b in objective.buffers()]
        whole = [t.numel() for t in [*model.parameters(), *model.buffers()]]
        num_items = {m.num_items for m in objective.modules() if isinstance(m, ItemTable)}
        per_item = [b.numel() for b in objective.buffers() if b.ndim and len(b) in num_items]
        return cls(
            learning=sum(learning),
            frozen=sum(frozen),
            rows=sum(weight.numel() for weight in sharded),
            model=sum(whole),
            per_item=sum(per_item),
        )

    def with_items(self, known: int, wanted: int, shard_from: int) -> "NetworkSize":
        """The same with an item table of another size, all of which learns.

        Args:
            known, wanted: numbers in the table as it is and as it shall be.
            shard_from: numbers from which on it is sharded.
        """
        others = self.learning - (0 if self.rows else known)
        is_sharded = wanted >= shard_from
        return NetworkSize(
            learning=others + (0 if is_sharded else wanted),
            frozen=self.frozen + self.per_item * wanted // known - self.per_item,
            rows=wanted if is_sharded else 0,
            model=self.model - known + wanted,
            per_item=self.per_item * wanted // known,
        )


def stored_bytes(
    size: NetworkSize, training: TrainingSettings, optimizer: OptimizerSettings, world_size: int
) -> dict[str, int]:
    """Bytes that one worker's device keeps through a step, by part; gradients of a single pass count with that.

    Args:
        size: of the network.
        training, optimizer: settings.
        world_size: number of workers W.
    """
    stage, share = training.zero_stage, -(-size.learning // world_size)
    on_device = training.offload == "none"
    keeps_gradients = accumulation_steps(training, world_size) > 1
    parts = {
        "weights": size.learning + size.frozen + (share if stage == 3 else 0),  # stage 3 gathers all in a step
        "master weights": 0 if stage == 0 else share * on_device,
        "gradients": keeps_gradients * (size.learning if stage < 2 else share * on_device),
        "optimizer state": 2 * (size.learning if stage == 0 else share * on_device),
        "mean of weights": (size.learning if stage < 3 else share) * bool(optimizer.average_decay),
        "exchange of gradients": _exchanged(stage, size.learning, share),
        "model to validate": size.model,
        "rows of items": -(-size.rows // world_size) * (4 if optimizer.average_decay else 3),
    }
    return {name: _NUMBER * numbers for name, numbers in parts.items() if numbers}


def _exchanged(stage: int, learning: int, share: int) -> int:
    """Numbers in buffers while gradients are summed up and brought to the optimizer; stage 0 has room by then."""
    buffer = min(learning, REDUCED_AT_ONCE)
    return {0: 0, 3: buffer}.get(stage, buffer + share)


def checkpoint_bytes(size: NetworkSize, optimizer: OptimizerSettings) -> int:
    """Bytes of a checkpoint, all workers together: weights, Adam's two moments, and the mean where there is one."""
    return _NUMBER * (size.learning + size.rows) * (4 if optimizer.average_decay else 3)


def largest_batch(empty: Batch, num_examples: int, length: int, vocabulary_size: int, num_actions: int) -> Batch:
    """A batch [B, T] without padding, of items and actions in turn.

    Args:
        empty: one example of the task, all padding.
        num_examples, length: B and T.
        vocabulary_size, num_actions: of the encoder.
    """
    batch: Batch = {}
    for name, array in empty.items():
        shape = (num_examples, *array.shape[1:]) if name in PER_EXAMPLE else (num_examples, length, *array.shape[2:])
        batch[name] = torch.zeros(shape, dtype=torch.from_numpy(array).dtype).numpy()
    places = torch.arange(num_examples * length).view(num_examples, length)
    items = FIRST_INDEX + places % max(1, vocabulary_size - FIRST_INDEX)
    batch[ITEM_INDEX] = items.numpy()
    batch[ACTION_INDEX] = (FIRST_INDEX + places % max(1, num_actions - FIRST_INDEX)).numpy()
    batch[MOMENT] = (places % length * 60_000_000).numpy()
    batch[PADDING_MASK] = torch.ones(num_examples, length, dtype=torch.bool).numpy()
    if TARGET_ITEM_INDEX in batch:
        batch[TARGET_ITEM_INDEX] = items.flip(1).numpy()
    return batch


def pass_bytes(
    objective: nn.Module,
    make_batch: Callable[[int], Batch],
    micro_batch_size: int,
    device: torch.device,
    *,
    keeps_gradients: bool,
    in_portions: bool,
) -> int:
    """Most bytes that a forward and backward pass needs beside what is stored, drawn out from two small passes.

    Both do the same operations in the same order, so that at each of them memory grows in a line with the examples;
    where they do not, the pass itself is made.

    Args:
        objective: on the device, not under DeepSpeed; its gradients are left behind.
        make_batch: batch of so many examples, the largest there are.
        micro_batch_size: examples that are asked for.
        device: to measure on.
        keeps_gradients: whether there are gradients of an earlier pass; if not, those of this one count.
        in_portions: whether operations come in portions, as of a large catalogue, and do not grow in a line.
    """
    large = max(2, micro_batch_size // _PROBE_SHARE)
    small = max(1, large // 2)

    def record(num_examples: int) -> list[int]:
        batch = to_tensors(make_batch(num_examples), device)
        if not keeps_gradients:
            objective.zero_grad(set_to_none=True)
        with recorded(device) as alive:
            objective.train()
            objective(batch, seed=0).backward()
        return alive

    record(small)  # gradients stay from here on, and kernels are compiled
    few, many = record(small), record(large)
    if in_portions or _differ_on_any_rank(few, many, device):
        return max(record(micro_batch_size))
    times = (micro_batch_size - small) / (large - small)
    return int(max(first + (second - first) * times for first, second in zip(few, many, strict=False)))


def _differ_on_any_rank(few: list[int], many: list[int], device: torch.device) -> bool:
    """Whether a rank has records that are not alike: a pass that exchanges rows is made by all ranks or by none."""
    differ = torch.tensor(float(not _alike(few, many)), device=device)
    if dist.is_initialized():
        dist.all_reduce(differ, op=dist.ReduceOp.MAX)
    return bool(differ)


def _alike(few: list[int], many: list[int]) -> bool:
    """Whether memory was taken and given back in the same order, as far as the shorter of two records goes."""
    changes = min(len(few), len(many)) - 1
    return all((few[i] < few[i + 1]) == (many[i] < many[i + 1]) for i in range(changes))


@contextmanager
def recorded(device: torch.device) -> Iterator[list[int]]:
    """A list that in the end has the bytes of tensors made in the block after each that is made or let go of."""
    alive: list[int] = []
    gc.collect()
    gc.disable()
    try:
        if device.type == "cuda":
            yield from _recorded_on_gpu(device, alive)
        else:
            with _Tracker(alive):
                yield alive
    finally:
        gc.enable()


def _recorded_on_gpu(device: torch.device, alive: list[int]) -> Iterator[list[int]]:
    torch.cuda.memory._record_memory_history(max_entries=_MOST_EVENTS, stacks="python", context=None)
    try:
        yield alive
        torch.cuda.synchronize(device)
        index = torch.cuda.current_device() if device.index is None else device.index
        trace: Any = torch.cuda.memory._snapshot(device).get("device_traces", [])[index]
        known: set[int] = set()
        total = 0
        for event in trace:
            if event["action"] == "alloc":
                known.add(event["addr"])
                total += event["size"]
            elif event["action"] == "free_completed" and event["addr"] in known:
                known.discard(event["addr"])
                total -= event["size"]
            else:
                continue
            alive.append(total)
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


class _Tracker(TorchDispatchMode):
    """Follows the memory of every tensor that an operation makes, until it is let go of."""

    def __init__(self, alive: list[int]) -> None:
        super().__init__()
        self._alive = alive
        self._total = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage(), given)
        return made

    def _follow(self, storage: Any, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in given:
            return
        self._seen.add(key)
        self._change(size)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._change(-size)

    def _change(self, size: int) -> None:
        if not size:
            return
        self._total += size
        self._alive.append(self._total)


@contextmanager
def peak_of_tensors(device: torch.device) -> Iterator[Callable[[], int]]:
    """A function that in the block and after it says the most bytes that tensors of the device took at once.

    On a GPU all tensors of the process, as its allocator counts them; on a CPU those made in the block.
    """
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with recorded(device) as alive:
        yield lambda: max(alive, default=0)


def resident_peak() -> int:
    """Most bytes of the host's memory that this process ever took, libraries and what the allocator holds included."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
