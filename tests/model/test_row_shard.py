"""Item tables whose rows are spread over ranks, against whole ones."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed as dist

from data_io.batch import TARGET_ITEM_INDEX
from data_io.config import SettingsError
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.embedding import ItemTable
from model.encoder import ClickformerEncoder
from model.engine import TrainEngine, copy_weights
from model.loss_config import FullSoftmax, SampledSoftmax
from model.objectives import ItemLoss, NextItemObjective
from model.resuming import resume
from model.row_shard import multiplier_of
from model.training_config import TrainingSettings
from tests.model.test_zero import CPU, ITEMS, MICRO, NETWORKS, NUM_STEPS, OPTIMIZER, make_batch, make_objective
from tests.processes import run_workers

NUM_MICRO = 6
WHOLE, SPREAD = 10**9, 1
IDENTITY = RunIdentity(fingerprint="a", settings={})
SOFTMAX = {"full": FullSoftmax(label_smoothing=0.1), "sampled": SampledSoftmax(num_uniform=400, num_in_batch=0)}


@given(st.integers(1, 5000))
def test_every_item_has_a_place_of_its_own_and_neighbours_lie_apart(num_rows: int) -> None:
    multiplier = multiplier_of(num_rows)
    assert math.gcd(multiplier, num_rows) == 1
    places = np.arange(min(num_rows, 64)) * multiplier % num_rows
    assert len(set(places.tolist())) == len(places)
    if num_rows >= 640:
        assert all(np.histogram(places, bins=4, range=(0, num_rows))[0] >= 10), "popular items on every rank"


def make_tables() -> tuple[ItemTable, ItemTable]:
    tables = []
    for _ in range(2):
        torch.manual_seed(0)
        table = ItemTable(ITEMS, 8)
        torch.nn.init.normal_(table.weight)
        with torch.no_grad():
            table.weight[0] = 0
        tables.append(table)
    tables[1].shard_rows(CPU)
    return tables[0], tables[1]


def rows_of(table: ItemTable) -> torch.Tensor:
    whole = torch.empty(ITEMS, 8)
    table.copy_to(whole)
    return whole


def test_a_shard_of_one_rank_gives_the_vectors_losses_and_scores_of_a_whole_table() -> None:
    whole, spread = make_tables()
    items = torch.tensor([[0, 1, 5], [7, 5, 29]])
    torch.testing.assert_close(spread(items), whole(items))
    states, targets = torch.randn(5, 8), torch.tensor([2, 3, 2, 29, 11])
    torch.testing.assert_close(
        spread(states=states, targets=targets, label_smoothing=0.2),
        whole(states=states, targets=targets, label_smoothing=0.2),
    )
    torch.testing.assert_close(rows_of(spread), whole.weight.detach())


def test_rows_take_the_steps_of_adamw_if_all_have_gradients_and_else_only_those_that_have() -> None:
    whole, spread = make_tables()
    assert spread.shard is not None
    adamw = torch.optim.AdamW(whole.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(4):
        states, targets = torch.randn(5, 8), torch.randint(2, ITEMS, (5,))
        for table in (whole, spread):
            (table(states=states, targets=targets).sum() + table(targets[:3]).square().sum()).backward()
        torch.testing.assert_close(
            spread.shard.gradient_square_sum().float(), whole.weight.grad.square().sum(), rtol=1e-4, atol=0
        )
        adamw.step()
        adamw.zero_grad()
        spread.shard.step(0.1, 1.0, step + 1)
        torch.testing.assert_close(rows_of(spread)[2:], whole.weight.detach()[2:], atol=1e-5, rtol=0)
    before = rows_of(spread)
    spread(torch.tensor([4, 4, 9])).sum().backward()
    spread.shard.step(0.1, 1.0, 5)
    moved = (rows_of(spread) != before).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == [4, 9]


def test_a_full_softmax_over_composed_vectors_cannot_be_spread() -> None:
    encoder = make_objective(**NETWORKS["features"]).encoder
    encoder.item_table.shard_rows(CPU)
    with pytest.raises(SettingsError, match=r"choose softmax kind sampled, or raise training\.shard_items_from"):
        encoder.item_table(states=torch.randn(2, 16), targets=torch.tensor([3, 4]))


def make_engine(kind: str, shard_from: int, stage: int, **network: Any) -> TrainEngine:
    training = TrainingSettings.model_validate(
        {
            "global_batch_size": MICRO * NUM_MICRO,
            "micro_batch_size": MICRO,
            "zero_stage": stage,
            "shard_items_from": shard_from,
        }
    )
    objective = make_objective(**network)
    objective = NextItemObjective(objective.encoder, ItemLoss(SOFTMAX[kind], torch.ones(ITEMS)))
    return TrainEngine(objective, training, OPTIMIZER, CPU)


def run_steps(engine: TrainEngine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        mine = list(range(dist.get_rank(), NUM_MICRO, dist.get_world_size()))
        batches = [make_batch(10 * step + number, MICRO) for number in mine]
        if step == 4 and mine[0] == 0:
            batches[0] = {name: np.zeros_like(array) for name, array in batches[0].items()}
        weight = sum(int((batch[TARGET_ITEM_INDEX] > 0).sum()) for batch in batches)
        losses.append(engine.step(batches, weight, step * NUM_MICRO, step, NUM_STEPS).loss)
    return losses


def published(engine: TrainEngine) -> dict[str, np.ndarray]:
    with engine.gathered_parameters():
        whole = ClickformerEncoder(engine.module.encoder.config)
        copy_weights(engine.module.encoder, whole)
    return {name: tensor.numpy() for name, tensor in whole.state_dict().items()}


def work(rank: int, folder: Path) -> dict[str, Any]:
    """Losses of whole and spread tables, and a spread one resumed from what another number of ranks wrote."""
    found: dict[str, Any] = {}
    for kind in SOFTMAX:
        for shard_from in (WHOLE, SPREAD):
            for stage in (1, 3) if shard_from == SPREAD else (1,):
                engine = make_engine(kind, shard_from, stage)
                found[f"{kind} {shard_from} {stage}"] = run_steps(engine, range(NUM_STEPS)), published(engine)
    found["features"] = run_steps(make_engine("sampled", SPREAD, 1, **NETWORKS["features"]), range(NUM_STEPS))
    url = str(folder / "checkpoints")
    if dist.get_world_size() == 2:
        engine = make_engine("full", SPREAD, 1)
        run_steps(engine, range(5))
        writer = CheckpointWriter(url, IDENTITY, keep=1)
        writer.save(engine, TrainPosition(step=5), {})
        writer.wait()
        dist.barrier()
    engine = make_engine("full", SPREAD, 2)
    assert resume(engine, url, IDENTITY).position.step == 5
    found["resumed"] = run_steps(engine, range(5, NUM_STEPS)), published(engine)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By number of ranks."""
    folder = tmp_path_factory.mktemp("shards")
    return {world_size: run_workers(work, world_size, folder)[0] for world_size in (2, 3)}


def test_full_softmax_over_spread_rows_gives_the_losses_and_weights_of_a_whole_table(found: dict) -> None:
    losses, weights = found[2][f"full {WHOLE} 1"]
    for world_size, stage in ((2, 1), (2, 3), (3, 1), (3, 3)):
        spread = found[world_size][f"full {SPREAD} {stage}"]
        np.testing.assert_allclose(spread[0], losses, atol=1e-4, rtol=0)
        assert spread[1].keys() == weights.keys()
        np.testing.assert_allclose(spread[1]["item_table.weight"], weights["item_table.weight"], atol=2e-3, rtol=0)


def test_sampled_softmax_over_spread_rows_gives_the_losses_of_a_whole_table(found: dict) -> None:
    """So many negatives that all rows have gradients; then lazy Adam is Adam."""
    losses = found[2][f"sampled {WHOLE} 1"][0]
    for world_size, stage in ((2, 1), (2, 3), (3, 1), (3, 3)):
        np.testing.assert_allclose(found[world_size][f"sampled {SPREAD} {stage}"][0], losses, atol=1e-4, rtol=0)


def test_spread_rows_beside_features_are_the_same_on_any_number_of_ranks(found: dict) -> None:
    np.testing.assert_allclose(found[2]["features"], found[3]["features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_spread_rows_are_resumed_by_another_number_of_ranks(found: dict, world_size: int) -> None:
    losses, weights = found[2][f"full {SPREAD} 1"]
    resumed = found[world_size]["resumed"]
    np.testing.assert_allclose(resumed[0], losses[5:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(resumed[1]["item_table.weight"], weights["item_table.weight"], atol=2e-3, rtol=0)
