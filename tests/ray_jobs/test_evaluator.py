"""The evaluator against a plain sort, user by user, for every ranker: ranks, lists and what slices need."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from math import log2, sqrt
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from data_io.config import LeaveOneOut, SyntheticSettings, TimeSplit
from data_io.examples import next_item_examples
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Split, resolve_split
from data_io.store import MINUTE_US, SequenceStore
from data_io.synthetic import generate_events
from data_io.vocabulary import Vocabulary
from model.baselines import BaselineTables
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.metrics import ranking_metrics
from model.scoring import iter_batches, rank_items
from ray_jobs import baseline_passes
from ray_jobs.baseline_passes import count_history, find_neighbours, why_without_item_knn
from ray_jobs.bucket_map import map_on_threads, spans_of
from ray_jobs.config import BASELINES, EvaluationSettings, ItemKnnSettings
from ray_jobs.evaluator import HISTORIES, EvaluationRun, Evaluator

NUM_BUCKETS, RECENT_DAYS, LIST_K = 3, 5.0, 10
KNN = ItemKnnSettings(num_neighbours=4, num_events=3, decay=0.5)
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "encoder": (2, {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "sequence_length": 6}),
    "gru": (0, {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "sequence_length": 9, "block": "gru"}),
    "last_month": (7, {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "sequence_length": 3}),
}
"""Of each model: how many of the newest items it does not know, and its network."""
RANKERS = (*SHAPES, *BASELINES)


@dataclass
class FakeStore:
    """The buckets of a store, in memory."""

    buckets: list[Sequences]
    vocabulary: Vocabulary

    @property
    def num_buckets(self) -> int:
        return len(self.buckets)

    @property
    def end_time(self) -> int:
        return (max(int(bucket.event_time.max()) for bucket in self.buckets) // MINUTE_US + 1) * MINUTE_US

    def read_sequences(self, bucket: int) -> Sequences:
        return self.buckets[bucket]

    def action_indices(self, names: None) -> None:
        return names

    def with_columns(self, _: object) -> "FakeStore":
        return self

    def with_numbers(self, _: object) -> "FakeStore":
        return self


@pytest.fixture(scope="module")
def store() -> FakeStore:
    """A generated log; the two rarest items are not in the vocabulary."""
    size = SyntheticSettings(num_users=150, num_items=25, num_days=30, mean_events_per_user=15, seed=5)
    events = generate_events(size).to_pylist()
    counted = Counter(event["item_id"] for event in events if event["item_id"] is not None)
    known = sorted(counted, key=lambda item: (-counted[item], item))[:-2]
    index = {item: place for place, item in enumerate(known, start=FIRST_INDEX)} | {None: 0}
    users: dict[str, list[tuple[int, int]]] = {}
    for event in sorted(events, key=lambda event: event["event_time"]):
        micros = round(event["event_time"].timestamp() * 1e6)
        users.setdefault(event["user_id"], []).append((micros, index.get(event["item_id"], 1)))
    names = sorted(users)
    buckets = [make_bucket(names[part::NUM_BUCKETS], users) for part in range(NUM_BUCKETS)]
    return FakeStore(buckets, Vocabulary(pa.array(known, pa.large_string())))


def make_bucket(names: list[str], users: dict[str, list[tuple[int, int]]]) -> Sequences:
    events = [event for name in names for event in users[name]]
    return Sequences(
        user_id=pa.array(names, pa.large_string()),
        offsets=np.cumsum([0, *(len(users[name]) for name in names)]).astype(np.int64),
        item_index=np.array([item for _, item in events], np.int32),
        action_index=np.full(len(events), 2, np.int16),
        event_time=np.array([time for time, _ in events], np.int64),
    )


@pytest.fixture(scope="module")
def model_urls(store: FakeStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Encoders of several sizes that have learned nothing."""
    folder = tmp_path_factory.mktemp("models")
    for name, (num_unknown, shape) in SHAPES.items():
        known = Vocabulary(store.vocabulary.item_ids.slice(0, len(store.vocabulary.item_ids) - num_unknown))
        config = ClickformerConfig(vocabulary_size=known.size, num_actions=3, **shape)
        facts = {"kind": "next_item", "fingerprint": "untrained"}
        save_model(ClickformerEncoder(config), known, str(folder / name), facts)
    return {name: str(folder / name) for name in SHAPES}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline_passes, "map_tasks", map_on_threads)
    monkeypatch.setattr(baseline_passes, "spans_of", lambda buckets: spans_of(buckets, here=True))


def make_split(store: FakeStore, kind: str) -> Split:
    times = np.concatenate([bucket.event_time for bucket in store.buckets])
    settings = TimeSplit() if kind == "time" else LeaveOneOut()
    return resolve_split(settings, *np.unique(times // MINUTE_US, return_counts=True))


def evaluate(
    store: FakeStore, urls: dict[str, str], split: Split, *, exclude_seen: bool
) -> tuple[pa.Table, dict[str, Counter[int]]]:
    """Rows of all users, and how often each ranker lists each item."""
    opened = cast(SequenceStore, store)
    counts = count_history(opened, split, RECENT_DAYS)
    tables = BaselineTables(
        popularity=counts.history,
        recent_popularity=counts.recent,
        neighbours=find_neighbours(opened, split, counts, KNN.num_neighbours),
        num_events=KNN.num_events,
        decay=KNN.decay,
    )
    run = EvaluationRun(
        store=opened, split=split, model_urls=urls, task_urls={}, target_actions=None, baselines=tables,
        training_events=counts.training, writers={}, exclude_seen=exclude_seen, list_k=LIST_K, batch_size=7,
    )  # fmt: skip
    found = [Evaluator(run).rank_targets(bucket) for bucket in store.buckets]
    listed: dict[str, Counter[int]] = {}
    for _, lists in found:
        for row in lists.to_pylist():
            listed.setdefault(row["ranker"], Counter())[row["item_index"]] += row["num_listed"]
    return pa.concat_tables([ranks for ranks, _ in found]), listed


class Plain:
    """The same by loops over users and events: histories, counts and orders of all items."""

    def __init__(self, store: FakeStore, urls: dict[str, str], split: Split, *, new_only: bool = False) -> None:
        self.size = store.vocabulary.size
        self.users: dict[str, tuple[list[int], int]] = {}
        self.popularity, self.recent, self.training = Counter[int](), Counter[int](), Counter[int]()
        self.having: dict[int, set[str]] = {}
        self.model_scores: dict[tuple[str, str], list[float]] = {}
        until = split.test if split else store.end_time
        for bucket in store.buckets:
            for row, user in enumerate(bucket.user_id.to_pylist()):
                span = slice(bucket.offsets[row], bucket.offsets[row + 1])
                events = list(zip(bucket.event_time[span].tolist(), bucket.item_index[span].tolist(), strict=True))
                history = [event for event in events if event[0] < split.test] if split else events[:-1]
                training = [event for event in events if event[0] < split.validation] if split else events[:-2]
                self.popularity.update(item for _, item in history if item >= FIRST_INDEX)
                since = until - RECENT_DAYS * DAY_US
                self.recent.update(item for time, item in history if item >= FIRST_INDEX and time >= since)
                self.training.update(item for _, item in training if item >= FIRST_INDEX)
                for _, item in training:
                    if item >= FIRST_INDEX:
                        self.having.setdefault(item, set()).add(user)
                had = {item for _, item in history if item >= FIRST_INDEX} if new_only else set()
                targets = [item for _, item in events[len(history) :] if item and item not in had]
                if history and targets:
                    self.users[user] = [item for _, item in history], targets[0]
            for name, url in urls.items():
                self._add_model_scores(bucket, name, url, split)
        self.near = self._neighbours()

    def _add_model_scores(self, bucket: Sequences, name: str, url: str, split: Split) -> None:
        encoder = load_model(url).encoder
        examples = next_item_examples(bucket, split, "test", encoder.config.sequence_length, None)
        known = bucket.known_to(encoder.config.vocabulary_size, encoder.config.num_actions)
        for part, batch in iter_batches(known, examples, 1):
            scores = rank_items(encoder, batch)[1][0].tolist()
            user = bucket.user_id[int(part.row[0])].as_py()
            self.model_scores[name, user] = scores + [-np.inf] * (self.size - len(scores))

    def _neighbours(self) -> dict[int, list[tuple[int, float]]]:
        near: dict[int, list[tuple[int, float]]] = {}
        for one, other in combinations(sorted(self.having), 2):
            both = len(self.having[one] & self.having[other])
            if both:
                cosine = float(np.float32(both / sqrt(len(self.having[one]) * len(self.having[other]))))
                near.setdefault(one, []).append((other, cosine))
                near.setdefault(other, []).append((one, cosine))
        for item, found in near.items():
            near[item] = sorted(found, key=lambda pair: (-pair[1], pair[0]))[: KNN.num_neighbours]
        return near

    def keys(self, ranker: str, user: str) -> list[tuple[float, float]]:
        """What each item is ordered by: larger first, then the second, then the index."""
        history = [item for item in self.users[user][0] if item >= FIRST_INDEX]
        items = range(self.size)
        if ranker in SHAPES:
            return [(score, 0) for score in self.model_scores[ranker, user]]
        if ranker == "popularity":
            return [(self.popularity[item], 0) for item in items]
        if ranker == "recent_popularity":
            return [(self.recent[item], self.popularity[item]) for item in items]
        if ranker == "own_history":
            return [(history.count(item), self.popularity[item]) for item in items]
        sums = Counter[int]()
        for age, event in enumerate(history[::-1][: KNN.num_events]):
            for item, cosine in self.near.get(event, []):
                sums[item] += round(KNN.decay**age * cosine * 2**32)
        return [(sums[item], 0 if sums[item] else self.popularity[item]) for item in items]

    def order(self, ranker: str, user: str, left_out: set[int]) -> list[int]:
        keys = self.keys(ranker, user)
        items = [i for i in range(FIRST_INDEX, self.size) if i not in left_out and keys[i][0] > -np.inf]
        return sorted(items, key=lambda item: (-keys[item][0], -keys[item][1], item))


def plain_metrics(ranks: list[float], k: int) -> dict[str, float]:
    hits = [rank for rank in ranks if rank <= k]
    totals = {"recall": float(len(hits)), "ndcg": sum(1 / log2(1 + r) for r in hits), "mrr": sum(1 / r for r in hits)}
    return {f"{name}_at_{k}": total / len(ranks) for name, total in totals.items()}


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("kind", ["time", "leave_one_out"])
def test_every_ranker_equals_a_plain_sort(
    store: FakeStore, model_urls: dict[str, str], kind: str, exclude_seen: bool
) -> None:
    split = make_split(store, kind)
    table, listed = evaluate(store, model_urls, split, exclude_seen=exclude_seen)
    plain = Plain(store, model_urls, split, new_only=exclude_seen)
    users = table.column("user_id").to_pylist()
    assert set(users) == set(plain.users)
    assert len(users) == len(plain.users) > 20
    for ranker in RANKERS:
        ranks, lists = [], Counter[int]()
        for user in users:
            history, target = plain.users[user]
            seen = set(history) if exclude_seen else set()
            ranked = plain.order(ranker, user, seen)
            ranks.append(ranked.index(target) + 1 if target in ranked else np.inf)
            lists.update(plain.order(ranker, user, seen)[:LIST_K])
        found = table.column(f"rank_{ranker}").to_numpy()
        for k in (1, 5, 10, 20):
            values = {name: float(value.mean()) for name, value in ranking_metrics(found, (k,)).items()}
            assert values == pytest.approx(plain_metrics(ranks, k), abs=1e-6), ranker
        assert found.tolist() == [min(rank, store.vocabulary.size + 1) for rank in ranks], ranker
        assert listed[ranker] == lists, ranker
    histories = Counter(item for history, _ in plain.users.values() for item in history if item >= FIRST_INDEX)
    assert listed[HISTORIES] == histories


def test_rows_say_what_slices_go_by(store: FakeStore, model_urls: dict[str, str]) -> None:
    split = make_split(store, "time")
    table, _ = evaluate(store, model_urls, split, exclude_seen=False)
    plain = Plain(store, model_urls, split)
    for row in table.to_pylist():
        history, target = plain.users[row["user_id"]]
        assert row["history_length"] == len(history)
        assert row["target_training_events"] == plain.training[target]
    groups = set(table.column("target_group").to_pylist())
    assert "head" in groups
    assert groups <= {"head", "middle", "tail"}


def test_a_target_nobody_can_name_counts_as_missed_even_where_all_else_is_left_out(
    store: FakeStore, model_urls: dict[str, str]
) -> None:
    """A user who has seen the whole catalogue and goes on with an item outside the vocabulary."""
    size = store.vocabulary.size
    users = {"u": [(time, item) for time, item in enumerate([*range(FIRST_INDEX, size), 1])]}
    alone = FakeStore([make_bucket(["u"], users)], store.vocabulary)
    table, listed = evaluate(alone, model_urls, None, exclude_seen=True)
    assert [table.column(f"rank_{ranker}").to_pylist() for ranker in RANKERS] == [[size + 1]] * len(RANKERS)
    assert set(listed) == {HISTORIES}


def test_neighbours_in_many_passes_are_those_of_one(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, split = cast(SequenceStore, store), make_split(store, "time")
    counts = count_history(opened, split, RECENT_DAYS)
    whole = find_neighbours(opened, split, counts, 5)
    monkeypatch.setattr(baseline_passes, "_PAIRS_A_PASS", 100)
    parts = find_neighbours(opened, split, counts, 5)
    for name in ("offsets", "item_index", "similarity"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_item_knn_is_left_out_where_users_had_too_many_pairs(store: FakeStore) -> None:
    counts = count_history(cast(SequenceStore, store), make_split(store, "time"), RECENT_DAYS)
    assert why_without_item_knn(counts, EvaluationSettings().item_knn) is None
    message = why_without_item_knn(counts, ItemKnnSettings(max_pairs=counts.num_pairs - 1))
    assert message == (
        f"left out: users had {counts.num_pairs:,} pairs of items together, more than "
        f"evaluation.item_knn.max_pairs {counts.num_pairs - 1:,}"
    )
