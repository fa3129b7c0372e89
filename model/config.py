"""Settings of the network and of what it learns. Light to import: no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_io.config import SettingsModel
from data_io.inputs import DEFAULT_INPUTS
from model.loss_config import AutoSoftmax, SoftmaxSettings
from model.training_config import OptimizerSettings, TrainingSettings


class OwnBackbone(SettingsModel):
    """The blocks of this package, chosen by encoder.block."""

    kind: Literal["own"] = "own"
    """Which variant this is; another is chosen in the settings file."""


class HuggingFaceBackbone(SettingsModel):
    """A network of the transformers library, untrained; its sizes come from the encoder's settings."""

    kind: Literal["hugging_face"] = "hugging_face"
    """Which variant this is; another is chosen in the settings file."""
    model_type: str
    """Family, by the library's own name: llama, qwen2 or gpt2 for next_item, modernbert for masked_item, bert for
    either."""
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of the family's own configuration, such as {intermediate_size: 256}."""


BackboneSettings = Annotated[OwnBackbone | HuggingFaceBackbone, Field(discriminator="kind")]


class EncoderSettings(SettingsModel):
    """The encoder: a pre-norm Transformer over a user's events."""

    hidden_size: int = Field(default=64, ge=4)
    """Width D of states and item vectors."""
    num_layers: int = Field(default=2, ge=1)
    """Transformer blocks."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads; must divide hidden_size into an even width."""
    sequence_length: int = Field(default=128, ge=2)
    """Most events of a user the encoder sees: the newest ones."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of activations dropped while training."""
    block: Literal["transformer", "ligr", "hstu", "gru"] = "transformer"
    """What a block does: pre-norm attention and a gated feed-forward layer; the same with learned gates beside the
    residuals (LiGR); attention without a softmax that knows distances in places and in time (HSTU); or a gated
    recurrent unit, the network to beat, for next_item only."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How attention knows the order of events: by turning queries and keys (transformer and ligr; hstu and gru know
    it anyway), or by a vector for each place."""
    cosine_temperature: float | None = Field(default=None, gt=0)
    """States and items are held together by their cosine divided by this (0.05 to 0.1 suits catalogues whose items are
    seldom seen); None: by their dot product."""
    repeats: bool = True
    """Whether items a user had are chosen again by a path of their own; off where nobody gets an item twice."""
    neighbours: int = Field(default=0, ge=0)
    """Nearest items of each item, by users who had both, that are mixed into the ranking; 50 suits catalogues whose
    items are seldom seen. 8 bytes each on every worker; 0 is none."""
    neighbour_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the mixture that goes to them, a probability as the rest; training does not depend on it."""
    inputs: tuple[str, ...] = DEFAULT_INPUTS
    """What is seen of an event besides its item: action, gap (time since the event before), elapsed (time to the next,
    or to the moment of prediction), asked_action (which action is asked for: then all actions train, and target_actions
    are asked for where that is one), calendar (hour and weekday, UTC), and columns of the store: session_id, query,
    price, quantity, rating and those of events.features. Block hstu knows times anyway."""
    item_features: tuple[str, ...] = ()
    """What of the store's item table an item's vector is made of besides its id: title, category, brand, price_bucket,
    and names of items.features."""
    item_id_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of items that a training step knows by item_features alone, so that they suffice for items without events;
    nothing without item_features."""
    backbone: BackboneSettings = OwnBackbone()
    """What stands between the embedding of events and the readout."""

    @model_validator(mode="after")
    def _check(self) -> "EncoderSettings":
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"num_heads {self.num_heads} must divide hidden_size {self.hidden_size} into an even width per head "
                "(rotary positions turn pairs)"
            )
        if isinstance(self.backbone, HuggingFaceBackbone) and (self.block, self.positions) != ("transformer", "rotary"):
            raise ValueError(
                f"block {self.block} and positions {self.positions} choose among our own blocks, and backbone "
                "hugging_face has its own; leave block and positions out"
            )
        return self


class NextItem(SettingsModel):
    """Predict each event's item from the events before it (causal attention)."""

    kind: Literal["next_item"] = "next_item"
    """Which variant this is; another is chosen in the settings file."""


class MaskedItem(SettingsModel):
    """Predict hidden items from the events around them (attention in both directions)."""

    kind: Literal["masked_item"] = "masked_item"
    """Which variant this is; another is chosen in the settings file."""
    mask_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of a window's items that are hidden."""


ObjectiveSettings = Annotated[NextItem | MaskedItem, Field(discriminator="kind")]


class AugmentationSettings(SettingsModel):
    """How windows are changed at random; a share of 0 leaves them as they are."""

    crop: float = Field(default=0.0, ge=0, lt=1)
    """Share of a window's events that is cut away, so that a random contiguous part is left."""
    mask: float = Field(default=0.0, ge=0, lt=1)
    """Share of a window's items that are shown as unknown; what followed them is asked all the same."""
    reorder: float = Field(default=0.0, ge=0, lt=1)
    """Share of a window's events, one span of them, whose order is shuffled; nothing is asked inside it."""

    @property
    def is_off(self) -> bool:
        """Whether windows stay as they are."""
        return not (self.crop or self.mask or self.reorder)


class AuxiliarySettings(SettingsModel):
    """Weights of what is learned beside items, each a mean loss like theirs; 0 is off and costs nothing."""

    next_action: float = Field(default=0.0, ge=0)
    """Weight of predicting the action of the next event; next_item only."""
    time_to_next: float = Field(default=0.0, ge=0)
    """Weight of predicting the time bucket until the next event; next_item only."""
    item_alignment: float = Field(default=0.0, ge=0)
    """Weight of recognising an item's id by its features among the items of the micro-batch; needs
    encoder.item_features."""
    contrastive: float = Field(default=0.0, ge=0)
    """Weight of recognising a user's vector of one view of a window by that of another view."""
    contrastive_temperature: float = Field(default=0.1, gt=0)
    """What cosines of user vectors, and of ids with features, are divided by; the smaller, the more the nearest others
    count."""
    contrastive_views: AugmentationSettings = AugmentationSettings(crop=0.4, mask=0.3, reorder=0.3)
    """How a view differs from its window: by one of these, drawn for each window."""

    @property
    def is_off(self) -> bool:
        """Whether nothing is learned beside items."""
        return not (self.next_action or self.time_to_next or self.item_alignment or self.contrastive)

    @model_validator(mode="after")
    def _check(self) -> "AuxiliarySettings":
        if self.contrastive and self.contrastive_views.is_off:
            raise ValueError("contrastive compares two views: give contrastive_views a share of crop, mask or reorder")
        return self


class RandomItems(SettingsModel):
    """Item vectors start at random."""

    kind: Literal["random"] = "random"
    """Which variant this is; another is chosen in the settings file."""


class NeighbourItems(SettingsModel):
    """Items that the same users had start near each other, so that those with few events need fewer steps."""

    kind: Literal["neighbours"] = "neighbours"
    """Which variant this is; another is chosen in the settings file."""
    num_neighbours: int = Field(default=100, ge=1)
    """Nearest items that are looked at of each item."""


class PretrainSettings(SettingsModel):
    """Self-supervised pretraining."""

    name: str = Field(default="encoder", pattern=r"^[a-z0-9_]+$")
    """Name of the encoder: its folder in RUN_DIR, or under RUN_DIR/tasks if it is not called encoder."""
    objective: ObjectiveSettings = NextItem()
    """What is predicted."""
    softmax: SoftmaxSettings = AutoSoftmax()
    """The loss over items."""
    windows_per_user: int | None = Field(default=None, ge=1)
    """Newest windows of encoder.sequence_length events of a user that an epoch trains on; None: the whole history."""
    item_vectors: Annotated[RandomItems | NeighbourItems, Field(discriminator="kind")] = RandomItems()
    """Where the vectors of items start."""
    max_pairs: int = Field(default=300_000_000, ge=1)
    """Most pairs of items a user had both of, summed over users, of which neighbours are found, for item_vectors and
    encoder.neighbours: each pass over the log counts some 5 million of them."""
    auxiliary: AuxiliarySettings = AuxiliarySettings()
    """What is learned beside items."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """How training windows are changed at random; next_item only."""
    adversarial: float = Field(default=0.0, ge=0)
    """Length of the step by which each user's event vectors are moved where the loss grows fastest; 0 is off."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Learning rate and its schedule."""
    training: TrainingSettings = TrainingSettings()
    """Length, batch and sharding."""

    @model_validator(mode="after")
    def _check(self) -> "PretrainSettings":
        if not isinstance(self.objective, MaskedItem):
            return self
        if self.auxiliary.next_action or self.auxiliary.time_to_next:
            raise ValueError(
                "objective masked_item sees the next event, so auxiliary.next_action and auxiliary.time_to_next would "
                "be given away; set them to 0, or use objective next_item"
            )
        if not self.augmentation.is_off:
            raise ValueError("augmentation is for objective next_item; masked_item has a mask_share of its own")
        return self
