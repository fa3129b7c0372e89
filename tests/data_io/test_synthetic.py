"""The generated log keeps the contract, is a function of its settings, and holds the structure it promises."""

import re
from datetime import timedelta
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.config import SyntheticSettings
from data_io.schema import EVENT_COLUMNS, canonical_type, kind_of
from data_io.synthetic import (
    CHURN_SHARE,
    FOLLOW_SHARE,
    START_TIME,
    SUCCESSOR_SHARES,
    TASTE_SHARE,
    category_name,
    draw_catalogue,
    generate_events,
)

SETTINGS = SyntheticSettings(num_users=1_000, num_items=400, num_days=90, mean_events_per_user=50, seed=3)


@cache
def make_events() -> pl.DataFrame:
    return pl.DataFrame(generate_events(SETTINGS))


def make_views() -> pl.DataFrame:
    """Views by user and time, with the item's number, its category, and the item viewed before in the session."""
    catalogue = draw_catalogue(SETTINGS)
    views = make_events().filter(pl.col("action") == "view").sort("user_id", "event_time", maintain_order=True)
    number = views["item_id"].str.slice(1).cast(pl.Int64)
    views = views.with_columns(number.alias("item"), pl.Series("category", catalogue.category[number.to_numpy()]))
    return views.with_columns(pl.col("item").shift(1).over("session_id").alias("before"))


def test_contract_and_order() -> None:
    table = generate_events(SETTINGS)
    rules = {column.name: column for column in EVENT_COLUMNS}
    for field in table.schema:
        assert kind_of(field.type) in rules[field.name].kinds
        assert field.type == canonical_type(field.name, kind_of(field.type))
    assert {"user_id", "item_id", "action", "event_time"} <= set(table.column_names)
    assert make_events()["event_time"].is_sorted()


def test_ids_read_as_promised() -> None:
    events = make_events()
    assert events["user_id"].str.contains(r"^u\d{6}$").all()
    assert events["item_id"].drop_nulls().str.contains(r"^i\d{5}$").all()
    assert set(events["user_id"].unique()) == {f"u{number:06d}" for number in range(SETTINGS.num_users)}


def test_log_is_a_function_of_the_settings() -> None:
    assert generate_events(SETTINGS).equals(generate_events(SETTINGS))
    other = generate_events(SETTINGS.model_copy(update={"seed": 4}))
    assert not other["item_id"].equals(generate_events(SETTINGS)["item_id"])


@given(
    num_users=st.integers(1, 30),
    num_items=st.integers(10, 60),
    num_days=st.integers(2, 40),
    mean_events=st.floats(0.1, 80),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=30, deadline=None)
def test_any_size_keeps_the_promises(
    num_users: int, num_items: int, num_days: int, mean_events: float, seed: int
) -> None:
    size = SyntheticSettings(
        num_users=num_users, num_items=num_items, num_days=num_days, mean_events_per_user=mean_events, seed=seed
    )
    events = pl.DataFrame(generate_events(size))
    assert events["user_id"].n_unique() == num_users
    assert events["event_time"].is_sorted()
    assert events["event_time"].min() >= START_TIME
    assert events["event_time"].max() < START_TIME + timedelta(days=num_days)
    # Sessions of a user do not interleave: each is one stretch of the user's events.
    stretches = events.select(pl.col("session_id").rle_id().max().over("user_id") + 1)
    assert (
        stretches.to_series().to_list()
        == events.select(pl.col("session_id").n_unique().over("user_id"))["session_id"].to_list()
    )


@pytest.mark.parametrize("mean_events", [5.0, 20.0, 100.0])
def test_mean_events_per_user(mean_events: float) -> None:
    size = SyntheticSettings(num_users=2_000, num_items=100, mean_events_per_user=mean_events)
    assert generate_events(size).num_rows / 2_000 == pytest.approx(mean_events, rel=0.1)


def test_actions_follow_one_another() -> None:
    events = make_events().sort("user_id", "event_time", maintain_order=True)
    before = events.select(pl.col("action", "item_id").shift(1).over("session_id"))
    for action, cause in (("cart", "view"), ("purchase", "cart")):
        chosen = events["action"] == action
        assert chosen.sum() > 1_000
        assert before.filter(chosen)["action"].unique().to_list() == [cause]
        assert before.filter(chosen)["item_id"].equals(events.filter(chosen)["item_id"])
    assert events["action"].unique().sort().to_list() == ["cart", "purchase", "search", "view"]


def test_search_has_no_item_and_names_the_next_category() -> None:
    catalogue = draw_catalogue(SETTINGS)
    events = make_events().sort("user_id", "event_time", maintain_order=True)
    is_search = events["action"] == "search"
    assert is_search.sum() > 1_000
    assert (events["item_id"].is_null() == is_search).all()
    assert (events["query"].is_not_null() == is_search).all()
    assert (events["price"].is_null() == is_search).all()
    after = events["item_id"].shift(-1).filter(is_search).str.slice(1).cast(pl.Int64)
    names = [category_name(category) for category in catalogue.category[after.to_numpy()].tolist()]
    assert events["query"].filter(is_search).to_list() == names


def test_category_names_differ() -> None:
    names = [category_name(category) for category in range(100)]
    assert len(set(names)) == 100
    assert all(re.fullmatch(r"[a-z]+ [a-z]+", name) for name in names)


def test_catalogue_is_sound() -> None:
    catalogue = draw_catalogue(SETTINGS)
    assert np.unique(catalogue.category).tolist() == list(range(catalogue.num_categories))
    assert catalogue.popularity.sum() == pytest.approx(1)
    assert catalogue.successors.shape == (SETTINGS.num_items, len(SUCCESSOR_SHARES))
    for rank in range(len(SUCCESSOR_SHARES)):
        assert sorted(catalogue.successors[:, rank]) == list(range(SETTINGS.num_items))
        assert (catalogue.successors[:, rank] != np.arange(SETTINGS.num_items)).all()


def test_successors_follow_far_more_often_than_by_chance() -> None:
    pairs = make_views().drop_nulls("before")
    successors = draw_catalogue(SETTINGS).successors[pairs["before"].to_numpy()]
    hits = (successors == pairs["item"].to_numpy()[:, None]).mean(axis=0)
    expected = FOLLOW_SHARE * np.array(SUCCESSOR_SHARES)
    np.testing.assert_allclose(hits, expected, atol=0.03)
    shuffled = np.random.default_rng(0).permutation(pairs["item"].to_numpy())
    assert (successors == shuffled[:, None]).any(axis=1).mean() < 0.05


def test_popularity_is_skewed_and_still_a_weak_guess() -> None:
    shares = make_views()["item"].value_counts(sort=True)["count"].to_numpy() / make_views().height
    assert shares[: SETTINGS.num_items // 10].sum() > 0.25
    assert shares[0] > 8 / SETTINGS.num_items
    assert shares[0] < FOLLOW_SHARE * SUCCESSOR_SHARES[0] / 3


def test_tastes_drift() -> None:
    openings = make_views().filter(pl.col("before").is_null())
    third = ((openings["event_time"] - START_TIME) / timedelta(days=SETTINGS.num_days / 3)).cast(pl.Int64)
    openings = openings.with_columns(third.alias("third"))
    favourite = openings.group_by("user_id", "third").agg(
        pl.col("category").mode().sort().first(), pl.len().alias("num_views")
    )
    pairs = favourite.filter(pl.col("num_views") >= 4).pivot(on="third", index="user_id", values="category")
    both = pairs.drop_nulls(["0", "2"])
    assert both.height > 50
    assert (both["0"] == both["2"]).mean() < 0.2
    same = openings.filter(pl.col("third") == 2).join(favourite.filter(pl.col("third") == 2), on="user_id")
    assert (same["category"] == same["category_right"]).mean() > TASTE_SHARE / 2


def test_users_differ_in_activity() -> None:
    counts = make_events()["user_id"].value_counts()["count"]
    assert counts.quantile(0.9) > 5 * counts.quantile(0.1)


def test_recency_against_the_own_gap_tells_churn() -> None:
    cutoff = START_TIME + timedelta(days=SETTINGS.num_days * 0.7)
    starts = make_events().group_by("session_id").agg(pl.col("user_id").first(), pl.col("event_time").min())
    users = starts.group_by("user_id").agg(
        pl.col("event_time").filter(pl.col("event_time") < cutoff).max().alias("last"),
        pl.col("event_time").filter(pl.col("event_time") < cutoff).min().alias("first"),
        (pl.col("event_time") < cutoff).sum().alias("num_sessions"),
        (pl.col("event_time") >= cutoff).any().alias("returns"),
    )
    regular = users.filter(pl.col("num_sessions") >= 4).with_columns(
        ((pl.lit(cutoff) - pl.col("last")) / ((pl.col("last") - pl.col("first")) / (pl.col("num_sessions") - 1))).alias(
            "gaps"
        )
    )
    silent, recent = regular.filter(pl.col("gaps") > 4), regular.filter(pl.col("gaps") < 1)
    assert min(silent.height, recent.height) > 50
    assert silent["returns"].mean() < 0.25
    assert recent["returns"].mean() > 0.85


def test_some_users_stop() -> None:
    last = make_events().group_by("user_id").agg(pl.col("event_time").max(), pl.len().alias("num_events"))
    active = last.filter(pl.col("num_events") > 40)
    stopped = (active["event_time"] < START_TIME + timedelta(days=SETTINGS.num_days * 0.8)).mean()
    assert CHURN_SHARE / 4 < stopped < CHURN_SHARE


def test_price_belongs_to_the_item() -> None:
    prices = make_events().drop_nulls("item_id").group_by("item_id").agg(pl.col("price").n_unique())
    assert prices["price"].unique().to_list() == [1]
    assert make_events()["price"].min() > 0
    assert generate_events(SETTINGS).schema.field("price").type == pa.float32()
