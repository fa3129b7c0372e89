"""Backbones of the transformers library: event vectors in, states out, by a network of any of its families.

Built from a configuration, never downloaded, and fed with our event vectors, so that a family's own table of tokens
does not exist. Invariant: whatever the family, a state depends on no padding, and on later events exactly if the
encoder's attention is bidirectional; a network that breaks this is refused where it is built.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from data_io.config import SettingsError
from model.attention import seen_events
from model.config import HuggingFaceBackbone

Attention = Literal["causal", "bidirectional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneShape:
    """What the encoder asks of a backbone."""

    hidden_size: int
    """Width D of event vectors and states."""
    num_layers: int
    """Layers."""
    num_heads: int
    """Attention heads, where the family has them."""
    length: int
    """Most events it sees."""
    dropout: float
    """Share of activations dropped while training."""
    attention: Attention
    """What an event sees of the others."""


_OURS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "pad_token_id", "is_decoder")
"""Fields that settings may not name: the encoder's settings or the objective decide them."""
_REQUIRED = ("hidden_size", "num_hidden_layers")
_DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "resid_pdrop",
)
"""How families call the dropout of attention and of residual branches."""
_EMBEDDING_DROPOUTS = ("embd_pdrop", "emb_pdrop", "embedding_dropout")
"""Event vectors come with their dropout done."""
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
_PROBE_LENGTH = 6


class Backbone(nn.Module):
    """A network of a family, without its table of tokens."""

    def __init__(self, settings: HuggingFaceBackbone, shape: BackboneShape) -> None:
        """Build it with fresh weights, drawn as its family draws them.

        Raises:
            SettingsError: there is no such family or field, or the family cannot do what is asked.
        """
        super().__init__()
        self.name = _name(settings)
        self.network = _build(self.name, family_config(settings, shape))
        if next(self.network.parameters()).device.type != "meta":  # from_pretrained builds there: proven when saved
            _prove(self, shape)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers in order; none where the family shares weights between them."""
        wanted = self.network.config.num_hidden_layers
        lists = (module for module in self.network.modules() if isinstance(module, nn.ModuleList))
        return next((list(found) for found in lists if len(found) == wanted), [])

    def forward(self, vectors: Tensor, padding_mask: Tensor) -> Tensor:
        """States [B, T, D] from event vectors [B, T, D]; padding_mask [B, T] is True where an event is real."""
        return self.network(inputs_embeds=vectors, attention_mask=seen_events(padding_mask).long()).last_hidden_state


def family_config(settings: HuggingFaceBackbone, shape: BackboneShape) -> PreTrainedConfig:
    """The configuration of a family at the encoder's sizes.

    What neither the encoder nor `settings.settings` says is scaled from the family's own default: the inner width of
    its feed-forward layers keeps its ratio to the width.

    Raises:
        SettingsError: there is no such family, it has no such field, or it does not let its sizes be chosen.
    """
    try:
        default = AutoConfig.for_model(settings.model_type)
    except ValueError:
        raise SettingsError(f"{_name(settings)} is no family of the transformers library{_like(settings)}") from None
    _check_fields(settings, default)
    known = _fields(default)
    ours = {name: value for name, value in _our_fields(shape, default).items() if name in known}
    try:
        return AutoConfig.for_model(settings.model_type, **(ours | settings.settings))
    except Exception as error:  # each family checks in its own way
        raise SettingsError(f"{_name(settings)} refuses these settings: {_in_one_line(error)}") from error


def _our_fields(shape: BackboneShape, default: PreTrainedConfig) -> dict[str, Any]:
    """What we say, by the names that most families use; the configuration maps them to a family's own."""
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "head_dim": shape.hidden_size // shape.num_heads,
        "embedding_size": shape.hidden_size,
        "intermediate_size": _inner_width(default, shape.hidden_size),
        "max_position_embeddings": shape.length + 1,  # some families count from 1
        "vocab_size": 1,
        "is_decoder": shape.attention == "causal",
        "use_cache": False,
    }
    dropouts = dict.fromkeys(_DROPOUTS, shape.dropout) | dict.fromkeys(_EMBEDDING_DROPOUTS, 0.0)
    return sizes | dropouts | dict.fromkeys(_TOKENS, 0)


def _fields(default: PreTrainedConfig) -> set[str]:
    """Names under which a family's fields can be set: its own, and the common ones that it maps to them."""
    return set(vars(default)) | set(default.attribute_map)


def _check_fields(settings: HuggingFaceBackbone, default: PreTrainedConfig) -> None:
    known, common = _fields(default), {own: name for name, own in default.attribute_map.items()}
    missing = [name for name in _REQUIRED if name not in known]
    if missing or default.is_encoder_decoder:
        reason = "it is an encoder and a decoder" if default.is_encoder_decoder else f"it has no {', '.join(missing)}"
        raise SettingsError(
            f"{_name(settings)} cannot be a backbone: {reason}; choose a plain family such as llama, gpt2 or bert"
        )
    for name in settings.settings:
        place, meaning = f"encoder.backbone.settings.{name}", common.get(name, name)
        if meaning in _OURS:
            raise SettingsError(f"{place}: {meaning} follows from encoder and objective; leave it out")
        if name not in known:
            close = get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{place}: {settings.model_type} has no such field{hint}")


def _inner_width(default: PreTrainedConfig, hidden_size: int) -> int | None:
    """The family's inner width at another width, a multiple of 8; None where it has none."""
    width = getattr(default, "intermediate_size", None)
    return None if not isinstance(width, int) else max(8, round(width / default.hidden_size * hidden_size / 8) * 8)


def _build(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A network without what never learns here: the table of tokens and the pooler."""
    try:
        network = AutoModel.from_config(config)
        network.set_input_embeddings(None)
    except Exception as error:  # each family fails in its own way
        raise SettingsError(f"{name} cannot be built with these settings: {_in_one_line(error)}") from error
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network


def _prove(backbone: Backbone, shape: BackboneShape) -> None:
    """Refuse a network that does not keep this module's invariant, or cannot take the longest sequence.

    Families say in many ways what their events see, so it is measured: on which event vectors the first state depends,
    by its gradient, which is exactly zero where there is no path. Asked without padding and with, because families go
    other ways where nothing is masked.
    """
    backbone.network.eval()
    for num_padding in (0, 1):
        reach = _reach(backbone, shape.hidden_size, min(shape.length, _PROBE_LENGTH), num_padding)
        _check_reach(backbone.name, reach, num_padding, shape.attention)
    with torch.no_grad():
        _run(backbone, torch.zeros(1, shape.length, shape.hidden_size), torch.ones(1, shape.length, dtype=torch.bool))
    backbone.network.train()


def _reach(backbone: Backbone, hidden_size: int, length: int, num_padding: int) -> Tensor:
    """[T] how far the first state depends on each event vector; the last ones are padding."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, length, hidden_size, generator=generator)
    direction = torch.randn(hidden_size, generator=generator)  # a plain sum is constant after a norm
    mask = torch.arange(length)[None] < length - num_padding
    with torch.enable_grad():
        vectors.requires_grad_()
        states = _run(backbone, vectors, mask)
        return torch.autograd.grad((states[0, 0] * direction).sum(), vectors)[0].abs().sum(dim=2)[0]


def _run(backbone: Backbone, vectors: Tensor, mask: Tensor) -> Tensor:
    try:
        states = backbone(vectors, mask)
    except Exception as error:  # each family fails in its own way
        raise SettingsError(f"{backbone.name} does not run on vectors of events: {_in_one_line(error)}") from error
    if states.shape != vectors.shape:
        raise SettingsError(
            f"{backbone.name} gives states of shape {list(states.shape)} for event vectors of shape "
            f"{list(vectors.shape)}; a state of the same width for each event is needed"
        )
    return states


def _check_reach(name: str, reach: Tensor, num_padding: int, attention: Attention) -> None:
    later, padding = reach[1 : len(reach) - num_padding], reach[len(reach) - num_padding :]
    if padding.any():
        raise SettingsError(f"{name} sees padding; choose another family")
    if attention == "causal" and later.any():
        raise SettingsError(
            f"{name} sees later events, which objective next_item must not; choose objective masked_item, or a family "
            "such as llama, qwen2 or gpt2"
        )
    if attention == "bidirectional" and not later.any():
        raise SettingsError(
            f"{name} sees earlier events only, and objective masked_item needs both directions; choose objective "
            "next_item, or a family such as bert or modernbert"
        )


def _name(settings: HuggingFaceBackbone) -> str:
    return f"encoder.backbone.model_type {settings.model_type}"


def _like(settings: HuggingFaceBackbone) -> str:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    close = get_close_matches(settings.model_type, list(CONFIG_MAPPING), n=1)
    return f"; did you mean {close[0]}?" if close else "; see the models in its documentation"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
