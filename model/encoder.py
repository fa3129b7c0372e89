"""The encoder: a user's events in, a state at each event and a vector of the user out.

Saved and loaded as a Hugging Face folder. The readout looks at a state together with the time elapsed until the moment
of prediction, so that a basket's next line and next week's visit are different questions, and with the action that is
asked for, if any. Invariants: a user's vector does not depend on padding or on the other users of a batch; a causal
state depends on no later event, save in the readout on when the next one comes (elapsed) and its action (if asked).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel

from data_io.batch import (
    ACTION_INDEX,
    ASKED_ACTION,
    COLUMN,
    ELAPSED,
    GAP,
    ITEM_INDEX,
    MOMENT,
    PADDING_MASK,
)
from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX
from data_io.side.features import ItemFeatures
from model.attention import SelfAttention
from model.backbone import Backbone, BackboneShape
from model.config import HuggingFaceBackbone
from model.embedding import EventEmbedding, ItemTable
from model.encoder_config import ClickformerConfig
from model.event_inputs import FurtherInputs, has_further
from model.item_features import FeaturedItemTable, make_item_table
from model.neighbour_choice import NeighbourChoice
from model.packing import can_pack, make_packing
from model.queries import Queries, pure_queries
from model.readout import Readout
from model.repeat import RepeatChoice, choose_again
from model.transformer import PACKABLE, make_block

EMBEDDING_STD = 0.02
CONTEXT_STD = 0.002
"""Of what stands beside an item's vector, which shall tell little at first: as large as items, what all events have in
common would hide them."""

TensorBatch = dict[str, Tensor]
EncoderInputs = dict[str, Any]
"""What `ClickformerEncoder.forward` takes, by the names of its parameters."""


class ClickformerPreTrainedModel(PreTrainedModel):
    """What all our models share: their config and how fresh weights are drawn."""

    config_class = ClickformerConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag | ItemTable):
            nn.init.normal_(module.weight, std=EMBEDDING_STD if isinstance(module, ItemTable) else CONTEXT_STD)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, ItemTable) or (
            isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
        ):
            _zero_padding_row(module.weight)


class ClickformerEncoder(ClickformerPreTrainedModel):
    """Transformer encoder of behaviour sequences."""

    def __init__(self, config: ClickformerConfig) -> None:
        super().__init__(config)
        causal = config.attention == "causal"
        self.item_table = make_item_table(
            config.vocabulary_size,
            config.hidden_size,
            config.item_features,
            config.item_id_dropout,
            cosine=config.cosine_temperature is not None,
        )
        self.event_embedding = EventEmbedding(config.hidden_size, config.num_actions, config.dropout, config.inputs)
        self.further_inputs = FurtherInputs(config.hidden_size, config.inputs) if has_further(config.inputs) else None
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
        self.readout = Readout(config.hidden_size, config.num_actions, config.inputs)
        self.repeat_choice = RepeatChoice(config.hidden_size, causal=causal) if config.repeats else None
        self.neighbour_choice = (
            NeighbourChoice(config.vocabulary_size, config.neighbours, config.neighbour_share)
            if config.neighbours
            else None
        )
        self._recomputes = False
        self.post_init()
        if not self.item_table.weight.is_meta:
            self._start()

    def _start(self) -> None:
        """Fresh weights that pass on what users had: not in _init_weights, which transformers calls only for modules
        that own a weight themselves."""
        self.readout.pass_states()
        for attention in (module for module in self.blocks.modules() if isinstance(module, SelfAttention)):
            attention.copy_history()

    def forward(
        self,
        item_index: Tensor,
        action_index: Tensor,
        gap: Tensor,
        elapsed: Tensor,
        moment: Tensor,
        padding_mask: Tensor,
        hidden: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
        asked_action: Tensor | None = None,
    ) -> Tensor:
        """A state [B, T, D] at every event, to be held against item vectors.

        Args:
            item_index, action_index, gap, elapsed, moment, padding_mask: [B, T], see `data_io.batch`.
            hidden: [B, T] True where the event is to be guessed (masked-item training).
            columns: [B, T] or [B, T, K] further columns of the events, by name; None: there are none.
            asked_action: [B, T] action of what is asked for at each event; None: any.
        """
        known = (item_index, action_index, gap, moment, padding_mask, hidden, columns)
        return self.read_out(self.event_states(*known), elapsed, asked_action)

    def event_states(
        self,
        item_index: Tensor,
        action_index: Tensor,
        gap: Tensor,
        moment: Tensor,
        padding_mask: Tensor,
        hidden: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
        perturbation: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """A state [B, T, D] at every event before the readout, which knows nothing of the event that is asked for.

        Args:
            item_index, action_index, gap, moment, padding_mask, hidden, columns: as in `forward`.
            perturbation: [B, T, D] what the event vectors are moved by (adversarial training).
            seed: fixes which items are known by their features alone in training; None: none.
        """
        items = self.item_table(item_index, seed=seed)
        if self.further_inputs is not None:
            items = items + self.further_inputs(moment, padding_mask, columns or {})
        vectors = self.event_embedding(items, action_index, gap, hidden)
        if perturbation is not None:
            vectors = vectors + perturbation
        if self.places is not None:
            vectors = vectors + self.places(torch.arange(item_index.shape[1], device=item_index.device))
        return self._contextualise(vectors, padding_mask, moment)

    def _contextualise(self, vectors: Tensor, padding_mask: Tensor, moment: Tensor) -> Tensor:
        """States [B, T, D] from event vectors [B, T, D]: by packed rows where blocks and device can."""
        if self.backbone is not None:
            return self.backbone(vectors, padding_mask)
        config = self.config
        if config.block in PACKABLE and can_pack(vectors.device, config.hidden_size // config.num_heads):
            packing = make_packing(padding_mask, causal=config.attention == "causal")
            row = packing.pack(vectors)
            for block in self.blocks:
                row = self._run(block, row, padding_mask, moment, packing)
            return packing.unpack(row, padding_mask.shape)
        for block in self.blocks:
            vectors = self._run(block, vectors, padding_mask, moment)
        return vectors

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """A block's states, with what is inside it kept for the backward pass or not."""
        if self._recomputes and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(*inputs)

    def read_out(self, events: Tensor, elapsed: Tensor, asked_action: Tensor | None = None) -> Tensor:
        """From states [B, T, D] of events, by what is asked, to states that are held against item vectors."""
        asked = torch.zeros_like(elapsed) if asked_action is None else asked_action
        states = self.readout(events, elapsed, asked)
        temperature = self.config.cosine_temperature
        return states if temperature is None else F.normalize(states, dim=-1) / temperature

    def add_items(self, features: ItemFeatures) -> None:
        """Take in items that came up since training, known by their features alone; their indices come next.

        Args:
            features: of the new items, after padding and unknown.

        Raises:
            SettingsError: the encoder reads no features.
        """
        if not isinstance(self.item_table, FeaturedItemTable):
            raise SettingsError("this encoder knows items by their id alone, and cannot take in new ones")
        self.item_table.extend(features)
        if self.neighbour_choice is not None:
            self.neighbour_choice.extend(features.num_rows - FIRST_INDEX)
        self.config.vocabulary_size = self.item_table.num_items

    def recompute_blocks(self) -> None:
        """While training, compute what is inside blocks again in the backward pass instead of keeping it."""
        self._recomputes = True
        if self.backbone is not None:
            self.backbone.network.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def layers(self) -> list[nn.Module]:
        """Blocks, or layers of the backbone, in order; none where a backbone shares weights between them."""
        return list(self.blocks) if self.backbone is None else self.backbone.layers

    @property
    def mixes(self) -> bool:
        """Whether items are chosen in other ways beside the softmax over the catalogue."""
        return self.neighbour_choice is not None or self.repeat_choice is not None

    def user_states(self, batch: TensorBatch) -> Tensor:
        """[B, D] the vector of each user at the moment of prediction."""
        _, states, place = self._ask(batch)
        return states[torch.arange(len(place), device=place.device), place]

    def queries(self, batch: TensorBatch) -> Queries:
        """What the catalogue is asked for each of B users at the moment of prediction."""
        inputs, states, place = self._ask(batch)
        row = torch.arange(len(place), device=place.device)
        queries, items = pure_queries(states[row, place]), inputs[ITEM_INDEX]
        if self.neighbour_choice is not None:
            queries = self.neighbour_choice.choose(queries, items, place)
        if self.repeat_choice is not None:
            repeats = self.repeat_choice(states, choosable_events(inputs))
            queries = choose_again(queries, items, repeats.log_weight[row, place], repeats.gate[row, place])
        return queries

    def rank_items(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """The vector [B, D] of each user, and the log-probability [B, V] of every item to come next."""
        queries = self.queries(batch)
        return queries.users, queries.log_probabilities(self.item_table(states=queries.users))

    def _ask(self, batch: TensorBatch) -> tuple[EncoderInputs, Tensor, Tensor]:
        """Inputs, states [B, T, D], and the place [B] of each user's state at the moment of prediction."""
        lengths = batch[PADDING_MASK].sum(dim=1)
        inputs, place = event_inputs(batch), (lengths - 1).clamp(min=0)
        if self.config.attention != "causal":
            inputs, place = _with_question(inputs, lengths), lengths
        asked = torch.zeros_like(inputs[ACTION_INDEX])
        asked[torch.arange(len(place), device=place.device), place] = self.config.asked_action
        inputs[ASKED_ACTION] = asked
        return inputs, self(**inputs), place


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


def choosable_events(inputs: EncoderInputs) -> Tensor:
    """[B, T] True at real events with a known item that is not hidden."""
    choosable = inputs[PADDING_MASK] & (inputs[ITEM_INDEX] >= FIRST_INDEX)
    return choosable & ~inputs["hidden"] if "hidden" in inputs else choosable


def event_inputs(batch: TensorBatch) -> EncoderInputs:
    """The tensors of a batch that the encoder takes."""
    columns = {name.removeprefix(COLUMN): tensor for name, tensor in batch.items() if name.startswith(COLUMN)}
    own = {name: batch[name] for name in (ITEM_INDEX, ACTION_INDEX, GAP, ELAPSED, MOMENT, PADDING_MASK)}
    return own | {"columns": columns}


def _with_question(inputs: EncoderInputs, lengths: Tensor) -> EncoderInputs:
    """The inputs with one hidden event after each user's last, at the moment of prediction."""
    columns = inputs["columns"].items()
    padded: EncoderInputs = {name: F.pad(tensor, (0, 1)) for name, tensor in inputs.items() if name != "columns"}
    padded["columns"] = {name: F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, 1)) for name, tensor in columns}
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
