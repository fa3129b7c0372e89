"""Item vectors from ids and features: against naive sums, what never moves, and items known by features alone."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from data_io.batch import ITEM_INDEX, TARGET_ITEM_INDEX, Batch
from data_io.config import SettingsError
from data_io.side.features import ItemFeature, ItemFeatures
from data_io.vocabulary import Vocabulary
from model.auxiliary import AuxiliaryLosses, TargetRates
from model.checkpoint import load_model, save_model
from model.config import AuxiliarySettings
from model.contrastive import alignment_losses
from model.embedding import ItemTable
from model.encoder import ClickformerEncoder
from model.engine import parameter_groups, to_tensors
from model.item_features import FeaturedItemTable
from model.loss_config import BinaryLoss, FullSoftmax, SampledSoftmax, SoftmaxSettings
from model.negatives import NegativeSampler
from model.objectives import Extras, ItemLoss, NextItemObjective
from model.scoring import rank_items

NUM_ITEMS, COLD = 12, (4, 9)
CPU = torch.device("cpu")
FEATURES = (
    ItemFeature(name="words", form="text", width=3, num_rows=6),
    ItemFeature(name="picture", form="vector", width=2, num_rows=0),
)
MakeEncoder = Callable[..., ClickformerEncoder]
MakeBatch = Callable[..., Batch]
LOSSES = (FullSoftmax(label_smoothing=0.1), SampledSoftmax(num_uniform=6, num_in_batch=3), BinaryLoss(num_negatives=6))


def draw_features(num_rows: int = NUM_ITEMS, seed: int = 0) -> ItemFeatures:
    """Codes, some of them missing, and vectors; the last row has nothing."""
    generator = np.random.default_rng(seed)
    codes = np.sort(generator.integers(0, 6, (num_rows, 3)).astype(np.int32))[:, ::-1].copy()
    vectors = generator.normal(size=(num_rows, 2)).astype(np.float32)
    for rows in (codes, vectors):
        rows[[0, 1, -1]] = 0
    return ItemFeatures(num_rows=num_rows, values={"words": codes, "picture": vectors})


def table_of(encoder: ClickformerEncoder) -> FeaturedItemTable:
    assert isinstance(encoder.item_table, FeaturedItemTable)
    return encoder.item_table


@pytest.fixture
def make_featured(make_encoder: MakeEncoder) -> MakeEncoder:
    """An encoder that reads the features; the cold items have no events."""

    def make(**fields: object) -> ClickformerEncoder:
        encoder = make_encoder(item_features=[asdict(feature) for feature in FEATURES], **fields)
        num_events = np.ones(NUM_ITEMS)
        num_events[list(COLD)] = 0
        table_of(encoder).set_items(draw_features(), num_events)
        return encoder

    return make


def plain_vectors(encoder: ClickformerEncoder, cold: tuple[int, ...] = COLD) -> torch.Tensor:
    """[V, D] item by item, code by code."""
    table, known = table_of(encoder), draw_features()
    words, picture = (
        part.get_parameter("rows.weight" if "rows" in dict(part.named_children()) else "linear.weight")
        for part in table.features.parts
    )
    vectors = []
    for item in range(NUM_ITEMS):
        vector = torch.zeros(8) if item in (0, *cold) else table.weight[item]
        codes = [code for code in known.values["words"][item].tolist() if code]
        for code in codes:
            vector = vector + words[code] / len(codes)
        vectors.append(vector + picture @ torch.from_numpy(known.values["picture"][item]))
    return torch.stack(vectors)


def make_loss(encoder: ClickformerEncoder, softmax: SoftmaxSettings) -> ItemLoss:
    counts = torch.ones(NUM_ITEMS)
    counts[list(COLD)] = 0
    return ItemLoss(softmax, counts, encoder.item_table.items_with_events)


def test_a_vector_is_the_row_of_the_id_plus_what_features_say(make_featured: MakeEncoder) -> None:
    encoder = make_featured()
    expected, items = plain_vectors(encoder), torch.tensor([[3, 0, 4], [1, 3, 11]])
    torch.testing.assert_close(encoder.item_table(items), expected[items])
    with torch.no_grad():
        torch.testing.assert_close(encoder.item_table(items), expected[items])
        states = torch.randn(2, 8)
        scores = encoder.item_table(states=states)
    torch.testing.assert_close(scores[:, 2:], states @ expected[2:].T)
    assert (scores[:, :2] == float("-inf")).all()
    assert (expected[0] == 0).all()
    torch.testing.assert_close(expected[1], encoder.item_table.weight[1], msg="unknown")


def test_full_softmax_is_torch_cross_entropy_over_composed_items_with_events(make_featured: MakeEncoder) -> None:
    one, other = make_featured(), make_featured()
    states, targets = torch.randn(5, 8), torch.tensor([2, 5, 11, 5, 3])
    loss = make_loss(one, FullSoftmax())(one, states, targets, seed=0)
    warm = [item for item in range(2, NUM_ITEMS) if item not in COLD]
    places = torch.tensor([warm.index(item) for item in targets.tolist()])
    expected = F.cross_entropy(states @ plain_vectors(other)[warm].T, places, reduction="none")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    found = dict(one.item_table.named_parameters())
    for name, weight in other.item_table.named_parameters():
        torch.testing.assert_close(found[name].grad, weight.grad, atol=1e-5, rtol=1e-5)


def test_a_target_without_events_is_among_the_rivals_of_its_own_position(make_featured: MakeEncoder) -> None:
    encoder, states = make_featured(), torch.randn(2, 8)
    vectors, warm = plain_vectors(encoder), [item for item in range(2, NUM_ITEMS) if item not in COLD]
    losses = make_loss(encoder, FullSoftmax())(encoder, states, torch.tensor([COLD[0], 3]), seed=0)
    for state, target, loss in zip(states, (COLD[0], 3), losses, strict=True):
        chosen = sorted({*warm, target})
        expected = F.cross_entropy(vectors[chosen] @ state, torch.tensor(chosen.index(target)))
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("softmax", LOSSES, ids=str)
def test_padding_never_moves_and_an_item_without_events_has_no_row_that_learns(
    make_featured: MakeEncoder, make_batch: MakeBatch, softmax: SoftmaxSettings
) -> None:
    encoder = make_featured(repeats=not isinstance(softmax, BinaryLoss))
    objective = NextItemObjective(encoder, make_loss(encoder, softmax)).train()
    batch = to_tensors(make_batch(5, 2, 0, 1), CPU)
    batch[TARGET_ITEM_INDEX][batch[TARGET_ITEM_INDEX] == COLD[0]] = 2
    before = encoder.item_table.weight.detach().clone()
    optimizer = torch.optim.AdamW(parameter_groups(objective, weight_decay=0.1), lr=0.1)
    for seed in range(4):
        optimizer.zero_grad()
        objective(batch, seed).backward()
        optimizer.step()
    assert torch.equal(encoder.item_table.weight[[0, *COLD]], before[[0, *COLD]])
    assert (encoder.item_table.weight[[2, 3]] != before[[2, 3]]).any()
    assert (encoder.item_table(torch.tensor([0])) == 0).all()
    assert all((part.weight[0] == 0).all() for part in objective.modules() if isinstance(part, torch.nn.EmbeddingBag))


def test_negatives_are_drawn_from_candidates_alone() -> None:
    sampler = NegativeSampler(500, 0, torch.ones(NUM_ITEMS), torch.tensor([2, 7, 8]))
    pool = sampler(torch.tensor([5]), torch.Generator().manual_seed(0))
    assert set(pool.items.tolist()) == {2, 7, 8}
    torch.testing.assert_close(pool.log_expected.exp(), torch.full((500,), 500 / 3))


def test_a_step_drops_the_share_of_ids_that_its_seed_says_and_scoring_drops_none(make_featured: MakeEncoder) -> None:
    table = table_of(make_featured(item_id_dropout=0.5))
    items = torch.arange(NUM_ITEMS)
    whole = table(items, seed=1)
    assert torch.equal(whole, table(items)), "not in evaluation"
    table.train()
    assert torch.equal(whole, table(items)), "nor without a seed"
    assert torch.equal(table(items, seed=1), table(items, seed=1))
    share = torch.stack([(table(items, seed=seed) != whole).any(1) for seed in range(200)]).float().mean(0)
    assert not share[[0, 1, *COLD]].any(), "padding, unknown, and those that have no row to drop"
    rest = [item for item in range(2, NUM_ITEMS) if item not in COLD]
    assert (share[rest] - 0.5).abs().max() < 0.15


def test_a_batch_of_padding_still_runs_every_module(make_featured: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder = make_featured()
    for softmax in LOSSES[:2]:
        loss = NextItemObjective(encoder, make_loss(encoder, softmax)).train()(to_tensors(make_batch(0), CPU), seed=0)
        loss.backward()
        assert loss == 0


def test_scores_follow_weights_that_change(make_featured: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder, other, batch = make_featured(), make_featured(), make_batch(4, 2)
    before = rank_items(encoder, batch)[1]
    assert torch.equal(before, rank_items(encoder, batch)[1])
    with torch.no_grad():
        table_of(encoder).features.parts[0].get_parameter("rows.weight").mul_(-1)
    changed = rank_items(encoder, batch)[1]
    assert not torch.allclose(before[:, 2:], changed[:, 2:])
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(before, rank_items(encoder, batch)[1])


def test_a_saved_encoder_needs_no_item_table(make_featured: MakeEncoder, make_batch: MakeBatch, tmp_path: Path) -> None:
    encoder, batch = make_featured(item_id_dropout=0.25), make_batch(4, 2)
    vocabulary = Vocabulary(pa.array(range(NUM_ITEMS - 2), pa.int64()))
    save_model(encoder, vocabulary, str(tmp_path / "model"), {"kind": "next_item"})
    loaded = load_model(str(tmp_path / "model")).encoder
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == {
        name: tensor.dtype for name, tensor in encoder.state_dict().items()
    }
    assert table_of(loaded).id_dropout == 0.25
    assert torch.equal(table_of(loaded).has_events, table_of(encoder).has_events)
    for found, expected in zip(rank_items(loaded, batch), rank_items(encoder, batch), strict=True):
        assert torch.equal(found, expected)


def test_new_items_are_known_by_their_features(make_featured: MakeEncoder, make_batch: MakeBatch) -> None:
    encoder, batch, new = make_featured(repeats=False), make_batch(4, 2), draw_features(5, seed=3)
    for name, rows in draw_features().values.items():
        new.values[name][2] = rows[COLD[0]]
    users, before = rank_items(encoder, batch)
    encoder.add_items(new)
    assert encoder.config.vocabulary_size == NUM_ITEMS + 3
    same_users, after = rank_items(encoder, batch)
    torch.testing.assert_close(same_users, users)
    assert after.shape == (2, NUM_ITEMS + 3)
    torch.testing.assert_close(after[:, 2:NUM_ITEMS].softmax(1), before[:, 2:].softmax(1), msg="among old items")
    with torch.no_grad():
        vectors = encoder.item_table(torch.tensor([NUM_ITEMS, COLD[0], NUM_ITEMS + 2]))
    torch.testing.assert_close(vectors[0], vectors[1], msg="as an old item with these features and no events")
    assert not vectors[2].any(), "of which nothing is known"
    batch[ITEM_INDEX][0, 0] = NUM_ITEMS
    assert not torch.allclose(rank_items(encoder, batch)[0][0], users[0]), "it is read in histories too"


def test_an_encoder_of_ids_alone_is_as_it_was(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    assert type(encoder.item_table) is ItemTable
    assert [name for name in encoder.state_dict() if name.startswith("item_table")] == ["item_table.weight"]
    assert encoder.item_table.items_with_events is None
    with pytest.raises(SettingsError, match="knows items by their id alone"):
        encoder.add_items(draw_features())


@pytest.mark.parametrize("softmax", LOSSES[:2], ids=str)
def test_an_item_without_events_is_ranked_by_what_items_like_it_have_learned(
    make_encoder: MakeEncoder, softmax: SoftmaxSettings
) -> None:
    """Users go from item 2 to 3; 10 has the words of 3 and no events, 11 those of items nobody goes to."""
    encoder = make_encoder(item_features=[asdict(FEATURES[0])], repeats=False, item_id_dropout=0.3)
    codes = np.zeros((NUM_ITEMS, 3), np.int32)
    codes[2:, 0] = [1, 2, 3, 3, 3, 4, 4, 4, 2, 3]
    num_events = np.array([0, 0, 50, 50, 5, 5, 5, 5, 5, 5, 0, 0])
    table_of(encoder).set_items(ItemFeatures(num_rows=NUM_ITEMS, values={"words": codes}), num_events)
    counts = torch.from_numpy(num_events).float()
    objective = NextItemObjective(encoder, ItemLoss(softmax, counts, encoder.item_table.items_with_events)).train()
    items = np.array([[2, 3, 2, 3]] * 8 + [[first, first, first, first] for first in range(4, 10)])
    batch = make_events(items)
    optimizer = torch.optim.AdamW(parameter_groups(objective, weight_decay=0.0), lr=0.05)
    for seed in range(25):
        optimizer.zero_grad()
        (objective(to_tensors(batch, CPU), seed) / 40).backward()
        optimizer.step()
    scores = rank_items(encoder.eval(), make_events(np.array([[3, 2]])))[1][0]
    assert scores.argmax() in (3, 10)
    assert scores[10] > scores[11] + 1
    assert scores[10] > scores[4:10].max()


def make_events(items: np.ndarray) -> Batch:
    """Histories of these items, a second apart, each asked for the item that follows."""
    targets = np.roll(items, -1, axis=1)
    targets[:, -1] = 0
    ones = np.ones_like(items)
    moment = np.cumsum(ones * 10**6, axis=1)
    return {
        ITEM_INDEX: items,
        TARGET_ITEM_INDEX: targets,
        "action_index": 2 * ones,
        "gap": 2 * ones,
        "elapsed": 2 * ones,
        "moment": moment,
        "padding_mask": ones > 0,
    }


def test_alignment_is_cross_entropy_both_ways_over_items_that_have_id_and_features() -> None:
    ids, features = torch.randn(5, 4), torch.randn(5, 4)
    ids[1], features[3] = 0, 0
    kept = [0, 2, 4]
    scores = F.normalize(ids[kept], dim=1) @ F.normalize(features[kept], dim=1).T / 0.1
    ways = [F.cross_entropy(way, torch.arange(3), reduction="none") for way in (scores, scores.T)]
    found = alignment_losses(ids, features, 0.1)
    torch.testing.assert_close(found[kept], (ways[0] + ways[1]) / 2)
    assert found[[1, 3]].tolist() == [0, 0]
    assert alignment_losses(ids[:0], features[:0], 0.1).sum() == 0


def test_items_are_told_by_features_as_often_as_they_are_targets(
    make_featured: MakeEncoder, make_batch: MakeBatch
) -> None:
    encoder, batch = make_featured(), to_tensors(make_batch(6, 3, 0), CPU)
    losses = AuxiliaryLosses(AuxiliarySettings(item_alignment=0.5), 8, 4, TargetRates(1.0, 1.0))
    alone = NextItemObjective(encoder, make_loss(encoder, FullSoftmax()))
    beside = NextItemObjective(encoder, make_loss(encoder, FullSoftmax()), Extras(auxiliary=losses))
    targets = batch[TARGET_ITEM_INDEX]
    items = targets[targets >= 2].unique()
    table = table_of(encoder)
    of_items = alignment_losses(table.weight[items] * table.has_events[items, None], table.features(items), 0.1)
    often = torch.stack([(targets == item).sum() for item in items])
    expected = alone(batch, seed=5) + 0.5 * (of_items * often).sum()
    torch.testing.assert_close(beside(batch, seed=5), expected)
