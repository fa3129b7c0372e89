"""Profiles: what users have, what is new to them, and what of it is told, on literal events."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_io.item_facts import ItemFacts, ItemLabels, log_price_sums, mean_log_prices
from data_io.novelty import measure_novelty, recent_events
from data_io.preferences import Events, median_prices, price_bands, share_of, shares_of_terms, top_of_texts, top_values
from data_io.profiles import align_scores, any_event_tasks, profile_table
from data_io.schema import DataContractError
from data_io.sequences import Sequences
from data_io.signs import largest_burst, measure_signs

HOUR_US = 3_600_000_000
NAN = float("nan")


def make_events(
    users: list[list[tuple[float, int]]],
    prices: list[float] | None = None,
    facts: ItemFacts | None = None,
    **columns: Any,
) -> Events:
    """Events of users, each an hour since 1970 and an item; all of action 2."""
    flat = [event for events in users for event in events]
    lengths = [len(events) for events in users]
    sequences = Sequences(
        user_id=pa.array([f"u{row}" for row in range(len(users))]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_index=np.array([item for _, item in flat], np.int32),
        action_index=np.full(len(flat), 2, np.int16),
        event_time=np.array([int(hour * HOUR_US) for hour, _ in flat], np.int64),
    )
    features = {name: pl.Series(name, values, pl.String) for name, values in columns.items()}
    return Events.of(sequences, None if prices is None else np.array(prices), features, make_facts())


def make_facts(**changes: Any) -> ItemFacts:
    """Six items: padding, unknown, two of category a and one of b, one without any."""
    labels = ItemLabels(code=np.array([-1, -1, 0, 0, 1, -1], np.int32), names=["a", "b"])
    content: dict[str, Any] = {
        "category": labels,
        "brand": ItemLabels.none(6),
        "seller": ItemLabels.none(6),
        "log_price": np.log([NAN, NAN, 1.0, 4.0, 2.0, NAN]),
        "num_events": np.array([0, 0, 8, 4, 2, 2]),
    }
    return ItemFacts(**content | changes)


def test_labels_are_codes_of_sorted_names_and_none_has_none() -> None:
    labels = ItemLabels.of(pl.Series(["y", None, "x", "y"]))
    assert labels.names == ["x", "y"]
    assert labels.code.tolist() == [-1, -1, 1, -1, 0, 1]
    assert not ItemLabels.none(3).is_known


def test_relative_prices_are_held_against_the_median_of_the_category() -> None:
    relative = make_facts().relative_prices()
    np.testing.assert_allclose(relative[2:5], [-np.log(2), np.log(2), 0])
    assert np.isnan(relative[[0, 1, 5]]).all()


def test_mean_log_prices_add_up_over_parts() -> None:
    parts = [
        log_price_sums(np.array([2, 2, 3, 1]), np.array([1.0, 4.0, 0.0, 9.0])),
        log_price_sums(np.array([2, 4]), np.array([2.0, NAN])),
    ]
    found = mean_log_prices(parts, 5)
    assert found[2] == pytest.approx(np.log(2.0))
    assert np.isnan(found[[0, 1, 3, 4]]).all()


def test_top_values_come_by_frequency_then_code_and_nothing_is_null() -> None:
    user, code = np.array([0, 0, 0, 0, 2, 2]), np.array([1, 1, 0, 2, -1, -1])
    assert top_values(user, code, ["a", "b", "c"], 4, 2).to_pylist() == [["b", "a"], None, None, None]
    assert top_values(user, code, range(3), 4, 1).to_pylist() == [[1], None, None, None]
    texts = pl.Series(["tv", None, "app", "app", None, None])
    assert top_of_texts(user, texts, 3, 5).to_pylist() == [["app", "tv"], None, None]


def test_prices_of_events_go_before_those_of_items_and_fall_into_bands() -> None:
    events = make_events([[(0, 2), (1, 3), (2, 4)], [(0, 5)]], prices=[3.0, NAN, 0.0, NAN])
    np.testing.assert_allclose(events.price, [3.0, 4.0, 2.0, NAN])
    medians = median_prices(events, np.ones(4, bool))
    np.testing.assert_allclose(medians, [3.0, NAN])
    assert price_bands(medians, [1.0, 2.0, 3.0, 4.0]).to_pylist() == [4, None]
    assert price_bands(medians, []).to_pylist() == [None, None]


def test_hours_and_weekdays_are_utc_and_the_epoch_was_a_thursday() -> None:
    events = make_events([[(0, 2), (23.5, 2), (24, 2), (24 * 4, 2)]])
    assert events.hour.tolist() == [0, 23, 0, 0]
    assert events.weekday.tolist() == [3, 3, 4, 0]
    shares = share_of(events.user, events.weekday == 3, np.ones(4, bool), 2)
    np.testing.assert_allclose(shares, [0.5, NAN])


def test_shares_of_terms_add_up_to_one_in_each_group_of_a_user() -> None:
    events = make_events([[(0, 2), (1, 3), (2, 4), (3, 5)], [(7, 4)]], device=["tv", "tv", None, "app", "tv"])
    shares = shares_of_terms(events, make_facts(), ["view"], np.array([True, False]))
    assert set(shares["user"]) == {0}
    totals = dict(shares.group_by("group").agg(pl.col("share").sum()).iter_rows())
    assert totals == {name: pytest.approx(1) for name in ("category", "action", "time", "day", "device")}
    of_category = dict(shares.filter(pl.col("group") == "category").select("term", "share").iter_rows())
    assert of_category == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_novelty_is_of_the_newest_share_of_known_events() -> None:
    many = [(0, 2), (1, 3), (2, 2), (3, 1), (4, 2), (5, 4)]  # of five known events the newest two are items 2 and 4
    events = make_events([many, [(0, 2), (1, 3)]])
    assert np.flatnonzero(recent_events(events, 0.25)).tolist() == [4, 5]
    novelty = measure_novelty(events, make_facts(), 0.25)
    np.testing.assert_allclose(novelty.new_items, [0.5, NAN])
    np.testing.assert_allclose(novelty.new_categories, [0.5, NAN])
    np.testing.assert_allclose(novelty.self_information, [(1 + 3) / 2, NAN])


def test_bursts_are_the_most_events_of_one_code_within_a_day() -> None:
    users = [[(0, 2), (1, 2), (23, 2), (24, 2), (30, 3)], [(0, 2)], []]
    events = make_events(users)
    everything = np.ones(6, bool)
    assert largest_burst(events, events.sequences.item_index, everything).tolist() == [3, 1, 0]
    assert largest_burst(events, events.sequences.item_index, ~everything).tolist() == [0, 0, 0]


def test_a_clockwork_has_no_variation_and_a_basket_is_one_moment() -> None:
    regular = [(hour, 2) for hour in range(12)]
    basket = [(5, 2), (5, 3), (5, 4)]
    signs = measure_signs(make_events([regular, basket]), ItemLabels.none(6), None, 1)
    assert signs.gap_variation[0] == pytest.approx(0)
    assert np.isnan(signs.gap_variation[1])
    assert signs.moments_per_day.tolist() == [12, 1]
    assert np.isnan(signs.action_share).all(), "a log of one action says nothing"
    assert np.isnan(signs.seller_burst).all(), "sellers are not known"


def test_events_of_one_seller_burst_together() -> None:
    seller = ItemLabels(code=np.array([-1, -1, 0, 0, 1, -1], np.int32), names=["s", "t"])
    signs = measure_signs(make_events([[(0, 2), (1, 3), (2, 4)]]), seller, np.array([2]), 2)
    assert signs.item_burst.tolist() == [1]
    assert signs.seller_burst.tolist() == [2]
    assert signs.action_share.tolist() == [1]


def test_a_task_of_any_event_gives_churn_and_others_do_not() -> None:
    settings = {
        "any": {"kind": "event", "actions": None},
        "every": {"kind": "event", "actions": ["view", "buy", "rate"]},
        "some": {"kind": "event", "actions": ["buy"]},
        "wine": {"kind": "event", "actions": None, "items": {"column": "category", "is_in": ["wine"]}},
        "gone": {"kind": "churn", "actions": None},
    }
    tasks = {name: {"settings": asked} for name, asked in settings.items()}
    assert any_event_tasks(tasks, ["view", "buy"]) == ["any", "every"]
    scores = pa.table({"user_id": ["a"], "score_any": [0.25], "score_some": [0.5]})
    table = profile_table({"user_id": pa.array(["a"]), "x": np.array([NAN])}, scores, ["any", "every"])
    assert table.to_pylist() == [{"user_id": "a", "x": None, "score_any": 0.25, "score_some": 0.5, "churn_any": 0.75}]


def test_scores_of_other_users_are_refused() -> None:
    scores = pa.table({"user_id": pa.array(["b", "a"], pa.large_string()), "score_x": [0.1, 0.2]})
    assert align_scores(pa.array(["a", "b"]), scores, "s").column("score_x").to_pylist() == [0.2, 0.1]
    for users in (["a", "c"], ["a"]):
        with pytest.raises(DataContractError, match=r"s: scores of 2 users for .* run clickformer score_users on this"):
            align_scores(pa.array(users), scores, "s")
