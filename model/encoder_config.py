"""The configuration of an encoder as it stands in config.json: everything the network's shape depends on."""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedConfig

from data_io.inputs import DEFAULT_INPUTS, OWN
from data_io.schema import PADDING_INDEX
from model.backbone import Attention
from model.transformer import BlockKind


class ClickformerConfig(PreTrainedConfig):
    """Everything the network's shape depends on."""

    model_type = "clickformer"

    def __init__(
        self,
        vocabulary_size: int = 2,
        num_actions: int = 2,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        sequence_length: int = 128,
        dropout: float = 0.2,
        attention: Attention = "causal",
        block: BlockKind = "transformer",
        positions: Literal["rotary", "learned"] = "rotary",
        cosine_temperature: float | None = None,
        repeats: bool = True,
        neighbours: int = 0,
        neighbour_share: float = 0.3,
        backbone: dict[str, Any] | None = None,  # of `BackboneSettings`; None: our own blocks
        num_features: int = 0,
        questions: Sequence[dict[str, Any]] = ({"name": "", "answer": "binary", "num_classes": 0},),
        deep_heads: bool = True,
        interaction: Literal["inner_product", "bilinear"] = "inner_product",
        inputs: dict[str, str] | None = None,  # None: of a model saved before there was a choice
        asked_action: int = PADDING_INDEX,
        item_features: Sequence[dict[str, Any]] = (),
        item_id_dropout: float = 0.1,
        **kwargs: Any,  # Hugging Face's own fields, which it passes on when it loads config.json
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.num_actions = num_actions
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.sequence_length = sequence_length
        self.dropout = dropout
        self.attention: Attention = attention
        self.block: BlockKind = block
        self.positions = positions
        self.cosine_temperature = cosine_temperature
        self.repeats = repeats
        self.neighbours = neighbours
        self.neighbour_share = neighbour_share
        self.backbone = backbone or {"kind": "own"}
        self.num_features = num_features
        self.questions = list(questions)
        self.deep_heads = deep_heads
        self.interaction: Literal["inner_product", "bilinear"] = interaction
        self.inputs = dict.fromkeys(DEFAULT_INPUTS, OWN) if inputs is None else dict(inputs)
        self.asked_action = asked_action
        self.item_features = list(item_features)
        self.item_id_dropout = item_id_dropout
        super().__init__(**kwargs)
