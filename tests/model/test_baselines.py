"""Baselines against a plain sort of plain sums, user by user."""

import numpy as np
import pytest
import torch

from data_io.schema import FIRST_INDEX
from model.baselines import Baselines, BaselineTables, newest_events
from model.neighbours import ItemNeighbours
from model.topk import target_ranks, top_k
from ray_jobs.config import BASELINES

SIZE, NUM_USERS = 30, 12


def make_tables(seed: int = 0, *, with_neighbours: bool = True) -> BaselineTables:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 4, (2, SIZE))
    counts[:, :FIRST_INDEX] = 0
    lengths = generator.integers(0, 4, SIZE)
    near = np.concatenate([generator.choice(np.arange(FIRST_INDEX, SIZE), number, replace=False) for number in lengths])
    similarity = generator.choice(np.array([0.5, 1 / 3, 0.25], np.float32), len(near))
    neighbours = ItemNeighbours(np.concatenate([[0], np.cumsum(lengths)]), near.astype(np.int32), similarity)
    return BaselineTables(
        popularity=counts[0] + counts[1],
        recent_popularity=counts[1],
        neighbours=neighbours if with_neighbours else None,
        num_events=3,
        decay=0.5,
    )


def plain_keys(name: str, tables: BaselineTables, history: list[int]) -> list[tuple[float, float]]:
    """What every item is ordered by: larger first, then the second, then the item's index."""
    popularity = tables.popularity.tolist()
    if name == "popularity":
        return [(count, 0) for count in popularity]
    if name == "recent_popularity":
        return list(zip(tables.recent_popularity.tolist(), popularity, strict=True))
    if name == "own_history":
        return [(history.count(item), popularity[item]) for item in range(SIZE)]
    assert tables.neighbours is not None
    sums = [0.0] * SIZE
    for age, event in enumerate(reversed(history[-tables.num_events :])):
        _, near, similarity = tables.neighbours.of(np.array([event]))
        for item, value in zip(near.tolist(), similarity.tolist(), strict=True):
            sums[item] += round(tables.decay**age * value * 2**32) / 2**32
    return [(total, 0 if total else popularity[item]) for item, total in enumerate(sums)]


def make_histories(seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(FIRST_INDEX, SIZE, number).tolist() for number in generator.integers(0, 8, NUM_USERS)]


@pytest.mark.parametrize("seed", range(5))
def test_every_order_equals_a_plain_sort(seed: int) -> None:
    tables, histories = make_tables(seed), make_histories(seed)
    row = np.repeat(np.arange(NUM_USERS), [len(history) for history in histories])
    item = np.array([event for history in histories for event in history], np.int32)
    for name, scores in Baselines(tables, torch.device("cpu")).iter_scores(row, item, NUM_USERS):
        lists = top_k(scores, SIZE - FIRST_INDEX)[1].tolist()
        for user, history in enumerate(histories):
            keys = plain_keys(name, tables, history)
            known = range(FIRST_INDEX, SIZE)
            expected = sorted(known, key=lambda item: (-keys[item][0], -keys[item][1], item))
            assert lists[user] == expected, name
            targets = torch.arange(FIRST_INDEX, SIZE)
            ranks = target_ranks(scores[user].repeat(len(targets), 1), targets)
            assert ranks.tolist() == [expected.index(item) + 1 for item in known]


def test_names_are_those_of_the_settings_and_of_the_scores() -> None:
    nobody = np.zeros(0, np.int64), np.zeros(0, np.int32), 0
    every = Baselines(make_tables(), torch.device("cpu"))
    assert every.names == BASELINES == tuple(name for name, _ in every.iter_scores(*nobody))
    without = Baselines(make_tables(with_neighbours=False), torch.device("cpu"))
    assert without.names == BASELINES[:-1] == tuple(name for name, _ in without.iter_scores(*nobody))


def test_the_order_of_summing_makes_no_difference() -> None:
    """Sums of floats would: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
    offsets = np.array([0, 0, 0, 2, 4, 6, *[6] * (SIZE - 5)])
    near = np.array([10, 11] * 3, np.int32)
    similarity = np.array([0.1, 0.3, 0.2, 0.2, 0.3, 0.1], np.float32)
    tables = BaselineTables(
        popularity=np.zeros(SIZE, np.int64),
        recent_popularity=np.zeros(SIZE, np.int64),
        neighbours=ItemNeighbours(offsets, near, similarity),
        num_events=3,
        decay=1.0,
    )
    scores = dict(Baselines(tables, torch.device("cpu")).iter_scores(np.zeros(3, np.int64), np.array([2, 3, 4]), 1))
    assert scores["item_knn"][0, 10] == scores["item_knn"][0, 11] == pytest.approx(0.6)


def test_the_newest_events_of_each_user_are_taken_and_their_age() -> None:
    row, item, age = newest_events(np.array([0, 0, 0, 2]), np.array([5, 6, 7, 8]), 2)
    assert (row.tolist(), item.tolist(), age.tolist()) == ([0, 0, 2], [6, 7, 8], [1, 0, 0])
