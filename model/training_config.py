"""Settings of how a network is trained: optimizer, portions, sharding. Light to import: no torch."""

from typing import Literal

from pydantic import Field, model_validator

from data_io.config import SettingsModel


class OptimizerSettings(SettingsModel):
    """AdamW with linear warm-up and cosine decay to a hundredth."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices; embeddings, norms and biases have none."""
    warmup_steps: int = Field(default=100, ge=0)
    """Optimizer steps of linear warm-up."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm over all parameters."""
    spike_factor: float | None = Field(default=100.0, gt=1)
    """A step whose gradient norm is so many times the usual one is skipped; None skips only what is not finite."""
    average_decay: float = Field(default=0.0, ge=0, lt=1)
    """Validated and published is a moving average of the weights of which each step leaves this share as it was: 0.999
    is a mean of some thousand steps. 0: the weights themselves."""


class TrainingSettings(SettingsModel):
    """How long, in what portions and how sharded a network is trained."""

    num_epochs: int = Field(default=10, ge=1)
    """Most passes over the training examples; early stopping may end sooner."""
    global_batch_size: int = Field(default=64, ge=1)
    """Examples of one optimizer step, all workers together."""
    micro_batch_size: int = Field(default=32, ge=1)
    """Examples of one forward pass on one worker; the rest is gradient accumulation."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    shard_items_from: int = Field(default=1_000_000, ge=1)
    """Items from which on the item table is spread over workers by rows, outside ZeRO, which would bring all of it
    together in every step; rows then move only in steps that see them (lazy Adam)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What ZeRO keeps in the host's memory instead of the GPU's: optimizer state (stages 1 to 3), or parameters as well
    (stage 3)."""
    activation_checkpointing: bool = False
    """Whether what is inside blocks is computed again in the backward pass instead of being kept: less memory for
    longer steps, and the same weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of matrix products; auto: bfloat16 where a CUDA device has it, else float32."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints besides the one at the end of each epoch; None: only those."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    max_skipped_steps: int = Field(default=10, ge=1)
    """So many steps skipped in a row, for losses or gradients that are not finite or spikes, and the weights go back to
    the newest checkpoint; the examples since then are not trained on again."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation metric after which training stops."""
    num_validation_users: int = Field(default=5_000, ge=1)
    """Most users in the validation after each epoch, a fixed sample."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if self.offload != "none" and self.zero_stage < (3 if self.offload == "parameters" else 1):
            least = 3 if self.offload == "parameters" else 1
            raise ValueError(f"offload {self.offload} needs zero_stage {least} or more (found {self.zero_stage})")
        return self


EXECUTION_SETTINGS = frozenset(
    {
        "zero_stage",
        "offload",
        "activation_checkpointing",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "max_skipped_steps",
    }
)
"""Training settings that say how a network is trained, not which comes out: a run may be resumed with others."""
