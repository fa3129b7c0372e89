"""The engine's pure parts: schedule, groups, accumulation, precision."""

from collections.abc import Callable

import pytest
import torch

from model.engine import accumulation_steps, deepspeed_config, learning_rate_at, parameter_groups, uses_bfloat16
from model.training_config import OptimizerSettings, TrainingSettings

CPU = torch.device("cpu")


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate_at(settings, step, 20) for step in range(25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[4:20] == sorted(rates[4:20], reverse=True)
    assert rates[20:] == pytest.approx([0.01] * 5)


def test_matrices_decay_and_tables_norms_and_biases_do_not(make_encoder: Callable) -> None:
    encoder = make_encoder()
    decayed, others = parameter_groups(encoder, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert {"item_table.weight", "readout.output_norm.weight", "repeat_choice.gate.bias"} <= kept
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_frozen_parameters_are_in_no_group(make_encoder: Callable) -> None:
    encoder = make_encoder().requires_grad_(False)
    assert parameter_groups(encoder, 0.1) == []


def test_the_global_batch_is_divided_among_workers_and_passes() -> None:
    training = TrainingSettings(global_batch_size=64, micro_batch_size=8)
    assert [accumulation_steps(training, workers) for workers in (1, 2, 4)] == [8, 4, 2]
    assert accumulation_steps(training, 3) == 3, "the last of two workers is padding"


def test_precision_asks_the_device_and_the_cpu_computes_in_float32() -> None:
    assert not uses_bfloat16("auto", CPU)
    assert uses_bfloat16("bfloat16", CPU)
    config = deepspeed_config(TrainingSettings(), 2, CPU, 999)
    assert "torch_autocast" not in config
    bfloat16 = deepspeed_config(TrainingSettings(precision="bfloat16"), 2, CPU, 999)
    assert bfloat16["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
