"""Names of segments: only what is clearly and much more frequent among users of a segment."""

import numpy as np
import polars as pl

from data_io.segment_names import describe_segments, name_segment, over_represented


def make_shares(
    of_segment: list[dict[str, float]], users_each: int, noise: float = 0.01
) -> tuple[pl.DataFrame, np.ndarray]:
    """Shares of users of each segment, scattered about those given."""
    generator, rows = np.random.default_rng(0), []
    for number, shares in enumerate(of_segment):
        for user in range(number * users_each, (number + 1) * users_each):
            own = {term: max(share + generator.normal(0, 0.01), 1e-4) for term, share in shares.items()}
            rows += [(user, "category", term, value / sum(own.values())) for term, value in own.items()]
    frame = pl.DataFrame(rows, schema=["user", "group", "term", "share"], orient="row")
    return frame, np.repeat(np.arange(len(of_segment), dtype=np.int32), users_each)


def test_terms_that_are_clearly_more_frequent_are_found_with_their_lift() -> None:
    shares, segment = make_shares([{"tea": 0.6, "salt": 0.4}, {"tea": 0.2, "salt": 0.4, "oil": 0.4}], 40)
    first, second = over_represented(shares, segment, 2)
    assert [term["term"] for term in first] == ["tea"]
    assert [term["term"] for term in second] == ["oil"]
    assert abs(first[0]["share"] - 0.6) < 0.02
    assert abs(first[0]["lift"] - 1.5) < 0.05


def test_a_single_heavy_user_names_no_segment() -> None:
    shares, segment = make_shares([{"tea": 0.5, "salt": 0.5}] * 2, 40)
    odd = pl.DataFrame({"user": [0], "group": ["category"], "term": ["oil"], "share": [1.0]})
    shares = pl.concat([shares.filter(pl.col("user") != 0), odd])
    assert over_represented(shares, segment, 2) == [[], []]


def test_segments_are_described_and_no_two_share_a_name() -> None:
    shares, segment = make_shares([{"tea": 1.0}] * 2, 20)
    events, recency = np.repeat([100.0, 100.0], 20), np.full(40, 3.0)
    facts = describe_segments(shares, segment, events, recency, 2)
    assert [own.name for own in facts] == ["like all users", "like all users (2)"]
    assert [own.share for own in facts] == [0.5, 0.5]


def test_a_name_says_activity_categories_and_one_thing_more() -> None:
    terms = [
        {"group": "action", "term": "cart"},
        {"group": "category", "term": "TEA"},
        {"group": "category", "term": "OIL"},
        {"group": "category", "term": "SALT"},
        {"group": "device", "term": "app"},
    ]
    assert name_segment(terms, (200, 2), (100, 2)) == "frequent; tea, oil; more cart"
    assert name_segment([], (50, 30), (100, 2)) == "lapsed, occasional"
    assert name_segment(terms[4:], (100, 2), (100, 2)) == "device app"
