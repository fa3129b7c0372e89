"""Settings of the cluster. Light to import: no Ray."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClusterSettings(BaseModel):
    """Where the jobs run and how much of it they take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    address: str | None = None
    """Ray cluster to join, such as auto; None: the one that submitted this job, else a new one on this machine."""
    num_workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 2
    """Training workers; a least and a most number let training go on with as many as the cluster has."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores of a training worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What trains and scores; auto: cuda where the cluster has a GPU for every worker, else cpu."""
    num_scorers: int | None = Field(default=None, ge=1)
    """Scoring actors; None: one for each GPU, or for each CPU core where there is none."""
    max_failures: int = Field(default=3, ge=0)
    """How often in a row, without a new checkpoint in between, training restarts after workers are lost."""
    worker_timeout_s: float = Field(default=300.0, gt=0)
    """How long workers may take to start, in seconds."""
    hang_timeout_s: float = Field(default=600.0, gt=0)
    """How long a training step may take, in seconds, before its worker is taken to hang and the group restarts."""

    @model_validator(mode="after")
    def _check(self) -> "ClusterSettings":
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers: the least, {self.least_workers}, is more than the most {self.most_workers}")
        return self

    @property
    def least_workers(self) -> int:
        """Training workers without which training waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Training workers beyond which none is added."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
