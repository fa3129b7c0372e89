"""What each rank holds of the training state: weights, Adam's moments and mean weights, whatever the ZeRO stage.

Every parameter is looked at as one flat row of numbers; a part is a stretch of it. So a state that some ranks wrote can
be read by any other number of them, under any stage. The only module that knows how DeepSpeed lays out its partitions.
Invariant: the parts of all ranks cover every learning parameter, and writing to a part changes the state itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.row_shard import RowShard

WEIGHT, MEAN = "weight", "mean"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one kind of a parameter's state."""

    name: str
    """Of the parameter."""
    kind: str
    """weight, exp_avg, exp_avg_sq or mean."""
    start: int
    """Place of the first number in the flat parameter."""
    numbers: Tensor
    """[N] float32, a view of what the engine uses."""
    everywhere: bool = False
    """Whether every rank holds the same stretch."""

    def share(self, rank: int, world_size: int) -> "Part":
        """What this rank writes down: all of it, or its share where all ranks hold it."""
        if not self.everywhere:
            return self
        size = -(-len(self.numbers) // world_size)
        first = min(rank * size, len(self.numbers))
        return Part(self.name, self.kind, self.start + first, self.numbers[first : first + size])


def held_parts(engine: Any, zero_stage: int, rank: int) -> list[Part]:
    """Weights and moments that this rank holds of the parameters that learn.

    Args:
        engine: of DeepSpeed.
        zero_stage: of it.
        rank: this one.
    """
    learning = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    match zero_stage:
        case 0:
            return list(_of_whole(learning, engine.optimizer))
        case 3:
            return list(_of_partitioned_parameters(learning, engine.optimizer, rank))
        case _:
            return list(_of_partitioned_optimizer(learning, engine.optimizer))


def held_means(means: list[tuple[str, nn.Parameter, Tensor]], zero_stage: int, rank: int) -> list[Part]:
    """Mean weights that this rank holds, of `model.averaging`: names, parameters and means of what is held of each."""
    if zero_stage < 3:
        return [Part(name, MEAN, 0, mean.view(-1), everywhere=True) for name, _, mean in means]
    return [_cut(name, MEAN, parameter, mean.view(-1), rank) for name, parameter, mean in means]


def held_rows(name: str, shard: RowShard) -> list[Part]:
    """Rows that this rank holds of a sharded table, and their moments."""
    start = shard.first * shard.width
    held = {WEIGHT: shard.rows.detach(), MOMENTS[0]: shard.exp_avg, MOMENTS[1]: shard.exp_avg_sq}
    return [Part(name, kind, start, numbers.view(-1)) for kind, numbers in held.items()]


def publish_weights(engine: Any, zero_stage: int) -> None:
    """Bring weights that were written to parts to where the network reads them; all ranks call it."""
    optimizer = engine.optimizer
    if zero_stage in (1, 2):
        optimizer.update_lp_params()
    if zero_stage == 3:
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        # Small parameters are also whole on every rank: let go of, they are gathered from the parts again.
        whole = [p for p in engine.module.parameters() if hasattr(p, "ds_tensor") and p.numel()]
        if whole:
            whole[0].partition(param_list=whole)


def set_num_steps(engine: Any, zero_stage: int, num_steps: int) -> None:
    """Tell Adam how many steps its moments have seen."""
    for state in _base(engine.optimizer, zero_stage).state.values():
        state["step"].fill_(num_steps)


def _base(optimizer: Any, zero_stage: int) -> torch.optim.Optimizer:
    return optimizer.optimizer if zero_stage else optimizer


def _moments(base: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """Adam's state of a tensor; that of the beginning where no step was taken yet."""
    if not base.state.get(tensor):
        base.state[tensor] = {"step": torch.zeros((), device=tensor.device)}
        base.state[tensor] |= {kind: torch.zeros_like(tensor) for kind in MOMENTS}
    return base.state[tensor]


def _of_whole(learning: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[Part]:
    for name, parameter in learning:
        moments = _moments(optimizer, parameter)
        yield Part(name, WEIGHT, 0, parameter.data.view(-1), everywhere=True)
        for kind in MOMENTS:
            yield Part(name, kind, 0, moments[kind].view(-1), everywhere=True)


def _of_partitioned_optimizer(learning: list[tuple[str, nn.Parameter]], optimizer: Any) -> Iterator[Part]:
    for name, parameter in learning:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            continue
        flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        place, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
        inside = slice(place.start, place.start + place.numel)
        moments = _moments(optimizer.optimizer, flat)
        yield Part(name, WEIGHT, start, flat.data[inside])
        for kind in MOMENTS:
            yield Part(name, kind, start, moments[kind][inside])


def _of_partitioned_parameters(learning: list[tuple[str, nn.Parameter]], optimizer: Any, rank: int) -> Iterator[Part]:
    for name, parameter in learning:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        inside = slice(offset, offset + size)
        moments = _moments(optimizer.optimizer, flat)
        yield _cut(name, WEIGHT, parameter, flat.data[inside], rank)
        for kind in MOMENTS:
            yield _cut(name, kind, parameter, moments[kind][inside], rank)


def _cut(name: str, kind: str, parameter: Any, numbers: Tensor, rank: int) -> Part:
    """A rank's partition of a parameter, without the padding behind the last."""
    start = min(rank * parameter.ds_tensor.ds_numel, parameter.ds_numel)
    return Part(name, kind, start, numbers[: parameter.ds_numel - start])
