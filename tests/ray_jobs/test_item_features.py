"""From a store's item table into a network: what is refused, what an encoder is told, and items that came up since."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_io import storage
from data_io.config import SettingsError
from data_io.sequences import Sequences
from data_io.side.features import choose_features, encode_items
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerEncoder
from model.item_features import FeaturedItemTable
from ray_jobs.item_features import find_features, with_new_items
from ray_jobs.scorer import Scorer
from ray_jobs.tasks import finetuning, pretraining
from tests.ray_jobs.conftest import ENCODER, SPLIT, MakeSettings, MakeStore, count_bucket, make_score_run

ITEMS = pa.table(
    {
        "item_id": ["i2", "i3", "i4", "i5", "i6"],
        "title": pa.nulls(5, pa.large_string()),
        "category": pa.array([["x", "y"], ["x"], None, ["x"], ["x", "y"]], pa.large_list(pa.large_string())),
        "brand": pa.array(["A", "B", None, "A", "B"], pa.large_string()),
        "price_bucket": pa.array([0] * 5, pa.int16()),
        "picture": pa.array([[1.0, 0.0], None, [3.0, 4.0], [0.0, 1.0], None], pa.large_list(pa.float32())),
    }
)
NAMES = ("brand", "picture")


@pytest.fixture
def shop(make_store: MakeStore) -> SequenceStore:
    """The store of five items with an item table; nobody ever had the last of them."""
    store = make_store(num_items=5)
    storage.write_parquet(storage.join(store.url, "items.parquet"), ITEMS)
    facts = {"price_edges": [], "vector_sizes": {"picture": 2}}
    declared = {"settings": {"features": {"picture": "vector"}}}
    items = {"file": {"name": "items.parquet"}, "facts": facts, "used": declared}
    return replace(store, manifest=store.manifest | {"items": items})


@pytest.fixture
def saved_url(shop: SequenceStore, make_settings: MakeSettings) -> str:
    """A model of a day when the shop had three items; it was trained on the first two."""
    before = shop.seen_by(5, 4)
    torch.manual_seed(0)
    learning = pretraining(make_settings(encoder=ENCODER | {"item_features": NAMES}), before, SPLIT)
    index = replace(count_bucket(learning, before.read_sequences(0)), item_events=np.array([0, 0, 3, 2, 0]))
    encoder = learning.model_of(learning.build(index))
    url = make_settings().model_url("encoder")
    save_model(encoder, before.vocabulary, url, {"kind": "next_item", "actions": shop.actions})
    return url


def table_of(encoder: ClickformerEncoder) -> FeaturedItemTable:
    assert isinstance(encoder.item_table, FeaturedItemTable)
    return encoder.item_table


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["colour"], r"names colour, which .* has not; there are title, category, brand, price_bucket, picture"),
        (["title"], "names title, but no item of .* has one"),
        (["brand", "price_bucket"], "names price_bucket, but no item of .* has one"),
    ],
)
def test_features_that_are_not_there_are_refused_before_training(
    shop: SequenceStore, make_settings: MakeSettings, names: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        pretraining(make_settings(encoder=ENCODER | {"item_features": names}), shop, SPLIT)


def test_a_store_without_an_item_table_is_refused(store: SequenceStore, make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError, match=r"has no item table; give items\.path when it is built"):
        pretraining(make_settings(encoder=ENCODER | {"item_features": ["brand"]}), store, SPLIT)
    assert find_features(store, ()) == []


def test_an_encoder_is_told_what_is_known_of_every_item_and_which_have_events(
    shop: SequenceStore, make_settings: MakeSettings
) -> None:
    settings = make_settings(encoder=ENCODER | {"item_features": NAMES}, target_actions=["buy"])
    learning = pretraining(settings, shop, SPLIT)
    index = count_bucket(learning, shop.read_sequences(0))
    assert index.item_counts.sum() < index.item_events.sum(), "views are events too"
    table = table_of(learning.model_of(learning.build(index)))
    assert table.has_events.tolist() == [False, True, True, True, True, True, False]
    expected = encode_items(ITEMS, choose_features(NAMES, {"picture": "vector"}, [], {"picture": 2}))
    for name, part in zip(NAMES, table.features.parts, strict=True):
        assert torch.equal(part.get_buffer("values"), torch.from_numpy(expected.values[name]))


def test_ids_alone_cost_no_count(store: SequenceStore, make_settings: MakeSettings, sequences: Sequences) -> None:
    assert not len(count_bucket(pretraining(make_settings(), store, SPLIT), sequences).item_events)


@pytest.mark.parametrize("kind", ["next_item", "outcome"])
def test_a_task_goes_on_with_the_features_of_its_encoder(
    shop: SequenceStore, make_settings: MakeSettings, saved_url: str, kind: str
) -> None:
    settings = make_settings(finetune={"task": {"kind": kind}, "trainable": {"kind": "full"}})
    learning = finetuning(settings, shop, SPLIT)
    model = learning.model_of(learning.build(count_bucket(learning, learning.store.read_sequences(0))))
    encoder = model if isinstance(model, ClickformerEncoder) else model.encoder
    expected = load_model(saved_url).encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


def test_items_that_came_up_since_are_scored_and_read(shop: SequenceStore, saved_url: str) -> None:
    scorer = Scorer(make_score_run(shop, saved_url, k=5, as_of="log_end"))
    known = scorer.score(0, shop.read_sequences(0), np.arange(shop.num_users))
    assert all(sorted(items) == [2, 3, 4, 5, 6] for items in known.item_index.tolist()), "the new ones among them"
    assert scorer.recommender.vocabulary.size == shop.vocabulary.size
    old = load_model(saved_url).encoder
    table, parts = table_of(scorer.recommender.encoder), table_of(old).features.parts
    with torch.no_grad():
        new = table(torch.tensor([5, 6]))
        brands = parts[0](torch.tensor([2, 3]))
        expected = brands[0] + parts[1].get_parameter("linear.weight") @ torch.tensor([0.0, 1.0])
    torch.testing.assert_close(new[0], expected, msg="brand A and its own picture")
    torch.testing.assert_close(new[1], brands[1], msg="brand B alone")


def test_a_model_of_ids_alone_or_of_all_items_stays_as_it_is(shop: SequenceStore, saved_url: str) -> None:
    saved = load_model(saved_url)
    assert with_new_items(saved, shop.seen_by(5, 4)) is saved
