"""Settings of personalised search. Light to import: no torch, no Ray."""

from typing import Annotated

from pydantic import Field, model_validator

from data_io.config import SettingsModel


class SearchSettings(SettingsModel):
    """Whose searches are ranked, by what, and how that is measured."""

    requests: str | None = None
    """Folder, file or glob of Parquet files, local or s3://, with user_id, query, and optionally candidates (lists of
    item ids), relevance (lists of the engine's scores) and request_time; None: nothing is ranked."""
    model: str = "encoder"
    """Model that says what a user prefers: encoder, another pretrain.name, or a next_item task; it must see action and
    query."""
    k: int = Field(default=20, ge=1)
    """Items ranked for a request without candidates."""
    weight: float | None = Field(default=None, ge=0)
    """What a user's log-probability of an item counts beside its relevance; None: as evaluate tuned it, for BM25."""
    exclude_seen: bool = False
    """Leave items of the user's own history out, of rankings of the whole catalogue and of evaluation; candidates that
    a request names stay."""
    evaluate: bool = False
    """Measure on searches of the log that were held out."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0, 0.1, 0.3, 1, 3, 10), min_length=1)
    """Weights that evaluate tries on validation searches."""
    user_share: float = Field(default=1.0, gt=0, le=1)
    """Share of users, by a hash of their ids, whose held-out searches are measured."""
    num_resamples: int = Field(default=1_000, ge=10)
    """Bootstrap resamples behind each 95 % interval."""
    batch_size: int = Field(default=256, ge=1)
    """Searches ranked at a time, fewer over a large catalogue."""

    @model_validator(mode="after")
    def _check(self) -> "SearchSettings":
        if len(set(self.weights)) < len(self.weights):
            raise ValueError(f"weights {self.weights} names a weight twice; drop one")
        return self
