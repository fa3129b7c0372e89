"""Adapters of low rank (LoRA) on the products of an encoder's blocks, by the peft library.

Published alone they are a folder of a few megabytes that names its base by place and hash. Invariant: a network loaded
from base and adapters has the adapters merged into its weights, and nothing of peft left in it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_io import storage
from data_io.config import SettingsError
from data_io.snapshots import read_manifest
from model.encoder import ClickformerEncoder
from model.task_config import LowRankAdapters

ADAPTER, BASE = "adapter", "base"
"""What a manifest calls the base of adapters, and the base's place in it."""
_ADAPTERS, _REST, _CONFIG = "adapter_model.safetensors", "head.safetensors", "adapter_config.json"


def add_adapters(encoder: ClickformerEncoder, settings: LowRankAdapters) -> None:
    """Put adapters beside the products of the blocks; they, the readout and the choice of repeats alone learn.

    Source:
        Hu et al. 2022, "LoRA: low-rank adaptation of large language models", eq. 3.

    Raises:
        SettingsError: the blocks have no products that adapters fit.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second that all other jobs are spared

    names = _products(encoder)
    if not names:
        raise SettingsError("finetune.trainable lora finds no linear layers in the encoder's blocks; use top or full")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=any(isinstance(encoder.get_submodule(name), Conv1D) for name in names),
    )
    encoder.requires_grad_(False)
    inject_adapter_in_model(config, encoder)
    encoder.readout.requires_grad_(True)
    if encoder.repeat_choice is not None:
        encoder.repeat_choice.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """Whether a network has adapters that are not merged."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def merge_adapters(model: nn.Module) -> None:
    """Add adapters to the weights that they stand beside, and take them away."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module.get_base_layer())
    for part in model.modules():
        if hasattr(part, "peft_config"):
            del part.peft_config


def describe_base(url: str) -> dict[str, Any]:
    """What a manifest says of the model that adapters stand on."""
    manifest = read_manifest(url)
    return {ADAPTER: {BASE: storage.absolute(url), "fingerprint": manifest["fingerprint"], "files": manifest["files"]}}


def save_adapters(model: PreTrainedModel, local: Path) -> None:
    """Write to a folder the adapters in the form of peft, and beside them whatever else learned."""
    from peft import get_peft_model_state_dict

    encoder = _encoder_of(model)
    adapters = get_peft_model_state_dict(encoder)
    save_file({name: tensor.contiguous() for name, tensor in adapters.items()}, local / _ADAPTERS)
    save_file(_rest_of(model), local / _REST)
    config: Any = encoder.peft_config["default"]  # pyright: ignore
    (local / _CONFIG).write_text(json.dumps(config.to_dict(), default=_listed, indent=2, sort_keys=True))
    model.config.save_pretrained(local)


def load_adapters(model: PreTrainedModel, base: ClickformerEncoder, local: Path) -> None:
    """Fill a fresh model with the weights of a base, of which `save_adapters` wrote the difference; merged."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    encoder = _encoder_of(model)
    encoder.load_state_dict(base.state_dict())
    known = json.loads((local / _CONFIG).read_text())
    inject_adapter_in_model(LoraConfig(**{name: known[name] for name in _RECALLED}), encoder)
    set_peft_model_state_dict(encoder, load_file(local / _ADAPTERS))
    merge_adapters(model)
    model.load_state_dict(load_file(local / _REST), strict=False)


_RECALLED = ("r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out")


def _encoder_of(model: PreTrainedModel) -> Any:
    return model if isinstance(model, ClickformerEncoder) else model.get_submodule("encoder")


def _products(encoder: ClickformerEncoder) -> list[str]:
    """Names of the linear layers of the blocks."""
    return [
        name
        for name, module in encoder.named_modules()
        if name.startswith(("blocks.", "backbone.")) and isinstance(module, nn.Linear | Conv1D)
    ]


def _rest_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that learned and are no adapters, and what a head knows besides."""
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    state = {name: tensor for name, tensor in model.state_dict().items() if name in learned or name.startswith("head.")}
    return {name: torch.clone(tensor).contiguous() for name, tensor in state.items()}


def _listed(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
