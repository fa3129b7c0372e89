"""From the item table of a store to what a network knows of items: which features, at first, and of items that follow.

Read by the driver to refuse what cannot be, and by every worker that makes or loads a network. Invariant: what a model
reads of an item is what it was trained to read, whatever the settings say by then.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX
from data_io.side.features import ItemFeature, choose_features, encode_items
from data_io.side.items import PRICE_BUCKET
from data_io.store import SequenceStore
from model.checkpoint import SavedModel
from model.encoder import ClickformerEncoder
from model.item_features import FeaturedItemTable


def find_features(store: SequenceStore, names: Sequence[str]) -> list[dict[str, Any]]:
    """The features of these names as a network's config has them.

    Args:
        store: with an item table.
        names: as the settings have them; none gives none.

    Raises:
        SettingsError: there is no item table, it has no such feature, or no item has it.
    """
    if not names:
        return []
    store.check_items()
    about = store.manifest["items"]
    declared, facts = about["used"]["settings"]["features"], about["facts"]
    features = choose_features(names, declared, facts["price_edges"], facts["vector_sizes"])
    light = [feature.name for feature in features if feature.form != "vector"]
    bare = [name for name in light if _is_bare(store.read_items([name]).column(name), name)]
    bare += [feature.name for feature in features if not feature.width]
    if bare:
        raise SettingsError(f"encoder.item_features names {bare[0]}, but no item of {store.url} has one")
    return [asdict(feature) for feature in features]


def _is_bare(column: pa.ChunkedArray, name: str) -> bool:
    if name == PRICE_BUCKET:
        return not column.to_numpy().any()
    return column.null_count == len(column)


def tell_features(encoder: ClickformerEncoder, store: SequenceStore, num_events: np.ndarray) -> None:
    """Give a fresh encoder what its features say of every item; nothing where it reads none.

    Args:
        encoder: for the vocabulary of the store.
        store: with an item table.
        num_events: [V] training events of each item.
    """
    table = encoder.item_table
    if isinstance(table, FeaturedItemTable):
        features = _features(encoder)
        items = store.read_items([feature.name for feature in features])
        table.set_items(encode_items(items, features), num_events)


def with_new_items(saved: SavedModel, store: SequenceStore) -> SavedModel:
    """The model with the items that came into the store since it was trained, if it reads features of items.

    Raises:
        SettingsError: the store no longer has the features.
    """
    num_known, encoder = saved.vocabulary.size, saved.encoder
    if not isinstance(encoder.item_table, FeaturedItemTable) or store.vocabulary.size <= num_known:
        return saved
    features = _features(encoder)
    items = store.read_items([feature.name for feature in features]).slice(num_known - FIRST_INDEX)
    encoder.add_items(encode_items(items, features))
    return replace(saved, vocabulary=store.vocabulary)


def _features(encoder: ClickformerEncoder) -> list[ItemFeature]:
    return [ItemFeature(**fields) for fields in encoder.config.item_features]
