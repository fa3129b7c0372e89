"""Settings of the cluster. Light to import: no Ray."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ClusterSettings(BaseModel):
    """Where the jobs run and how much of it they take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    address: str | None = None
    """Ray cluster to join, such as auto; None: the one that submitted this job, else a new one on this machine."""
    num_workers: int = Field(default=2, ge=1)
    """Training workers."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores of a training worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What trains and scores; auto: cuda where the cluster has a GPU for every worker, else cpu."""
    num_scorers: int | None = Field(default=None, ge=1)
    """Scoring actors; None: one for each GPU, or for each CPU core where there is none."""
    max_failures: int = Field(default=3, ge=0)
    """How often training restarts from its newest checkpoint after a worker is lost."""
    worker_timeout_s: float = Field(default=300.0, gt=0)
    """How long workers may take to start, in seconds."""
