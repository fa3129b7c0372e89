"""The encoder: a user's events in, a state at each event and a vector of the user out.

Saved and loaded as a Hugging Face folder. The readout looks at a state together with the time elapsed until the moment
of prediction, so that a basket's next line and next week's visit are different questions. Invariant: a user's vector
does not depend on padding or on the other users of a batch.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from data_io.batch import ACTION_INDEX, ELAPSED, GAP, ITEM_INDEX, MOMENT, NUM_TIME_BUCKETS, PADDING_MASK
from data_io.schema import FIRST_INDEX
from model.attention import SelfAttention
from model.backbone import Attention, Backbone, BackboneShape
from model.config import HuggingFaceBackbone
from model.embedding import EventEmbedding, ItemTable
from model.packing import can_pack, make_packing
from model.repeat import RepeatChoice, mix_scores
from model.transformer import PACKABLE, BlockKind, FeedForward, make_block

EMBEDDING_STD = 0.02

TensorBatch = dict[str, Tensor]


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
        repeats: bool = True,
        backbone: dict[str, Any] | None = None,  # of `BackboneSettings`; None: our own blocks
        num_features: int = 0,
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
        self.repeats = repeats
        self.backbone = backbone or {"kind": "own"}
        self.num_features = num_features
        super().__init__(**kwargs)


class Readout(nn.Module):
    """A state and the time elapsed since its event, turned into a vector that can be held against items."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.elapsed = nn.Embedding(NUM_TIME_BUCKETS, hidden_size, padding_idx=0)
        self.norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)

    def forward(self, states: Tensor, elapsed: Tensor) -> Tensor:
        """[..., D] from states [..., D] and time buckets [...]."""
        states = states + self.elapsed(elapsed)
        return self.output_norm(states + self.feed_forward(self.norm(states)))


class ClickformerPreTrainedModel(PreTrainedModel):
    """What all our models share: their config and how fresh weights are drawn."""

    config_class = ClickformerConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | ItemTable):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, SelfAttention):
            module.copy_history()
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, ItemTable) or (isinstance(module, nn.Embedding) and module.padding_idx is not None):
            _zero_padding_row(module.weight)


class ClickformerEncoder(ClickformerPreTrainedModel):
    """Transformer encoder of behaviour sequences."""

    def __init__(self, config: ClickformerConfig) -> None:
        super().__init__(config)
        causal = config.attention == "causal"
        self.item_table = ItemTable(config.vocabulary_size, config.hidden_size)
        self.event_embedding = EventEmbedding(config.hidden_size, config.num_actions, config.dropout)
        # One place more than events: that of the question asked after the last of them.
        learned = config.positions == "learned"
        self.places = nn.Embedding(config.sequence_length + 1, config.hidden_size) if learned else None
        self.backbone = make_backbone(config)
        self.blocks = nn.ModuleList(
            make_block(
                config.block,
                config.hidden_size,
                config.num_heads,
                config.sequence_length + 1,
                config.dropout,
                causal=causal,
                rotary=not learned,
            )
            for _ in range(config.num_layers if self.backbone is None else 0)
        )
        self.readout = Readout(config.hidden_size)
        self.repeat_choice = RepeatChoice(config.hidden_size, causal=causal) if config.repeats else None
        self.post_init()

    def forward(
        self,
        item_index: Tensor,
        action_index: Tensor,
        gap: Tensor,
        elapsed: Tensor,
        moment: Tensor,
        padding_mask: Tensor,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """A state [B, T, D] at every event, to be held against item vectors.

        Args:
            item_index, action_index, gap, elapsed, moment, padding_mask: [B, T], see `data_io.batch`.
            hidden: [B, T] True where item and action are to be guessed (masked-item training).
        """
        vectors = self.event_embedding(self.item_table(item_index), action_index, gap, hidden)
        if self.places is not None:
            vectors = vectors + self.places(torch.arange(item_index.shape[1], device=item_index.device))
        return self.readout(self._contextualise(vectors, padding_mask, moment), elapsed)

    def _contextualise(self, vectors: Tensor, padding_mask: Tensor, moment: Tensor) -> Tensor:
        """States [B, T, D] from event vectors [B, T, D]: by packed rows where blocks and device can."""
        if self.backbone is not None:
            return self.backbone(vectors, padding_mask)
        config = self.config
        if config.block in PACKABLE and can_pack(vectors.device, config.hidden_size // config.num_heads):
            packing = make_packing(padding_mask, causal=config.attention == "causal")
            row = packing.pack(vectors)
            for block in self.blocks:
                row = block(row, padding_mask, moment, packing)
            return packing.unpack(row, padding_mask.shape)
        for block in self.blocks:
            vectors = block(vectors, padding_mask, moment)
        return vectors

    @property
    def layers(self) -> list[nn.Module]:
        """Blocks, or layers of the backbone, in order; none where a backbone shares weights between them."""
        return list(self.blocks) if self.backbone is None else self.backbone.layers

    def user_states(self, batch: TensorBatch) -> Tensor:
        """[B, D] the vector of each user at the moment of prediction."""
        _, states, place = self._ask(batch)
        return states[torch.arange(len(place), device=place.device), place]

    def rank_items(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """The vector [B, D] of each user, and the log-probability [B, V] of every item to come next."""
        inputs, states, place = self._ask(batch)
        row = torch.arange(len(place), device=place.device)
        users = states[row, place]
        scores = self.item_table(states=users)
        if self.repeat_choice is None:
            return users, scores.log_softmax(dim=1)
        repeats = self.repeat_choice(states, choosable_events(inputs))
        return users, mix_scores(scores, inputs[ITEM_INDEX], repeats.log_weight[row, place], repeats.gate[row, place])

    def _ask(self, batch: TensorBatch) -> tuple[TensorBatch, Tensor, Tensor]:
        """Inputs, states [B, T, D], and the place [B] of each user's state at the moment of prediction."""
        lengths = batch[PADDING_MASK].sum(dim=1)
        inputs = event_inputs(batch)
        if self.config.attention == "causal":
            return inputs, self(**inputs), (lengths - 1).clamp(min=0)
        inputs = _with_question(inputs, lengths)
        return inputs, self(**inputs), lengths


def make_backbone(config: ClickformerConfig) -> Backbone | None:
    """The backbone a configuration names; None where it is our own blocks.

    Raises:
        SettingsError: it cannot be built, or does not see what it should.
    """
    if config.backbone["kind"] == "own":
        return None
    shape = BackboneShape(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        length=config.sequence_length + 1,
        dropout=config.dropout,
        attention=config.attention,
    )
    return Backbone(HuggingFaceBackbone.model_validate(config.backbone), shape)


def choosable_events(inputs: TensorBatch) -> Tensor:
    """[B, T] True at real events with a known item that is not hidden."""
    choosable = inputs[PADDING_MASK] & (inputs[ITEM_INDEX] >= FIRST_INDEX)
    return choosable & ~inputs["hidden"] if "hidden" in inputs else choosable


def event_inputs(batch: TensorBatch) -> TensorBatch:
    """The tensors of a batch that the encoder takes."""
    return {name: batch[name] for name in (ITEM_INDEX, ACTION_INDEX, GAP, ELAPSED, MOMENT, PADDING_MASK)}


def _with_question(inputs: TensorBatch, lengths: Tensor) -> TensorBatch:
    """The inputs with one hidden event after each user's last, at the moment of prediction."""
    padded = {name: F.pad(tensor, (0, 1)) for name, tensor in inputs.items()}
    row = torch.arange(len(lengths), device=lengths.device)
    last = (lengths - 1).clamp(min=0)
    padded[GAP][row, lengths] = padded[ELAPSED][row, last]
    padded[MOMENT][row, lengths] = padded[MOMENT][row, last] + _least_micros(padded[ELAPSED][row, last])
    padded[ELAPSED][row, lengths] = 1
    padded[PADDING_MASK][row, lengths] = True
    hidden = torch.zeros_like(padded[PADDING_MASK])
    hidden[row, lengths] = True
    return padded | {"hidden": hidden}


def _least_micros(bucket: Tensor) -> Tensor:
    """Microseconds at which a time bucket begins."""
    return ((2.0 ** ((bucket.double() - 1) / 2) - 1).clamp(min=0) * 1e6).long()


def _zero_padding_row(weight: Tensor) -> None:
    """Zero row 0 of a table; under ZeRO-3 initialisation the table is gathered by transformers first."""
    weight[0].zero_()


AutoConfig.register("clickformer", ClickformerConfig)
AutoModel.register(ClickformerConfig, ClickformerEncoder)
