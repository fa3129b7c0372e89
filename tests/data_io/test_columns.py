"""Encoded columns: buckets and hashes as naive loops find them, the same for any other values beside them."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.buckets import hash64
from data_io.columns import (
    NUM_CATEGORY_ROWS,
    NUM_NUMERIC_ROWS,
    NUM_TOKEN_ROWS,
    TOKENS_PER_TEXT,
    category_row,
    encode_column,
    missing_column,
    numeric_bucket,
    padding_rows,
    tokens_of,
)

NUMBERS = st.floats(width=32) | st.integers(-5, 5).map(float)
TEXTS = st.none() | st.text(max_size=12) | st.sampled_from(["red shoes", "Red SHOES", "", "!?", "a" * 40])


def bucket_slowly(number: float) -> int:
    """Its place among missing, zero, positive numbers from 1/64 and negative ones from -1, by quarter-octaves."""
    if math.isnan(number) or number == 0:
        return 0 if math.isnan(number) else 1
    first, lowest, count = (2, -6, 104) if number > 0 else (106, 0, 56)
    above = [step for step in range(count) if abs(number) >= 2.0 ** (lowest + step / 4)]
    return first + max(above, default=0)


def row_slowly(text: str | None, num_rows: int) -> int:
    return 0 if text is None else 1 + int(hash64(pa.array([text]))[0]) % (num_rows - 1)


def texts(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.large_string())


@given(st.lists(NUMBERS, max_size=20))
@settings(max_examples=60, deadline=None)
def test_numbers_fall_into_the_buckets_a_naive_loop_finds(numbers: list[float]) -> None:
    found = numeric_bucket(np.array(numbers, np.float32))
    assert found.tolist() == [bucket_slowly(number) for number in numbers]
    assert found.max(initial=0) < NUM_NUMERIC_ROWS


@pytest.mark.parametrize(
    ("number", "bucket"),
    [
        (math.nan, 0), (0.0, 1), (-0.0, 1), (1e-30, 2), (1 / 64, 2), (1.0, 26), (1.18, 26), (1.19, 27), (2.0, 30),
        (1e6, 105), (math.inf, 105), (-0.1, 106), (-1.0, 106), (-2.0, 110), (-math.inf, 161),
    ],
)  # fmt: skip
def test_buckets_of_known_numbers(number: float, bucket: int) -> None:
    assert numeric_bucket(np.array([number], np.float32)).tolist() == [bucket]


@given(st.lists(NUMBERS.filter(lambda number: number > 0), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_a_larger_price_has_no_smaller_bucket(numbers: list[float]) -> None:
    assert (np.diff(numeric_bucket(np.sort(np.array(numbers, np.float32))).astype(int)) >= 0).all()


@given(st.lists(TEXTS, max_size=8))
@settings(max_examples=40, deadline=None)
def test_categories_have_the_row_of_their_hash(values: list[str | None]) -> None:
    found = category_row(texts(values))
    assert found.tolist() == [row_slowly(value, NUM_CATEGORY_ROWS) for value in values]


@given(st.lists(TEXTS, max_size=8), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_texts_have_the_rows_of_their_tokens(values: list[str | None], begin: int) -> None:
    """Also in the middle of a longer array, as the lists of a store's part are read."""
    array = texts([*["before"] * begin, *values]).slice(begin)
    column = encode_column("text", array)
    found = column.at(np.arange(len(values)), np.ones(len(values), bool))
    for value, rows in zip(values, found.tolist(), strict=True):
        tokens = [] if value is None else tokens_of(value)
        expected = [row_slowly(token, NUM_TOKEN_ROWS) for token in tokens]
        assert rows == expected + [0] * (TOKENS_PER_TEXT - len(tokens))


def test_tokens_are_words_and_then_trigrams_in_lower_case() -> None:
    assert tokens_of("Red é-red") == ["red", "é", "<re", "ed>", "<é>"]
    assert tokens_of(" ... ") == []
    assert len(tokens_of("a quick brown fox jumps over the lazy dog and rests")) == TOKENS_PER_TEXT


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numeric", pa.array([1.5, None, 3.0], pa.float32())),
        ("categorical", texts(["web", None, "app"])),
        ("text", texts(["lamp", None, "red lamp"])),
    ],
)
def test_missing_and_padding_are_row_0_and_a_value_does_not_depend_on_others(kind: str, values: pa.Array) -> None:
    column = encode_column(kind, values)
    places, real = np.array([[0, 1, 2], [2, 0, 0]]), np.array([[True, True, True], [True, False, False]])
    found = column.at(places, real)
    alone = encode_column(kind, values.slice(2)).at(np.array([[0]]), np.array([[True]]))
    assert found.shape == (2, 3, TOKENS_PER_TEXT)[: found.ndim]
    assert found.any(axis=-1).tolist() if kind == "text" else (found > 0).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert found[0, 2].tolist() == found[1, 0].tolist() == alone[0, 0].tolist()
    assert not missing_column(kind, 3).at(places, real).any()
    assert padding_rows(kind, 2).shape == (2, 1, *found.shape[2:])
    nothing = encode_column(kind, values.slice(3))
    assert nothing.code.shape == (0,)
