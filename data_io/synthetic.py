"""A generated shop log with structure worth learning: for tests, demos and benchmarks without a download.

Drawn in whole arrays, no Python loop over users or events. Invariant: the log is a function of the settings; the same
settings give the same rows, in the same order.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from data_io.config import SyntheticSettings
from data_io.schema import (
    ACTION,
    CARRIED_TYPES,
    EVENT_TIME,
    ITEM_ID,
    PRICE,
    QUERY,
    SEARCH_ACTION,
    SESSION_ID,
    TIME_TYPE,
    USER_ID,
)

START_TIME: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""First moment of the log."""
ACTION_NAMES: Final = (SEARCH_ACTION, "view", "cart", "purchase")
"""Actions in the order they take around one item."""
FOLLOW_SHARE: Final = 0.6
"""Chance that an item viewed later in a session is a successor of the one before."""
SUCCESSOR_SHARES: Final = (0.6, 0.3, 0.1)
"""Chance of each successor of an item, once one of them follows."""
TASTE_SHARE: Final = 0.85
"""Chance that an item that follows no other comes from the user's taste, not from the whole catalogue."""
ZIPF_EXPONENT: Final = 1.0
"""Popularity of the item of rank r is r to the minus this."""
SEARCH_SHARE: Final = 0.3
"""Chance that a session opens with a search."""
CART_SHAPE: Final = (2.0, 8.0)
"""Beta distribution over users of the chance that a viewed item goes into the cart: mean 0.2."""
PURCHASE_SHARE: Final = 0.5
"""Chance that an item in the cart is bought."""
CHURN_SHARE: Final = 0.35
"""Share of users who stop before the log ends."""
VIEWS_PER_SESSION: Final = 4.0
"""Mean number of items viewed in a session; fewer where users have few events."""

_ADJECTIVES: Final = ("red", "blue", "green", "warm", "light", "classic", "modern", "outdoor", "kids", "vintage")
_NOUNS: Final = ("shoes", "jackets", "lamps", "chairs", "books", "toys", "bags", "watches", "tents", "mugs")
_ITEMS_PER_CATEGORY: Final = 20
_DAY_US: Final = 86_400_000_000
_SECONDS_BETWEEN_EVENTS: Final = 40.0
_EVENTS_PER_VIEW: Final = 1 + CART_SHAPE[0] / sum(CART_SHAPE) * (1 + PURCHASE_SHARE)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What is fixed about the items; all arrays are indexed by the number in the item's id."""

    category: Integers
    popularity: Floats
    """Zipf weights; they sum to 1."""
    price: Floats
    successors: Integers
    """Items that tend to follow, most likely first: [num_items, len(SUCCESSOR_SHARES)]."""

    @property
    def num_categories(self) -> int:
        """Number of categories; none is empty."""
        return int(self.category.max()) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Users:
    """What is fixed about each user."""

    join_day: Integers
    end_day: Integers
    """First day without events."""
    activity: Floats
    first_taste: Integers
    last_taste: Integers
    cart_share: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sessions:
    """Visits, by user and then by time."""

    user: Integers
    start_us: Integers
    room_us: Integers
    """Time until the user's next session, or until the user's end."""
    num_views: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Views:
    """Items looked at, in the order of their sessions."""

    session: Integers
    opens: Flags
    """Whether the view is the first of its session."""
    item: Integers
    searched: Flags
    carted: Flags
    purchased: Flags


def generate_events(settings: SyntheticSettings) -> pa.Table:
    """Events that keep the contract, sorted by time; each user has at least one.

    Actions are `search` (null item, a query that names a category), `view`, `cart` and `purchase`. What a model can
    learn, and the best it can do:

    - Next item: a later view of a session is with chance `FOLLOW_SHARE` one of the three fixed successors of the item
      before, so the best single guess is right in 36 % of these views (0.6 x 0.6), three guesses in 60 %. A cart or
      purchase repeats the item just viewed.
    - Taste: any other view is drawn, by popularity, from one of two categories of the user. The chance of the second
      one grows from 0 at the start of the log to 1 at its end, so recent history says more than old history.
    - Search: the view after it is of the category in the query, for certain.
    - Popularity: Zipf, so a popularity baseline is far above chance, and far below the above.
    - Conversion: the chance of a cart is the user's own, seen only in the user's past.
    - Churn: users come at a steady rate of their own and some stop for good. The best forecast compares the time since
      the last event with the user's usual gap; neither alone is enough.

    Prices are the items' own and say nothing of what is bought.
    """
    catalogue = draw_catalogue(settings)
    rng = np.random.default_rng([settings.seed, 1])
    users = _draw_users(settings, catalogue.num_categories, rng)
    sessions = _draw_sessions(settings, users, rng)
    views = _draw_views(settings, catalogue, users, sessions, rng)
    return _to_table(settings, catalogue, sessions, views, rng)


def draw_catalogue(settings: SyntheticSettings) -> Catalogue:
    """The items of the log these settings generate: what a perfect model would know of them."""
    rng = np.random.default_rng([settings.seed, 0])
    num_items = settings.num_items
    num_categories = int(np.clip(num_items // _ITEMS_PER_CATEGORY, 2, len(_ADJECTIVES) * len(_NOUNS)))
    weights = (rng.permutation(num_items) + 1.0) ** -ZIPF_EXPONENT
    return Catalogue(
        category=rng.permutation(num_items) % num_categories,
        popularity=weights / weights.sum(),
        price=np.round(rng.lognormal(mean=3.0, sigma=0.8, size=num_items), 2),
        successors=np.stack([_draw_ring(num_items, rng) for _ in SUCCESSOR_SHARES], axis=1),
    )


def category_name(category: int) -> str:
    """What a query calls the category."""
    return f"{_ADJECTIVES[category % len(_ADJECTIVES)]} {_NOUNS[category // len(_ADJECTIVES)]}"


def _draw_ring(num_items: int, rng: np.random.Generator) -> Integers:
    """A successor for every item: each item has one, is one, and is never its own."""
    ring = rng.permutation(num_items)
    successor = np.empty_like(ring)
    successor[ring] = np.roll(ring, -1)
    return successor


def _draw_users(settings: SyntheticSettings, num_categories: int, rng: np.random.Generator) -> _Users:
    size = settings.num_users
    join_day = np.where(rng.random(size) < 0.5, 0, rng.integers(0, settings.num_days // 2, size))
    churn_day = rng.integers(join_day + 1, settings.num_days + 1)
    first_taste = rng.integers(0, num_categories, size)
    return _Users(
        join_day=join_day,
        end_day=np.where(rng.random(size) < CHURN_SHARE, churn_day, settings.num_days),
        activity=rng.gamma(shape=1.5, size=size),
        first_taste=first_taste,
        last_taste=(first_taste + rng.integers(1, num_categories, size)) % num_categories,
        cart_share=rng.beta(*CART_SHAPE, size=size),
    )


def _draw_sessions(settings: SyntheticSettings, users: _Users, rng: np.random.Generator) -> _Sessions:
    views_per_session = float(np.clip(settings.mean_events_per_user / (3 * _EVENTS_PER_VIEW), 1, VIEWS_PER_SESSION))
    mean_sessions = settings.mean_events_per_user / (views_per_session * _EVENTS_PER_VIEW + SEARCH_SHARE)
    weight = users.activity * (users.end_day - users.join_day)
    extra = rng.poisson(max(mean_sessions - 1, 0) * weight / weight.mean())
    user = np.repeat(np.arange(settings.num_users), 1 + extra)
    start_us = _draw_starts(users, user, rng)
    order = np.lexsort((start_us, user))
    start_us = start_us[order]
    is_last = np.append(user[1:] != user[:-1], True)
    end_us = np.where(is_last, users.end_day[user] * _DAY_US, np.roll(start_us, -1))
    num_views = rng.geometric(1 / views_per_session, len(user))
    return _Sessions(user=user, start_us=start_us, room_us=end_us - start_us, num_views=num_views)


def _draw_starts(users: _Users, user: Integers, rng: np.random.Generator) -> Integers:
    """A moment of the user's active days for every session, in microseconds of the log; evenings are busiest."""
    day = rng.integers(users.join_day[user], users.end_day[user])
    hour = rng.triangular(left=6, mode=20, right=24, size=len(user))
    return day * _DAY_US + (hour / 24 * _DAY_US).astype(np.int64)


def _draw_views(
    settings: SyntheticSettings,
    catalogue: Catalogue,
    users: _Users,
    sessions: _Sessions,
    rng: np.random.Generator,
) -> _Views:
    session = np.repeat(np.arange(len(sessions.user)), sessions.num_views)
    size = len(session)
    opens = np.append(True, session[1:] != session[:-1])
    user = sessions.user[session]
    progress = sessions.start_us[session] / (settings.num_days * _DAY_US)
    taste = np.where(rng.random(size) < progress, users.last_taste[user], users.first_taste[user])
    follows = ~opens & (rng.random(size) < FOLLOW_SHARE)
    carted = rng.random(size) < users.cart_share[user]
    return _Views(
        session=session,
        opens=opens,
        item=_follow_successors(catalogue, _draw_items(catalogue, taste, rng), follows, rng),
        searched=opens & (rng.random(size) < SEARCH_SHARE),
        carted=carted,
        purchased=carted & (rng.random(size) < PURCHASE_SHARE),
    )


def _draw_items(catalogue: Catalogue, taste: Integers, rng: np.random.Generator) -> Integers:
    """An item by popularity: of the category, or now and then of the whole catalogue."""
    order = np.argsort(catalogue.category, kind="stable")
    # Laid end to end by category, every category is one stretch of this line, and every item a part of it.
    line = np.append(0.0, np.cumsum(catalogue.popularity[order]))
    bounds = np.searchsorted(catalogue.category[order], np.arange(catalogue.num_categories + 1))
    anywhere = rng.random(len(taste)) >= TASTE_SHARE
    low = np.where(anywhere, 0, bounds[taste])
    high = np.where(anywhere, len(order), bounds[taste + 1])
    point = line[low] + rng.random(len(taste)) * (line[high] - line[low])
    position = np.searchsorted(line, point, side="right") - 1
    return order[np.clip(position, low, high - 1)]


def _follow_successors(catalogue: Catalogue, items: Integers, follows: Flags, rng: np.random.Generator) -> Integers:
    """The items, with each that follows replaced by a successor of the one before it."""
    choice = rng.choice(len(SUCCESSOR_SHARES), size=len(items), p=SUCCESSOR_SHARES)
    index = np.arange(len(items))
    depth = index - np.maximum.accumulate(np.where(follows, 0, index))
    result = items.copy()
    rows = np.flatnonzero(depth)
    for level in range(1, int(depth.max()) + 1):
        rows = rows[depth[rows] >= level]
        now = rows[depth[rows] == level]
        result[now] = catalogue.successors[result[now - 1], choice[now]]
    return result


def _to_table(
    settings: SyntheticSettings, catalogue: Catalogue, sessions: _Sessions, views: _Views, rng: np.random.Generator
) -> pa.Table:
    view, action = _expand_actions(views)
    session = views.session[view]
    time_us = _event_times(sessions, session, rng)
    order = np.argsort(time_us, kind="stable")
    view, action, session = view[order], action[order], session[order]
    item, is_search = views.item[view], action == 0
    start_us = int(START_TIME.timestamp() * 1_000_000)
    return pa.table(
        {
            USER_ID: _names("u", settings.num_users, 6).take(pa.array(sessions.user[session])),
            ITEM_ID: _names("i", settings.num_items, 5).take(pa.array(item, mask=is_search)),
            ACTION: pa.array(ACTION_NAMES, pa.large_string()).take(pa.array(action)),
            EVENT_TIME: pa.array(time_us[order] + start_us).cast(TIME_TYPE),
            SESSION_ID: _names("s", len(sessions.user), 0).take(pa.array(session)),
            QUERY: _query_names(catalogue).take(pa.array(catalogue.category[item], mask=~is_search)),
            PRICE: pa.array(catalogue.price[item], mask=is_search).cast(CARRIED_TYPES[PRICE], safe=False),
        }
    )


def _expand_actions(views: _Views) -> tuple[Integers, Integers]:
    """For every event the view it belongs to, and its action as a position in `ACTION_NAMES`."""
    num_events = 1 + views.searched.astype(np.int64) + views.carted + views.purchased
    view = np.repeat(np.arange(len(num_events)), num_events)
    return view, _positions(num_events) + 1 - views.searched[view]


def _event_times(sessions: _Sessions, session: Integers, rng: np.random.Generator) -> Integers:
    """Microseconds of the log: events of a session at equal steps, done before the user's next session."""
    num_events = np.bincount(session, minlength=len(sessions.user))
    pace_us = rng.exponential(_SECONDS_BETWEEN_EVENTS * 1e6, len(num_events)).astype(np.int64)
    step_us = np.minimum(pace_us, sessions.room_us // num_events)
    return sessions.start_us[session] + _positions(num_events) * step_us[session]


def _positions(counts: Integers) -> Integers:
    """0, 1, 2 and so on within each group, for groups of these sizes laid end to end."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _names(prefix: str, count: int, width: int) -> pa.Array:
    names = pl.lit(prefix) + pl.int_range(count).cast(pl.String).str.zfill(width)
    return pl.select(names).to_series().to_arrow().cast(pa.large_string())


def _query_names(catalogue: Catalogue) -> pa.Array:
    return pa.array([category_name(category) for category in range(catalogue.num_categories)], pa.large_string())
