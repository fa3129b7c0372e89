"""Encoded columns: buckets and hashes of the values, the same for any other values beside them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_io.columns import (
    NUM_CATEGORY_ROWS,
    NUM_TOKEN_ROWS,
    TOKENS_PER_TEXT,
    encode_column,
    missing_column,
    padding_rows,
)
from data_io.hashing import hash_text, hash_values

TEXTS = st.none() | st.text(max_size=12) | st.sampled_from(["red shoes", "Red SHOES", "", "!?", "a" * 40])


def texts(values: list[str | None]) -> pa.Array:
    return pa.array(values, pa.large_string())


@given(st.lists(TEXTS, max_size=8), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_categories_and_texts_have_the_rows_of_their_hashes(values: list[str | None], begin: int) -> None:
    """Also in the middle of a longer array, as the lists of a store's part are read."""
    array = texts([*["before"] * begin, *values]).slice(begin)
    assert encode_column("categorical", array).code.tolist() == hash_values(array, NUM_CATEGORY_ROWS).tolist()
    found = encode_column("text", array).at(np.arange(len(values)), np.ones(len(values), bool))
    assert found.tolist() == hash_text(texts(values), TOKENS_PER_TEXT, NUM_TOKEN_ROWS).tolist()


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
