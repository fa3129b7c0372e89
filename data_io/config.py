"""Settings of the data: where the log is, how it becomes sequences, where history ends and targets begin.

Light to import: no Arrow, no NumPy. What a setting does is said in its docstring, which is also its line in --help.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SettingsError(ValueError):
    """Settings that cannot work; the message names the setting, the value, the rule and the remedy."""


class SettingsModel(BaseModel):
    """Base of all settings: frozen, typo-proof, documented by docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


SourceName = Literal[
    "movielens",
    "amazon_s3rec",
    "amazon_search",
    "online_retail",
    "retailrocket",
    "taobao",
    "complete_journey",
    "cdnow",
    "synthetic",
]


class SyntheticSettings(SettingsModel):
    """Size of the generated log."""

    num_users: int = Field(default=2_000, ge=1)
    """Users in the generated log."""
    num_items: int = Field(default=1_000, ge=10)
    """Items in the generated catalogue."""
    num_days: int = Field(default=120, ge=2)
    """Days the generated log spans."""
    mean_events_per_user: float = Field(default=60.0, gt=0)
    """Mean number of events of a user."""
    seed: int = Field(default=0, ge=0)
    """Seed of the generator."""


class SourceSettings(SettingsModel):
    """A well-known data set on disk, turned into the event contract by `convert`."""

    name: SourceName | None = None
    """Which data set; None: the log at events.path already keeps the contract and there is nothing to convert."""
    path: str | None = None
    """Folder or file of the data set as published; None only where the source needs no files."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """Size of the generated log, for name: synthetic."""
    search_share: float = Field(default=1.0, gt=0, le=1)
    """Share of purchases that follow a search, for name: amazon_search; the others teach a model to recommend without
    a query."""

    @model_validator(mode="after")
    def _check(self) -> "SourceSettings":
        if self.search_share != 1 and self.name != "amazon_search":
            raise ValueError(f"search_share is for source amazon_search, not for {self.name}; leave it out")
        return self


class EventSettings(SettingsModel):
    """The event log and its contract."""

    path: str | None = None
    """Folder, file or glob of Parquet files, local or s3://; None: RUN_DIR/events, where `convert` writes."""
    columns: dict[str, str] = {}
    """Contract column to the log's own name, for those that differ, such as {user_id: customer}."""
    default_action: str | None = None
    """Action of every event, for a log without an action column; None: the column is required."""
    earliest_time: datetime = datetime(1990, 1, 1)
    """Events before this moment (UTC) are quarantined: a wrong unit of time lands there."""
    latest_time: datetime | None = None
    """Events after this moment (UTC) are quarantined; None: one day after the build starts."""
    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    """Largest share of quarantined rows (0 to 1) a build accepts before it fails."""
    drop_duplicates: bool = True
    """Drop all but the first of events that are equal in every contract column, and count them."""
    features: dict[str, Literal["categorical", "numeric"]] = {}
    """Further columns, by the log's own names, that go into the store: categorical (text or integer) or numeric."""
    allowed_actions: list[str] | None = Field(default=None, min_length=1)
    """Actions the log may have; events of others are quarantined. None: any."""
    max_string_bytes: int = Field(default=1_024, ge=1)
    """Longest id, action, session or categorical feature in bytes, a query ten times that; rows with a longer one are
    quarantined."""
    max_bad_files: int = Field(default=0, ge=0)
    """Files a build may leave out because their footers break the contract; more and it fails before any work, with a
    verdict for each."""

    @model_validator(mode="after")
    def _check(self) -> "EventSettings":
        if self.allowed_actions and self.default_action and self.default_action not in self.allowed_actions:
            raise ValueError(
                f"default_action {self.default_action} is not among allowed_actions {self.allowed_actions}"
            )
        if self.latest_time and _utc(self.earliest_time) >= _utc(self.latest_time):
            raise ValueError(f"earliest_time {self.earliest_time} must lie before latest_time {self.latest_time}")
        return self


class ItemSettings(SettingsModel):
    """The item table: what the shop knows of its items."""

    path: str | None = None
    """Folder, file or glob of Parquet files, local or s3://; source: RUN_DIR/items, where `convert` writes; None: there
    is no item table."""
    columns: dict[str, str] = {}
    """Contract column or feature to the table's own name, for those that differ, such as {item_id: sku}."""
    features: dict[str, Literal["categorical", "numeric", "text", "vector"]] = {}
    """Further columns to keep: categorical (text, integer or boolean), numeric, text, or vector (lists of numbers, all
    of one length)."""
    category_separator: str = Field(default=">", min_length=1)
    """What parts the levels of a category given as text, such as "garden > tools > spades"."""
    num_price_buckets: int = Field(default=16, ge=1, le=32_767)
    """Most buckets, about equal in items, that prices fall into; bucket 0 is for a missing price."""
    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    """Largest share of quarantined rows (0 to 1) a build accepts before it fails."""


class UserSettings(SettingsModel):
    """The user table: what the shop knows of its users."""

    path: str | None = None
    """Folder, file or glob of Parquet files, local or s3://; source: RUN_DIR/users, where `convert` writes; None: there
    is no user table."""
    columns: dict[str, str] = {}
    """Contract column or feature to the table's own name, for those that differ, such as {user_id: customer}."""
    features: dict[str, Literal["categorical", "numeric"]] = {}
    """Attributes to keep: categorical (text, integer or boolean) or numeric."""
    sensitive: list[str] = []
    """Features that readers get only when they ask for them, and that never enter the quarantine."""
    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    """Largest share of quarantined rows (0 to 1) a build accepts before it fails."""

    @model_validator(mode="after")
    def _check(self) -> "UserSettings":
        unknown = sorted(set(self.sensitive) - set(self.features))
        if unknown:
            raise SettingsError(
                f"sensitive names {unknown[0]}, which is not among features ({', '.join(self.features) or 'none'}); "
                "declare it there, or correct the name"
            )
        return self


class PrivacySettings(SettingsModel):
    """Whose ids the store holds."""

    pseudonym_key_variable: str | None = None
    """Environment variable, on every node, with the secret of keyed pseudonyms (HMAC-SHA-256) that replace user ids as
    they are read; fixed for the life of a store. None: ids as they are in the log."""


class StoreSettings(SettingsModel):
    """The sequence store."""

    num_buckets: int | None = Field(default=None, ge=1, le=65_536)
    """Hash groups of users: the unit of work and of restart, fixed for the life of a store; None: one for every 250,000
    rows of the log, at least 8."""
    max_events_per_user: int | None = Field(default=10_000, ge=1)
    """Newest events kept of a user; older ones are counted as truncated. None: all, however long a user is."""
    rows_per_run: int = Field(default=2_000_000, ge=1)
    """Most rows of the log a worker encodes at a time; more mean fewer intermediate files and more memory."""
    min_item_count: int = Field(default=1, ge=1)
    """Items with fewer events in the log share the unknown index."""
    retain_hours: float = Field(default=24, ge=0)
    """Hours that files of a superseded snapshot stay, for readers that opened it before."""


class TimeSplit(SettingsModel):
    """History and targets parted by moments in time, the same for all users."""

    kind: Literal["time"] = "time"
    """Which variant this is; another is chosen in the settings file."""
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of events, by time, between the validation and the test cutoff; unused with explicit cutoffs."""
    test_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of events, by time, at or after the test cutoff; unused with explicit cutoffs."""
    validation_cutoff_time: datetime | None = None
    """End of training history (UTC); None: derived from the shares."""
    test_cutoff_time: datetime | None = None
    """End of validation and start of test targets (UTC); None: derived from the shares."""

    @model_validator(mode="after")
    def _check(self) -> "TimeSplit":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must leave something to train on (sum below 1)")
        given = (self.validation_cutoff_time, self.test_cutoff_time)
        if (given[0] is None) != (given[1] is None):
            raise ValueError("give both validation_cutoff_time and test_cutoff_time, or neither")
        if given[0] is not None and given[1] is not None and _utc(given[0]) >= _utc(given[1]):
            raise ValueError(f"validation_cutoff_time {given[0]} must lie before test_cutoff_time {given[1]}")
        return self


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class LeaveOneOut(SettingsModel):
    """The last event of each user is the test target, the one before it the validation target; with target_actions,
    the last two events of these actions, and a user who has fewer is trained on only."""

    kind: Literal["leave_one_out"] = "leave_one_out"
    """Which variant this is; another is chosen in the settings file."""


SplitSettings = Annotated[TimeSplit | LeaveOneOut, Field(discriminator="kind")]
