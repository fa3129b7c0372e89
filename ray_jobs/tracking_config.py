"""Settings of what records a training. Light to import: no torch, no Ray."""

from typing import Literal

from pydantic import Field

from data_io.config import SettingsModel


class MlflowSettings(SettingsModel):
    """Figures to an MLflow server; its credentials come from the environment."""

    tracking_uri: str | None = None
    """Server, or folder or database of the local kind, such as sqlite:///runs.db. None: no MLflow."""
    experiment: str = "clickformer"
    """Experiment that runs are recorded under."""


class WandbSettings(SettingsModel):
    """Figures to Weights & Biases; its key comes from the environment."""

    project: str | None = None
    """Project that runs are recorded under. None: no Weights & Biases."""
    entity: str | None = None
    """Team or user; None: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """offline writes below the run's folder, to be sent later by `wandb sync`."""


class TrackingSettings(SettingsModel):
    """Where figures of a training go besides the standard output and Ray's metrics; none of it can stop training."""

    tensorboard: bool = True
    """Event files under the work folder of the model."""
    mlflow: MlflowSettings = MlflowSettings()
    """MLflow as well; needs the extra clickformer[mlflow]."""
    wandb: WandbSettings = WandbSettings()
    """Weights & Biases as well; needs the extra clickformer[wandb]."""
    every_steps: int = Field(default=20, ge=1)
    """Optimizer steps between points."""
