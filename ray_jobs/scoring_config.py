"""Settings of scoring: what is written for every user, by which rules, and what must hold before readers see it.

Light to import: no torch, no Ray.
"""

from typing import Literal

from pydantic import Field, model_validator

from data_io.config import SettingsModel

MAX_RULES = 30
"""Rules are bits of a 32-bit number."""


class SeenRule(SettingsModel):
    """Items of the user's own history that are not recommended."""

    name: str = "seen"
    """What the column `rules` calls it."""
    actions: list[str] | None = Field(default=None, min_length=1)
    """Actions that count, such as purchase; None: every action."""
    within_days: float | None = Field(default=None, gt=0)
    """Days before the moment of prediction that count; None: the whole history."""


class Condition(SettingsModel):
    """Which users or items a rule is about: those whose column has one of some values, or lies in a range."""

    column: str
    """Column of the user table or item table; item_id and user_id are known without a table."""
    is_in: list[str | int | float | bool] | None = Field(default=None, min_length=1)
    """Values that match; a column of lists matches where any of its values does."""
    file: str | None = None
    """File of values that match, local or s3://: one a line, or Parquet with that column."""
    at_least: float | None = None
    """Least value that matches."""
    at_most: float | None = None
    """Greatest value that matches."""

    @model_validator(mode="after")
    def _says_something(self) -> "Condition":
        given = [name for name in ("is_in", "file", "at_least", "at_most") if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"condition on {self.column} says nothing; give is_in, file, at_least or at_most")
        if len({"values" if name in ("is_in", "file") else "range" for name in given}) > 1:
            raise ValueError(f"condition on {self.column} has values and a range; make two rules of it")
        return self


class ItemRule(SettingsModel):
    """A rule about items, for all users or for some."""

    name: str
    """What the column `rules` calls it."""
    effect: Literal["deny", "only", "boost"]
    """deny: items that match are not recommended; only: no others are; boost: items that match gain."""
    items: Condition
    """Which items match."""
    users: Condition | None = None
    """Whom the rule is for; None: everyone. A user of whom the column is not known is not meant."""
    factor: float = Field(default=2.0, gt=0)
    """By how much boost multiplies the probability of an item."""


class CapRule(SettingsModel):
    """How many items of a category or brand a list may have."""

    column: str | None = None
    """Column of the item table whose values are capped, of a category path the last level; None: there is no cap."""
    most: int = Field(default=3, ge=1)
    """Items with the same value in a list."""


class FallbackSettings(SettingsModel):
    """What users get of whom too little is known."""

    min_events: int = Field(default=1, ge=0)
    """Users with fewer events get what is popular, newer events counting more; 0: every user gets the model's."""
    half_life_days: float = Field(default=30.0, gt=0)
    """Days after which an event counts half."""
    segment: str | None = None
    """Column of the user table: what is popular among users of the same value; None: among all."""
    num_segments: int = Field(default=50, ge=1)
    """Values of the column that get a ranking of their own, those with the most users; others get that of all."""


class GateSettings(SettingsModel):
    """What must hold before scores are published; a bound that is None is not held against anything."""

    min_coverage: float | None = Field(default=None, ge=0, le=1)
    """Least share of users with a full list."""
    min_overlap: float | None = Field(default=None, ge=0, le=1)
    """Least mean share of a user's items that were in the list published before."""
    max_drift: float | None = Field(default=None, ge=0)
    """Greatest population stability index of the first item's score against the scores published before; above .25 is
    commonly held to be a shift."""


class ScoringSettings(SettingsModel):
    """What is written for every user; exclude_seen and rules are lists and stand in the settings file."""

    k: int = Field(default=20, ge=1)
    """Items recommended to each user."""
    exclude_seen: list[SeenRule] = Field(default=[], max_length=MAX_RULES)
    """Items of the own history that are not recommended; [{}]: none of them is."""
    rules: list[ItemRule] = Field(default=[], max_length=MAX_RULES)
    """Rules about items, all of which hold."""
    cap: CapRule = CapRule()
    """How many items of a kind a list may have."""
    fallback: FallbackSettings = FallbackSettings()
    """What users get of whom too little is known."""
    as_of: Literal["log_end", "last_event"] = "log_end"
    """Moment users are recommended to: the end of the log, or each just after the last own event (for logs that know
    only the order of events)."""
    recommender: str = "encoder"
    """Model that recommends and embeds: encoder, another pretrain.name, or the name of a next_item task."""
    tasks: list[str] | None = None
    """Tasks of outcomes and responses whose probabilities are written; None: all that are trained."""
    embedding: Literal["float32", "float16"] = "float32"
    """Numbers of the embedding."""
    incremental: bool = False
    """Encode only users with new events, and carry the others over from the scores published before; needs as_of
    last_event, as time goes on for every user else."""
    gate: GateSettings = GateSettings()
    """What must hold before readers see the scores."""
    retain_hours: float = Field(default=48.0, ge=0)
    """How long scores that newer ones replaced are kept, for readers at work and for `clickformer rollback`."""
    batch_size: int = Field(default=256, ge=1)
    """Users encoded at a time."""

    @model_validator(mode="after")
    def _rules_are_told_apart(self) -> "ScoringSettings":
        names = self.rule_names
        if len(names) > MAX_RULES:
            raise ValueError(f"{len(names)} rules, of which there may be {MAX_RULES}")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two rules are called {doubled[0]}; give each another name")
        if self.incremental and self.as_of != "last_event":
            raise ValueError("incremental needs as_of last_event: as of the end of the log every user has moved on")
        if self.incremental and self.tasks != []:
            raise ValueError("incremental needs tasks []: they predict from the end of the log on, for every user")
        return self

    @property
    def rule_names(self) -> list[str]:
        """Names of all rules, in the order of their bits."""
        named = [rule.name for rule in self.rules] + [rule.name for rule in self.exclude_seen]
        return named + ([f"cap:{self.cap.column}"] if self.cap.column else [])


class LookupSettings(SettingsModel):
    """Whose scores are shown."""

    user: str | None = None
    """Id of the user, as it is in the log (a pseudonym where the store has those)."""


class ExportSettings(SettingsModel):
    """Where published scores are brought."""

    to: Literal["long", "lance", "delta", "iceberg"] = "long"
    """long: Parquet with a row for each user and item, for loaders of key-value stores; else a table of that format."""
    url: str | None = None
    """Folder of the table, of iceberg its name in the catalogue; None: RUN_DIR/scores_long for the long form."""
    catalog: dict[str, str] = Field(default={})
    """Properties of the Iceberg catalogue, as pyiceberg takes them."""
