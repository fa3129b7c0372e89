"""Settings of user profiles: how users are grouped, what is told of them, from where on they are alerted to.

Light to import: no torch, no Ray.
"""

from pydantic import Field

from data_io.config import SettingsModel

LEAST_USERS = 50
"""Users from which on groups of them can be told."""


class ProfileSettings(SettingsModel):
    """What is told of every user."""

    num_segments: int | None = Field(default=None, ge=1, le=100)
    """Segments of users; None: the most, of 3 to 10, that other samples agree on about as much as on any number."""
    sample_users: int = Field(default=20_000, ge=LEAST_USERS)
    """Users, spread over the buckets, that segments, names and what is usual are worked out from."""
    category_level: int = Field(default=2, ge=1)
    """Level of a category path that counts, from 1 for the widest; of shorter paths the last."""
    most_values: int = Field(default=3, ge=1)
    """Categories, brands, hours and the like that are listed for a user."""
    recent_share: float = Field(default=0.25, gt=0, lt=1)
    """Newest share of a user's events that is looked at for what is new, and for what is unlike those before."""
    surprise_events: int = Field(default=32, ge=0)
    """Newest events of a user whose surprise is measured, each at the cost of a ranking; 0: none, and no surprise."""
    seller: str | None = None
    """Column of the item table, declared in items.features, that says who sells an item; None: it is not known."""
    alert_purchases: int = Field(default=10, ge=2)
    """Purchases of one item, or from one seller, within 24 hours from which a user is alerted to as brushing."""
    alert_deviations: float = Field(default=5.0, gt=0)
    """Robust standard deviations, among users of the same history length, from which surprise is alerted to."""
    alert_gap_variation: float = Field(default=0.2, ge=0)
    """Standard deviation of log gaps between a user's moments up to which they are alerted to as a robot's."""
