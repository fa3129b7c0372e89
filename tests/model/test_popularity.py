"""Popularity of items against numbers worked out by hand."""

import math

import numpy as np
import pytest

from model.popularity import GROUPS, coverage, mean_over, popularity_groups, rank_percentiles, self_information

COUNTS = np.array([0, 0, 1, 50, 0, 30, 10, 9])
"""Of padding, unknown and six items: 100 events."""


def test_head_holds_half_of_the_events_and_middle_up_to_nine_tenths() -> None:
    names = [GROUPS[group] for group in popularity_groups(COUNTS)]
    assert names[2:] == ["tail", "head", "tail", "middle", "middle", "tail"]


def test_an_item_that_crosses_a_border_is_on_the_popular_side_of_it() -> None:
    counts = np.array([0, 0, 40, 40, 15, 5])
    assert [GROUPS[group] for group in popularity_groups(counts)][2:] == ["head", "head", "middle", "tail"]


def test_without_events_every_item_is_tail() -> None:
    assert set(popularity_groups(np.zeros(5, np.int64)).tolist()) == {2}


def test_percentiles_count_equal_items_half_and_their_mean_is_fifty() -> None:
    found = rank_percentiles(np.array([0, 0, 1, 5, 1, 9]))
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [25, 62.5, 25, 87.5]
    assert found[2:].mean() == 50


def test_information_is_in_bits_and_finite_without_events() -> None:
    found = self_information(np.array([0, 0, 4, 2, 2, 0]))
    assert found[2:].tolist() == [1, 2, 2, 3]


def test_coverage_and_means_are_over_items_and_over_places() -> None:
    listed = np.array([0, 0, 3, 1, 0, 0])
    assert coverage(listed) == 0.5
    assert mean_over(listed, np.array([np.nan, np.nan, 1.0, 5.0, 99.0, 99.0])) == pytest.approx(2)
    assert math.isnan(mean_over(np.zeros(6), listed))
    assert math.isnan(coverage(np.zeros(2)))
