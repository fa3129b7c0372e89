"""Settings of the losses over items. Light to import: no torch."""

from typing import Annotated, Literal

from pydantic import Field

from data_io.config import SettingsModel


class FullSoftmax(SettingsModel):
    """Cross-entropy over the whole catalogue: exact, and V times D work a position."""

    kind: Literal["full"] = "full"
    """Which variant this is; another is chosen in the settings file."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over the catalogue."""


class SampledSoftmax(SettingsModel):
    """Cross-entropy over the target and shared negatives, corrected for how often each is drawn."""

    kind: Literal["sampled"] = "sampled"
    """Which variant this is; another is chosen in the settings file."""
    num_uniform: int = Field(default=512, ge=1)
    """Negatives drawn evenly from the catalogue, per micro-batch."""
    num_in_batch: int = Field(default=512, ge=0)
    """Negatives drawn from the targets of the micro-batch, so by popularity."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over the catalogue, for which the even negatives stand."""


class AutoSoftmax(SettingsModel):
    """Full or sampled softmax, by the size of the catalogue.

    Full is the better loss wherever it can be paid for. Memory is no obstacle: scores exist only a tile at a time, and
    the dense gradient of the table (4 V D bytes) is there with either. What grows is time: forward, the same again in
    the backward pass and two gradients are 8 V D FLOPs a position, so 2.1 MFLOP an item for a default micro-batch of
    4,096 positions of width 64. With 20,000 items these 42 GFLOP took 0.87 s of one core, beside 0.09 s for the encoder
    and 0.05 s for 1,024 negatives: a step ten times longer than need be, the most we let a default cost. On a GPU, with
    a hundred times the FLOPs a second, 200,000 or more is as sensible.
    """

    kind: Literal["auto"] = "auto"
    """Which variant this is; another is chosen in the settings file."""
    full_up_to: int = Field(default=20_000, ge=1)
    """Most items of a catalogue that the softmax is taken over as a whole; with more, negatives are sampled."""
    num_uniform: int = Field(default=512, ge=1)
    """Negatives drawn evenly from the catalogue, per micro-batch, if sampled."""
    num_in_batch: int = Field(default=512, ge=0)
    """Negatives drawn from the targets of the micro-batch, so by popularity, if sampled."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over the catalogue."""


class BinaryLoss(SettingsModel):
    """Generalised binary cross-entropy against sampled negatives (gSASRec); needs encoder.repeats false and
    encoder.neighbours 0."""

    kind: Literal["gbce"] = "gbce"
    """Which variant this is; another is chosen in the settings file."""
    num_negatives: int = Field(default=256, ge=1)
    """Negatives drawn evenly from the catalogue, per micro-batch."""
    calibration: float = Field(default=0.75, ge=0, le=1)
    """How far the overconfidence that sampling brings is taken back: 0 is plain binary cross-entropy, 1 all of it."""


SoftmaxSettings = Annotated[AutoSoftmax | FullSoftmax | SampledSoftmax | BinaryLoss, Field(discriminator="kind")]
