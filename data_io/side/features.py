"""Features of items: the item table as row numbers and vectors, for a network to read.

Nothing is fitted: values are hashed, numbers fall into fixed buckets. Invariant: row r of every array belongs to the
item of index r; padding and unknown have nothing, and neither has an item of which nothing is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.config import SettingsError
from data_io.hashing import NUM_NUMERIC_BUCKETS, hash_text, hash_values, numeric_bucket
from data_io.schema import FIRST_INDEX
from data_io.side.items import BRAND, CATEGORY, PRICE_BUCKET, TITLE

VALUE_ROWS: Final = 1 << 14
"""Rows of a table of hashed values: brands, levels of categories, categorical features."""
TEXT_ROWS: Final = 1 << 15
"""Rows of a table of hashed words and trigrams."""
TEXT_TOKENS: Final = 24
"""Most tokens of a text."""
CATEGORY_LEVELS: Final = 8
"""Most levels of a category path; deeper ones are left out."""
_LEVEL_MARK: Final = "\x1f"

_FORMS: Final = {TITLE: "text", CATEGORY: "path", BRAND: "categorical", PRICE_BUCKET: "bucket"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeature:
    """One feature of items, and the shape it has for a network; JSON content by `dataclasses.asdict`."""

    name: str
    form: Literal["categorical", "path", "text", "numeric", "bucket", "vector"]
    """What becomes of its column."""
    width: int
    """Codes of an item, or numbers of its vector."""
    num_rows: int
    """Rows of the table its codes point into, 0 for nothing included; 0 for a vector, which has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeatures:
    """What is known of the items of a vocabulary, padding and unknown included."""

    num_rows: int
    """V, padding and unknown included."""
    values: dict[str, np.ndarray]
    """By feature: codes [V, K] int32, 0 where there is none, or vectors [V, M] float32 of length 1 or 0."""


def choose_features(
    names: Sequence[str], declared: Mapping[str, str], price_edges: Sequence[float], vector_sizes: Mapping[str, int]
) -> tuple[ItemFeature, ...]:
    """The features of these names with their shapes.

    Args:
        names: as the settings have them.
        declared: features of the item table, each with what it is declared as.
        price_edges: between the price buckets of the store.
        vector_sizes: numbers in a vector, by feature.

    Raises:
        SettingsError: a name stands there twice, or the item table has no such feature.
    """
    known = _FORMS | dict(declared)
    for place, name in enumerate(names):
        if name not in known or name in names[:place]:
            fault = "which stands there twice" if name in known else "which the item table of the store has not"
            raise SettingsError(f"encoder.item_features names {name}, {fault}; there are {', '.join(known)}")
    return tuple(_shape(name, known[name], len(price_edges), vector_sizes) for name in names)


def _shape(name: str, form: str, num_edges: int, vector_sizes: Mapping[str, int]) -> ItemFeature:
    match form:
        case "categorical":
            return ItemFeature(name=name, form=form, width=1, num_rows=VALUE_ROWS)
        case "path":
            return ItemFeature(name=name, form=form, width=CATEGORY_LEVELS, num_rows=VALUE_ROWS)
        case "text":
            return ItemFeature(name=name, form=form, width=TEXT_TOKENS, num_rows=TEXT_ROWS)
        case "numeric":
            return ItemFeature(name=name, form=form, width=1, num_rows=NUM_NUMERIC_BUCKETS)
        case "bucket":
            return ItemFeature(name=name, form=form, width=1, num_rows=num_edges + 2)
        case "vector":
            return ItemFeature(name=name, form=form, width=vector_sizes.get(name, 0), num_rows=0)
        case _:
            raise SettingsError(f"items.features declares {name} as {form}, which no network can read")


def encode_items(table: pa.Table, features: Sequence[ItemFeature]) -> ItemFeatures:
    """Rows of the item table in the shape of the features, after two empty rows for padding and unknown.

    Args:
        table: one row an item, in index order; of a part of the vocabulary or all of it.
        features: what is taken of it.

    Raises:
        SettingsError: the table lacks a feature, or its vectors have another length.
    """
    missing = [feature.name for feature in features if feature.name not in table.column_names]
    if missing:
        raise SettingsError(
            f"the item table has no {missing[0]} any more, which the network reads; build the store with it"
        )
    known = {feature.name: _encode(table.column(feature.name).combine_chunks(), feature) for feature in features}
    values = {name: np.pad(rows, ((FIRST_INDEX, 0), (0, 0))) for name, rows in known.items()}
    return ItemFeatures(num_rows=table.num_rows + FIRST_INDEX, values=values)


def _encode(column: Any, feature: ItemFeature) -> np.ndarray:
    match feature.form:
        case "categorical":
            return hash_values(column, feature.num_rows)[:, None]
        case "path":
            return _path_codes(column, feature)
        case "text":
            return hash_text(column, feature.width, feature.num_rows)
        case "numeric":
            return numeric_bucket(column.to_numpy(zero_copy_only=False))[:, None]
        case "bucket":
            buckets = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
            return np.minimum(buckets, feature.num_rows - 1)[:, None]
        case "vector":
            return _unit_vectors(column, feature)


def _path_codes(paths: pa.LargeListArray, feature: ItemFeature) -> np.ndarray:
    """[N, K] one code for each level, of the whole path down to it; paths are few, so each is hashed once."""
    joined = pc.call_function("binary_join", [paths, pa.scalar(_LEVEL_MARK, pa.large_string())])
    encoded = joined.dictionary_encode()
    known = [path.split(_LEVEL_MARK)[: feature.width] for path in encoded.dictionary.to_pylist()]
    codes = np.zeros((len(known) + 1, feature.width), np.int32)
    for level in range(feature.width):
        rows = [row for row, path in enumerate(known) if len(path) > level]
        prefixes = [_LEVEL_MARK.join(known[row][: level + 1]) for row in rows]
        codes[rows, level] = hash_values(pa.array(prefixes, pa.large_string()), feature.num_rows)
    return codes[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)]


def _unit_vectors(vectors: pa.LargeListArray, feature: ItemFeature) -> np.ndarray:
    """[N, M] float32 vectors of length 1; zero where there is none."""
    known = vectors.is_valid().to_numpy(zero_copy_only=False)
    flat = vectors.drop_null().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != known.sum() * feature.width:
        raise SettingsError(f"vectors of item feature {feature.name} no longer have {feature.width} numbers each")
    rows = np.zeros((len(known), feature.width), np.float32)
    there = flat.reshape(-1, feature.width) if feature.width else flat.reshape(int(known.sum()), 0)
    rows[known] = there / np.maximum(np.linalg.norm(there, axis=1, keepdims=True), 1e-12)
    return rows
