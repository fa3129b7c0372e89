"""Hashing of declared values: stable, in range, and 0 for nothing alone."""

import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.hashing import NUM_NUMERIC_BUCKETS, hash_text, hash_values, numeric_bucket

TEXTS = st.lists(st.none() | st.text(alphabet="abÄ ß9-<", max_size=12), max_size=6)


def strings(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.large_string())


def plain_tokens(text: str | None) -> list[str]:
    words = re.findall(r"[^\W_]+", (text or "").lower())
    marked = [f"<{word}>" for word in words]
    trigrams = [word[place : place + 3] for word in marked for place in range(len(word) - 2)]
    return list(dict.fromkeys([*words, *trigrams]))


def test_rows_of_values_are_the_same_in_every_version() -> None:
    assert hash_values(strings(["red", None, "blue", ""]), 1000).tolist() == [693, 0, 781, 737]
    assert hash_values(pa.array([7, None], pa.int32()), 1000).tolist() == [643, 0]


@given(values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)), num_rows=st.integers(2, 50))
@settings(deadline=None, max_examples=30)
def test_only_what_is_missing_has_row_0(values: list[int | None], num_rows: int) -> None:
    rows = hash_values(pa.array(values, pa.int64()), num_rows)
    assert rows.dtype == np.int32
    assert [row == 0 for row in rows] == [value is None for value in values]
    assert (rows < num_rows).all()


@given(texts=TEXTS, num_tokens=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_text_has_the_rows_of_its_first_different_tokens(texts: list[str | None], num_tokens: int) -> None:
    rows = hash_text(strings(texts), num_tokens, 1 << 15)
    assert rows.shape == (len(texts), num_tokens)
    for text, found in zip(texts, rows, strict=True):
        expected = hash_values(strings(plain_tokens(text)[:num_tokens]), 1 << 15).tolist()
        assert found.tolist() == expected + [0] * (num_tokens - len(expected))


def test_a_part_of_a_column_is_hashed_as_its_values_are() -> None:
    texts = strings(["one", "two", "three"])
    assert (hash_text(texts.slice(1), 5, 100) == hash_text(texts, 5, 100)[1:]).all()


@pytest.mark.parametrize(
    ("number", "bucket"),
    [(math.nan, 0), (0.0, 193), (1.0, 258), (-1.0, 128), (2**0.25 + 1e-6, 259), (1e-30, 194), (1e30, 385), (-1e30, 1)],
)
def test_numbers_fall_into_quarter_octaves_of_either_sign(number: float, bucket: int) -> None:
    assert numeric_bucket(np.array([number])).tolist() == [bucket]


@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1))
@settings(max_examples=50)
def test_buckets_rise_with_numbers(numbers: list[float]) -> None:
    buckets = numeric_bucket(np.sort(np.array(numbers)))
    assert (np.diff(buckets) >= 0).all()
    assert 1 <= buckets.min() <= buckets.max() < NUM_NUMERIC_BUCKETS
