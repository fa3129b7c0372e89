"""Settings of questions: what is asked about a user at a moment, and answered by what follows in the log.

Light to import: no Arrow, no NumPy. How labels come from them is in `data_io.labels`.
"""

from typing import Annotated, Literal

from pydantic import Field

from data_io.config import SettingsModel

Answer = Literal["binary", "classes", "labels", "amount", "value"]
"""What an answer is: whether, which one, which ones, how much (0 for most), or a number."""


class ItemChoice(SettingsModel):
    """Items by what the shop's item table says of them."""

    column: str = "category"
    """Column of the item table; of a category path any level counts. item_id is known without a table."""
    is_in: list[str | int] = Field(min_length=1)
    """Values that match."""


class _Question(SettingsModel):
    horizon_days: float = Field(default=7.0, gt=0)
    """Days after the moment of prediction that decide the answer."""
    actions: list[str] | None = Field(default=None, min_length=1)
    """Actions that count; None: any event."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of one answer beside those of other questions."""


class EventQuestion(_Question):
    """Whether a wanted event follows."""

    kind: Literal["event"] = "event"
    """Which variant this is; another is chosen in the settings file."""
    items: ItemChoice | None = None
    """Items that count, such as those of a category; None: all."""

    @property
    def answer(self) -> Answer:
        """Whether it does."""
        return "binary"


class ChurnQuestion(_Question):
    """Whether no wanted event follows."""

    kind: Literal["churn"] = "churn"
    """Which variant this is; another is chosen in the settings file."""

    @property
    def answer(self) -> Answer:
        """Whether the user is gone."""
        return "binary"


class ConversionQuestion(_Question):
    """Whether an item that is open, such as in the cart, is bought; asked of users who have one."""

    kind: Literal["conversion"] = "conversion"
    """Which variant this is; another is chosen in the settings file."""
    opened_by: list[str] = Field(default=["cart"], min_length=1)
    """Actions that open an item; it is open until one of `actions` follows with the same item."""
    open_days: float = Field(default=7.0, gt=0)
    """Days after which it no longer counts as open."""

    @property
    def answer(self) -> Answer:
        """Whether any of them is."""
        return "binary"


class SpendQuestion(_Question):
    """How much is spent: the sum of price times quantity (1 where there is none)."""

    kind: Literal["spend"] = "spend"
    """Which variant this is; another is chosen in the settings file."""

    @property
    def answer(self) -> Answer:
        """0 for most users, else an amount."""
        return "amount"


class RatingQuestion(_Question):
    """The rating that the user gives next; asked where one follows."""

    kind: Literal["rating"] = "rating"
    """Which variant this is; another is chosen in the settings file."""

    @property
    def answer(self) -> Answer:
        """A number."""
        return "value"


class _ItemClasses(_Question):
    column: str = "category"
    """Column of the item table whose values are told apart."""
    level: int = Field(default=1, ge=1)
    """Level of a category path, 1 the broadest."""
    num_classes: int = Field(default=20, ge=2)
    """Values told apart, those with the most events; items of others count as none."""


class NextCategoryQuestion(_ItemClasses):
    """Of which category the next item is; asked where one follows."""

    kind: Literal["next_category"] = "next_category"
    """Which variant this is; another is chosen in the settings file."""

    @property
    def answer(self) -> Answer:
        """One of the categories."""
        return "classes"


class CategoriesQuestion(_ItemClasses):
    """Of which categories items follow."""

    kind: Literal["categories"] = "categories"
    """Which variant this is; another is chosen in the settings file."""

    @property
    def answer(self) -> Answer:
        """Any of the categories."""
        return "labels"


class SegmentQuestion(SettingsModel):
    """Which value an attribute of the user table has; asked of users of whom it is known."""

    kind: Literal["segment"] = "segment"
    """Which variant this is; another is chosen in the settings file."""
    column: str
    """Column of the user table; one that is marked as sensitive is refused."""
    num_classes: int = Field(default=20, ge=2)
    """Values told apart, those of the most users."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of one answer beside those of other questions."""

    @property
    def answer(self) -> Answer:
        """One of the values."""
        return "classes"


class TableQuestion(SettingsModel):
    """A label that stands in a table of its own, one row for a user or for a user and a time."""

    kind: Literal["table"] = "table"
    """Which variant this is; another is chosen in the settings file."""
    path: str
    """Parquet file or folder, local or s3://."""
    label: str = "label"
    """Column of the labels: 0 and 1 or booleans (binary), numbers (value), or texts and integers (classes)."""
    answer: Literal["binary", "value", "classes"] = "binary"
    """What a label is."""
    user_id: str = "user_id"
    """Column of the users, as the log has them."""
    time: str | None = None
    """Column of the time at which a label came about: it answers moments up to `horizon_days` before. None: labels hold
    at all times."""
    horizon_days: float = Field(default=7.0, gt=0)
    """Days after the moment of prediction within which `time` lies."""
    num_classes: int = Field(default=20, ge=2)
    """Classes told apart, those of the most rows."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of one answer beside those of other questions."""


QuestionSettings = Annotated[
    EventQuestion
    | ChurnQuestion
    | ConversionQuestion
    | SpendQuestion
    | RatingQuestion
    | NextCategoryQuestion
    | CategoriesQuestion
    | SegmentQuestion
    | TableQuestion,
    Field(discriminator="kind"),
]


def horizon_of(question: QuestionSettings) -> float:
    """Days after a moment that a question looks at; 0 where it looks at none."""
    return 0.0 if isinstance(question, SegmentQuestion) else question.horizon_days
