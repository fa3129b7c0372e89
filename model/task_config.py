"""Settings of fine-tuning: what is asked of a pretrained encoder, and what of it learns. Light to import: no torch."""

from typing import Annotated, Literal

from pydantic import Field

from data_io.config import SettingsModel
from data_io.question_config import EventQuestion, QuestionSettings
from model.loss_config import AutoSoftmax, SoftmaxSettings
from model.training_config import OptimizerSettings, TrainingSettings


class RewardSettings(SettingsModel):
    """What actions are worth, where a network learns from feedback instead of predicting what comes next."""

    actions: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Reward of each action, such as {purchase: 1, cart: 0.3}; other actions are not learned from."""
    top_k: int = Field(default=1, ge=1)
    """Items that are shown together: an item that is among them anyway gains less."""
    max_importance: float = Field(default=10.0, gt=0)
    """Cap of how much more probable an item is than in the log."""


class NextItemTask(SettingsModel):
    """Go on predicting items, on wanted actions only if split by target_actions."""

    kind: Literal["next_item"] = "next_item"
    """Which variant this is; another is chosen in the settings file."""
    softmax: SoftmaxSettings = AutoSoftmax()
    """The loss over items."""
    windows_per_user: int | None = Field(default=None, ge=1)
    """As in pretrain."""
    rewards: RewardSettings | None = None
    """Learn by reward instead, as off-policy REINFORCE does, from the encoder as a model of the log; needs a whole
    softmax. None: predict what comes next."""


class OutcomeTask(SettingsModel):
    """Whether a user has a wanted event within a horizon after a moment: one question, called as the task is."""

    kind: Literal["outcome"] = "outcome"
    """Which variant this is; another is chosen in the settings file."""
    horizon_days: float = Field(default=7.0, gt=0)
    """The outcome is 1 if a wanted event falls within this many days."""
    actions: list[str] | None = Field(default=None, min_length=1)
    """Actions that count; None: any event, so that 1 minus the score is the probability of churn."""
    num_cutoffs: int = Field(default=8, ge=1)
    """Moments, one horizon apart and ending one before the validation cutoff, at which training users are asked."""

    @property
    def every_days(self) -> None:
        """Moments are a horizon apart."""
        return None

    @property
    def learned_weights(self) -> bool:
        """There is nothing to weigh."""
        return False

    @property
    def questions(self) -> dict[str, QuestionSettings]:
        """The one question."""
        return {"": EventQuestion(horizon_days=self.horizon_days, actions=self.actions)}


class QuestionsTask(SettingsModel):
    """Several questions about what follows a moment, answered by one encoder."""

    kind: Literal["questions"] = "questions"
    """Which variant this is; another is chosen in the settings file."""
    questions: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], QuestionSettings] = Field(min_length=1)
    """What is asked, by name: kinds event, churn, conversion, spend, rating, next_category, categories, segment and
    table."""
    num_cutoffs: int = Field(default=8, ge=1)
    """Moments at which training users are asked; the last ones whose horizons end by the validation cutoff."""
    every_days: float | None = Field(default=None, gt=0)
    """Days between these moments; None: the longest horizon."""
    learned_weights: bool = False
    """Whether weights of the questions are learned, on top of their own, by how uncertain their answers are."""


class ResponseTask(SettingsModel):
    """Whether an item that is shown is responded to: a click or conversion head on the user's vector."""

    kind: Literal["response"] = "response"
    """Which variant this is; another is chosen in the settings file."""
    shown: list[str] = Field(default=["view"], min_length=1)
    """Actions by which an item is shown: such items are asked about."""
    actions: list[str] = Field(default=["cart", "purchase"], min_length=1)
    """Actions that respond to it; the response is 1 if one follows the first showing within the horizon."""
    horizon_days: float = Field(default=7.0, gt=0)
    """Days after the moment in which showing and response must fall."""
    num_cutoffs: int = Field(default=8, ge=1)
    """Moments at which training users are asked, the last ones whose horizons end by the validation cutoff."""
    every_days: float | None = Field(default=None, gt=0)
    """Days between these moments; None: the horizon."""
    interaction: Literal["inner_product", "bilinear"] = "inner_product"
    """How the user's vector meets the item's: as two maps that are multiplied, or through a matrix that starts at
    zero."""
    most_candidates: int = Field(default=50, ge=1)
    """Items asked about of a user and moment, the first by time."""


class AutoTrainable(SettingsModel):
    """Choose by the number of labels: few train a logistic head on a frozen encoder, many the top block too."""

    kind: Literal["auto"] = "auto"
    """Which variant this is; another is chosen in the settings file."""
    few_labels: int = Field(default=1_000, ge=0)
    """Labels of a question (of its rarer answer, where it is whether) below which they are few."""


class FrozenEncoder(SettingsModel):
    """Train the head alone."""

    kind: Literal["frozen"] = "frozen"
    """Which variant this is; another is chosen in the settings file."""


class TopLayers(SettingsModel):
    """Train the head, the readout and the last blocks."""

    kind: Literal["top"] = "top"
    """Which variant this is; another is chosen in the settings file."""
    num_layers: int = Field(default=1, ge=1)
    """Blocks that are free, counted from the output."""


class FullEncoder(SettingsModel):
    """Train everything."""

    kind: Literal["full"] = "full"
    """Which variant this is; another is chosen in the settings file."""


class LowRankAdapters(SettingsModel):
    """Train the head, the readout, and adapters of low rank beside every linear layer of the blocks (LoRA)."""

    kind: Literal["lora"] = "lora"
    """Which variant this is; another is chosen in the settings file."""
    rank: int = Field(default=8, ge=1)
    """Rank of what is added to each weight."""
    alpha: int = Field(default=16, ge=1)
    """It is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs dropped while training."""
    merge: bool = False
    """Publish the whole model with adapters merged; else adapters and head alone, to be loaded with their base."""


Trainable = FrozenEncoder | TopLayers | LowRankAdapters | FullEncoder
"""What of an encoder learns."""


Task = Annotated[NextItemTask | OutcomeTask | QuestionsTask | ResponseTask, Field(discriminator="kind")]
"""What an encoder can be asked."""


class FinetuneSettings(SettingsModel):
    """Supervised fine-tuning of a pretrained encoder."""

    name: str = Field(default="purchase", pattern=r"^[a-z0-9_]+$")
    """Name of the task: its folder under RUN_DIR/tasks and its column in the scores."""
    encoder: str = "encoder"
    """Model of the run to start from, by its pretrain.name."""
    task: Task = OutcomeTask()
    """What is learned."""
    trainable: Annotated[AutoTrainable | Trainable, Field(discriminator="kind")] = AutoTrainable()
    """Which part of the encoder learns with it."""
    blend: bool = True
    """Whether probabilities of questions about whether are put together of the network's and those of boosted trees on
    the counts, in proportions (and with a calibration) learned on validation users."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-4, warmup_steps=20)
    """Learning rate and its schedule."""
    training: TrainingSettings = TrainingSettings(num_epochs=4, global_batch_size=256, micro_batch_size=128)
    """Length, batch and sharding."""
