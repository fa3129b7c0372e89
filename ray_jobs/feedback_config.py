"""Settings of learning from what was shown. Light to import: no torch, no Ray."""

from typing import Annotated, Literal

from pydantic import Field

from data_io.config import SettingsModel


class FeedbackColumns(SettingsModel):
    """What the columns of a table of impressions are called."""

    item_id: str = "item_id"
    """The item shown."""
    reward: str = "click"
    """What came of it: 0 or 1."""
    propensity: str = "propensity"
    """Probability with which the logging policy showed the item there."""
    policy: str | None = None
    """The logging policy, where there are several; None: one policy made the log."""
    position: str | None = None
    """Where the item was shown."""
    time: str | None = None
    """When; rows are put in its order. None: they are in order."""
    history: str | None = None
    """List of items the user clicked before; None: it is not known."""
    context: tuple[str, ...] = ()
    """Categories of the user, place or device."""


class FeedbackSettings(SettingsModel):
    """Impressions with propensities: a click model, and what other policies would earn."""

    path: str | None = None
    """Parquet file or folder of the impressions, local or s3://."""
    columns: FeedbackColumns = FeedbackColumns()
    """What its columns are called."""
    interaction: Literal["inner_product", "bilinear"] = "inner_product"
    """How the vectors of a context and an item meet."""
    width: int = Field(default=4, ge=1)
    """Numbers in these vectors."""
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(10.0, 30.0, 100.0, 300.0), min_length=1)
    """Ridge penalties of the click model, of which the best in log loss over all folds is taken."""
    num_folds: int = Field(default=5, ge=2)
    """Blocks of time; each is predicted by a model of the others."""
    explore: float = Field(default=0.1, gt=0, le=1)
    """Share of impressions that the click model's policy gives to items at random, the others to the best one."""
