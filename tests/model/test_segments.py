"""Segments: the adjusted Rand index by hand, groups that are there are found again, and noise is not called stable."""

import json

import numpy as np
import pytest

from model.segments import Segmentation, adjusted_rand, choose_number, fit_once, fit_segments


def make_groups(num_groups: int, users_each: int = 60, scatter: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of length 1 about so many directions, and the group of each."""
    generator = np.random.default_rng(1)
    centres = np.eye(num_groups, 12)
    group = np.repeat(np.arange(num_groups), users_each)
    return (centres[group] + generator.normal(0, scatter, (len(group), 12))).astype(np.float32), group


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], 8 / 33),
        ([0, 0, 0], [0, 0, 0], 1.0),
    ],
)
def test_adjusted_rand_by_hand(first: list[int], second: list[int], expected: float) -> None:
    assert adjusted_rand(np.array(first), np.array(second)) == pytest.approx(expected)


def test_groups_that_are_there_are_found_and_stable() -> None:
    embeddings, group = make_groups(4)
    segmentation, stability = fit_segments(embeddings, None, seed=0, candidates=range(3, 7))
    labels, clarity = segmentation.assign(embeddings)
    assert segmentation.num_segments == 4
    assert adjusted_rand(labels, group) == 1
    assert stability.value == stability.low == stability.high == stability.least == stability.seeds_only == 1
    assert clarity.min() > 0.5


def test_noise_is_not_called_stable() -> None:
    noise = np.random.default_rng(0).normal(size=(300, 30)).astype(np.float32)
    _, stability = fit_segments(noise, 6, seed=0, candidates=())
    assert stability.value < 0.4
    assert stability.low <= stability.value <= stability.high
    assert stability.num_users == 120


def test_a_fit_is_a_function_of_users_and_seed_and_travels_as_json() -> None:
    embeddings, _ = make_groups(3)
    fitted = fit_once(embeddings, 3, [0])
    copy = Segmentation.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(fit_once(embeddings, 3, [0]).centres, fitted.centres)
    np.testing.assert_array_equal(copy.assign(embeddings)[0], fitted.assign(embeddings)[0])
    sizes = np.bincount(fitted.assign(embeddings)[0])
    assert sizes.tolist() == sorted(sizes, reverse=True)


def test_length_of_an_embedding_does_not_matter() -> None:
    embeddings, _ = make_groups(3)
    fitted = fit_once(embeddings, 3, [0])
    np.testing.assert_array_equal(fitted.assign(7 * embeddings)[0], fitted.assign(embeddings)[0])


def test_fewer_distinct_users_than_segments_make_fewer_segments() -> None:
    fitted = fit_once(np.eye(2, dtype=np.float32).repeat(3, axis=0), 5, [0])
    assert fitted.num_segments == 2
    one, clear = fit_once(np.ones((4, 3), np.float32), 3, [0]).assign(np.ones((4, 3), np.float32))
    assert one.tolist() == [0] * 4
    assert clear.tolist() == [1.0] * 4


def test_of_numbers_about_as_stable_the_most_segments_are_taken() -> None:
    assert choose_number({3: 0.90, 4: 0.70, 5: 0.87, 6: 0.84}) == 5
    assert choose_number({}) == 1
