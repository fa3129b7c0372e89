"""Price response: the slope is that of a plain regression over the catalogue, for every user."""

import numpy as np
import pytest

from data_io.item_facts import ItemFacts, ItemLabels
from model.price_response import cheap_shares, price_direction, price_sensitivities

NAN = float("nan")


@pytest.fixture(scope="module")
def facts() -> ItemFacts:
    generator = np.random.default_rng(0)
    size = 60
    none = ItemLabels.none(size)
    code = np.concatenate([[-1, -1], generator.integers(0, 3, size - 2)]).astype(np.int32)
    price = np.concatenate([[NAN, NAN], generator.normal(size=size - 3), [NAN]])
    events = np.concatenate([[0, 0], generator.integers(1, 50, size - 2)])
    category = ItemLabels(code=code, names=["a", "b", "c"])
    return ItemFacts(category=category, brand=none, seller=none, log_price=price, num_events=events)


def test_the_direction_gives_the_slope_of_a_weighted_regression(facts: ItemFacts) -> None:
    generator = np.random.default_rng(1)
    vectors, users = generator.normal(size=(facts.num_items, 4)), generator.normal(size=(5, 4))
    direction = price_direction(vectors, facts)
    used = (facts.category.code >= 0) & ~np.isnan(facts.log_price)
    code, weight = facts.category.code[used], np.sqrt(facts.num_events[used])
    design = np.column_stack([facts.log_price[used], np.log(facts.num_events[used]), np.eye(3)[code]]) * weight[:, None]
    slopes = [np.linalg.lstsq(design, (vectors[used] @ user) * weight, rcond=None)[0][0] for user in users]
    assert direction is not None
    np.testing.assert_allclose(users @ direction, slopes, rtol=1e-9)
    mean = users.mean(axis=0)
    sensitivity = price_sensitivities(users, mean, direction)
    np.testing.assert_allclose(sensitivity, -np.log(2) * (np.array(slopes) - np.mean(slopes)), rtol=1e-9)


def test_who_is_drawn_to_cheap_items_is_price_sensitive(facts: ItemFacts) -> None:
    vectors = np.nan_to_num(facts.log_price)[:, None]
    direction = price_direction(vectors, facts)
    cheap, dear = price_sensitivities(np.array([[-1.0], [1.0]]), np.zeros(1), direction)
    assert cheap == pytest.approx(np.log(2))
    assert dear == pytest.approx(-np.log(2))


def test_without_prices_in_a_category_there_is_no_direction(facts: ItemFacts) -> None:
    unknown = np.full(facts.num_items, NAN)
    bare = ItemFacts(
        category=facts.category, brand=facts.brand, seller=facts.seller, log_price=unknown, num_events=facts.num_events
    )
    assert price_direction(np.ones((facts.num_items, 2)), bare) is None
    assert np.isnan(price_sensitivities(np.ones((2, 2)), np.ones(2), None)).all()


def test_cheap_shares_count_events_with_a_relative_price() -> None:
    shares = cheap_shares(np.array([0, 0, 0, 2]), np.array([-1.0, 0.5, NAN, NAN]), 3)
    np.testing.assert_allclose(shares, [0.5, NAN, NAN])
