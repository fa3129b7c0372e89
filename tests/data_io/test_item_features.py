"""Items as codes and vectors, against values hashed one by one."""

import numpy as np
import pyarrow as pa
import pytest

from data_io.config import SettingsError
from data_io.hashing import hash_text, hash_values, numeric_bucket
from data_io.side.features import CATEGORY_LEVELS, TEXT_TOKENS, ItemFeatures, choose_features, encode_items

DECLARED = {"colour": "categorical", "weight": "numeric", "about": "text", "picture": "vector"}
NAMES = ("title", "category", "brand", "price_bucket", *DECLARED)
TABLE = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "title": pa.array(["Red Spade", None, "rake"], pa.large_string()),
        "category": pa.array([["x", "y"], None, ["x", "z", "y"]], pa.large_list(pa.large_string())),
        "brand": pa.array(["B", None, "B"], pa.large_string()),
        "price_bucket": pa.array([2, 0, 9], pa.int16()),
        "colour": pa.array([None, None, "red"], pa.large_string()),
        "weight": pa.array([1.5, None, -2.0], pa.float32()),
        "about": pa.array(["for gardens", None, ""], pa.large_string()),
        "picture": pa.array([[3.0, 4.0], None, [0.0, 0.0]], pa.large_list(pa.float32())),
    }
)


def encode(*names: str) -> ItemFeatures:
    return encode_items(TABLE, choose_features(names, DECLARED, [1.0, 2.0, 3.0], {"picture": 2}))


def code(text: str) -> int:
    return int(hash_values(pa.array([text], pa.large_string()), 1 << 14)[0])


def test_rows_are_those_of_the_vocabulary_and_what_is_missing_is_zero() -> None:
    known = encode(*NAMES)
    assert list(known.values) == list(NAMES)
    assert known.num_rows == 5
    for rows in known.values.values():
        assert len(rows) == 5
        assert not rows[[0, 1, 3]].any(), "padding, unknown, and an item of which nothing is known"
        assert rows.dtype == (np.float32 if rows is known.values["picture"] else np.int32)


def test_codes_are_those_of_the_values() -> None:
    values = encode(*NAMES).values
    assert values["brand"].tolist() == [[0], [0], [code("B")], [0], [code("B")]]
    assert values["colour"][4] == code("red")
    assert values["price_bucket"].tolist() == [[0], [0], [2], [0], [4]], "a bucket that has no row has the last"
    assert values["weight"][2:, 0].tolist() == numeric_bucket(np.array([1.5, np.nan, -2.0])).tolist()
    assert (values["title"][2:] == hash_text(TABLE.column("title").combine_chunks(), TEXT_TOKENS, 1 << 15)).all()


def test_levels_of_a_category_are_whole_paths() -> None:
    first, _, second = encode("category").values["category"][2:].tolist()
    assert first[0] == second[0] == code("x")
    assert first[1] != second[2], "y below x is not y below z"
    assert first[2:] == [0] * (CATEGORY_LEVELS - 2)
    assert second[3:] == [0] * (CATEGORY_LEVELS - 3)
    assert len({*first[:2], *second[1:3]}) == 4


def test_vectors_have_length_1_or_are_zero() -> None:
    np.testing.assert_allclose(encode("picture").values["picture"][2:], [[0.6, 0.8], [0, 0], [0, 0]])


def test_a_part_of_the_table_is_encoded_as_in_the_whole() -> None:
    features = choose_features(NAMES, DECLARED, [1.0, 2.0, 3.0], {"picture": 2})
    whole, part = encode_items(TABLE, features), encode_items(TABLE.slice(1), features)
    for name, rows in part.values.items():
        assert (rows[2:] == whole.values[name][3:]).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["price"], "names price, which the item table of the store has not; there are title, category, brand, price_"),
        (["brand", "brand"], "names brand, which stands there twice"),
    ],
)
def test_a_name_that_cannot_be_is_told(names: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_features(names, DECLARED, [], {})


def test_a_table_that_lost_a_feature_or_changed_its_vectors_is_refused() -> None:
    with pytest.raises(SettingsError, match="has no brand any more"):
        encode_items(TABLE.drop_columns(["brand"]), choose_features(["brand"], {}, [], {}))
    with pytest.raises(SettingsError, match="picture no longer have 3 numbers"):
        encode_items(TABLE, choose_features(["picture"], DECLARED, [], {"picture": 3}))
