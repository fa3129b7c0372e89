"""The report of the evaluate job on real data against a brute-force reference: every figure to a millionth.

The reference goes user by user over all items, in float64 where the job has no encoder, and knows nothing of how the
job batches, counts or merges. The encoder has learned nothing: its figures are as hard to get right.
"""

from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_io import storage
from data_io.buckets import iter_buckets
from data_io.examples import next_item_examples
from data_io.question_config import EventQuestion
from data_io.questions import describe_questions, find_question
from data_io.schema import FIRST_INDEX
from data_io.splits import DAY_US, Cutoffs
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.scoring import iter_batches, rank_items
from ray_jobs import build_sequences, convert, evaluate
from ray_jobs.config import Settings
from ray_jobs.training import open_store

K, RECENT_DAYS, NUM_NEIGHBOURS, NUM_EVENTS, DECAY = 10, 7, 50, 10, 0.8
QUESTION = EventQuestion(horizon_days=7, actions=["purchase"])


def make_settings(folder: Path, **sections: Any) -> Settings:
    content = {
        "run_dir": str(folder),
        "store": {"num_buckets": 4, "min_item_count": 5},
        "encoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 50},
        "evaluation": {"num_resamples": 10},
    }
    return Settings.model_validate(content | sections)


def publish_models(settings: Settings, store: SequenceStore, *, with_task: bool) -> None:
    torch.manual_seed(1)
    sizes = {"vocabulary_size": store.vocabulary.size, "num_actions": len(store.actions) + FIRST_INDEX}
    shape: dict[str, Any] = settings.encoder.model_dump(exclude={"inputs"}) | sizes
    split = open_store(settings)[1]
    facts = {"split": split.describe() if split else None, "actions": list(store.actions), "fingerprint": "f"}
    encoder = ClickformerEncoder(ClickformerConfig(**shape))
    save_model(encoder, store.vocabulary, settings.model_url("encoder"), facts | {"kind": "next_item"})
    if with_task:
        model = ClickformerForOutcome(ClickformerConfig(**shape, num_features=17))
        questions = describe_questions([find_question("", QUESTION, store)])
        moments = split.training_moments(8, 7).tolist() if isinstance(split, Cutoffs) else []
        task = facts | {"kind": "outcome", "questions": questions, "moments": moments}
        save_model(model, store.vocabulary, settings.model_url("purchase_7d"), task)


class Reference:
    """Ranks of every user's target by every ranker, each from scores of all items and a count of what is ahead."""

    def __init__(self, settings: Settings, store: SequenceStore) -> None:
        self.new_only, self.size = settings.evaluation.exclude_seen, store.vocabulary.size
        split = open_store(settings)[1]
        encoder = load_model(settings.model_url("encoder")).encoder
        self.users: list[tuple[np.ndarray, int]] = []
        users, recent, training = [], np.zeros(self.size), []
        for bucket in range(store.num_buckets):
            sequences = store.read_sequences(bucket)
            for row in range(sequences.num_users):
                span = slice(sequences.offsets[row], sequences.offsets[row + 1])
                users.append((sequences.item_index[span], sequences.event_time[span]))
        until = split.test if isinstance(split, Cutoffs) else store.end_time
        self.popularity = np.zeros(self.size)
        for items, times in users:
            if isinstance(split, Cutoffs):
                held, trained = times < split.test, times < split.validation
            else:
                held, trained = (np.arange(len(items)) < len(items) - left for left in (1, 2))
            np.add.at(self.popularity, items[held], 1)
            np.add.at(recent, items[held & (times >= until - RECENT_DAYS * DAY_US)], 1)
            training.append(items[trained])
            rest = items[~held]
            rest = (
                rest[(rest != 0) & ~np.isin(rest, items[held][items[held] >= FIRST_INDEX])] if self.new_only else rest
            )
            if held.any() and (rest != 0).any():
                self.users.append((items[held], int(rest[rest != 0][0])))
        self.recent, self.near = recent, None if isinstance(split, Cutoffs) else self._near(training)
        self.training = np.bincount(np.concatenate(training), minlength=self.size)
        self.encoded = self._encode(encoder, store, split)

    def _near(self, training: list[np.ndarray]) -> np.ndarray:
        """[V, V] cosines of items by the users who had them, of the nearest only."""
        had = np.zeros((len(training), self.size), np.float32)
        for user, items in enumerate(training):
            had[user, items[items >= FIRST_INDEX]] = 1
        both = (had.T @ had).astype(np.float64)
        counts = np.maximum(np.diag(both), 1)
        cosine = (both / np.sqrt(np.outer(counts, counts))).astype(np.float32).astype(np.float64)
        np.fill_diagonal(cosine, 0)
        order = np.argsort(-cosine, axis=1, kind="stable")[:, NUM_NEIGHBOURS:]
        np.put_along_axis(cosine, order, 0, axis=1)
        return cosine

    def _encode(self, encoder: ClickformerEncoder, store: SequenceStore, split: Any) -> list[np.ndarray]:
        scores = []
        for bucket in range(store.num_buckets):
            sequences = store.read_sequences(bucket)
            examples = next_item_examples(
                sequences, split, "test", encoder.config.sequence_length, None, new_only=self.new_only
            )
            for _, batch in iter_batches(sequences, examples, 32):
                scores += list(rank_items(encoder, batch)[1].numpy())
        return scores

    def scores(self, ranker: str, user: int) -> tuple[np.ndarray, np.ndarray]:
        """What items go by, and what equal ones go by then."""
        history = self.users[user][0]
        known = history[history >= FIRST_INDEX]
        match ranker:
            case "encoder":
                return self.encoded[user], np.zeros(self.size)
            case "popularity":
                return self.popularity, np.zeros(self.size)
            case "recent_popularity":
                return self.recent, self.popularity
            case "own_history":
                return np.bincount(known, minlength=self.size).astype(float), self.popularity
        sums = np.zeros(self.size)
        for age, item in enumerate(known[::-1][:NUM_EVENTS]):
            assert self.near is not None
            sums += np.rint(DECAY**age * self.near[int(item)] * 2**32)
        return sums, np.where(sums > 0, 0, self.popularity)

    def ranks(self, ranker: str) -> np.ndarray:
        """[B] rank of each user's target; infinity for one that cannot be named."""
        found = np.full(len(self.users), np.inf)
        for user, (history, target) in enumerate(self.users):
            if target < FIRST_INDEX:
                continue
            first, second = self.scores(ranker, user)
            ahead = (first > first[target]) | ((first == first[target]) & (second > second[target]))
            same = (first == first[target]) & (second == second[target])
            ahead |= same & (np.arange(self.size) < target)
            ahead[:FIRST_INDEX] = False
            if self.new_only:
                ahead[history] = False
            found[user] = ahead.sum() + 1
        return found


def means(ranks: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    values = {}
    for k in ks:
        hits = [rank for rank in ranks.tolist() if rank <= k]
        values[f"recall_at_{k}"] = len(hits) / len(ranks)
        values[f"ndcg_at_{k}"] = sum(1 / log2(1 + rank) for rank in hits) / len(ranks)
        values[f"mrr_at_{k}"] = sum(1 / rank for rank in hits) / len(ranks)
    return values


def check_rankings(report: dict[str, Any], reference: Reference, rankers: list[str]) -> None:
    figures = report["next_item"]
    assert figures["num_users"] == len(reference.users)
    assert list(figures["rankers"]) == rankers
    events = reference.training[[target for _, target in reference.users]]
    lengths = np.array([len(history) for history, _ in reference.users])
    ndcg = {}
    for name in rankers:
        ranks = reference.ranks(name)
        found = {metric: figure["value"] for metric, figure in figures["rankers"][name].items() if "_at_" in metric}
        assert found == pytest.approx(means(ranks, (5, 10, 20)), abs=1e-6), name
        ndcg[name] = np.where(ranks <= K, 1 / np.log2(1 + ranks), 0)
        rare = next(part for part in figures["slices"] if part["name"] == "rare (1 to 5)")
        users = (events > 0) & (events <= 5)
        assert rare["num_users"] == users.sum()
        assert rare["rankers"][name]["ndcg_at_10"]["value"] == pytest.approx(ndcg[name][users].mean(), abs=1e-6)
        quarter = next(part for part in figures["slices"] if part["by"] == "length of history")
        users = lengths <= np.quantile(lengths, 0.25, method="lower")
        assert quarter["num_users"] == users.sum()
        assert quarter["rankers"][name]["ndcg_at_10"]["value"] == pytest.approx(ndcg[name][users].mean(), abs=1e-6)
    for name, gain in figures["rankers"]["encoder"]["gain_over"].items():
        assert gain["value"] == pytest.approx((ndcg["encoder"] - ndcg[name]).mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_movielens_with_seen_items_left_out(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = {"name": "movielens", "path": str(shared_data("ml1m") / "sasrec_ml-1m.txt.gz")}
    sections = {"split": {"kind": "leave_one_out"}, "evaluation": {"num_resamples": 10, "exclude_seen": True}}
    settings = make_settings(tmp_path, source=source, finetune={"task": {"kind": "next_item"}}, **sections)
    convert.run(settings)
    store = build_sequences.run(settings)
    publish_models(settings, store, with_task=False)
    report = storage.read_json(f"{evaluate.run(settings)}/report.json")
    rankers = ["encoder", "popularity", "recent_popularity", "own_history", "item_knn"]
    check_rankings(report, Reference(settings, store), rankers)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_complete_journey_with_an_outcome(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = {"name": "complete_journey", "path": str(shared_data("completejourney"))}
    settings = make_settings(tmp_path, source=source, evaluation={"num_resamples": 10, "item_knn": {"max_pairs": 0}})
    convert.run(settings)
    store = build_sequences.run(settings)
    publish_models(settings, store, with_task=True)
    report = storage.read_json(f"{evaluate.run(settings)}/report.json")
    check_rankings(report, Reference(settings, store), ["encoder", "popularity", "recent_popularity", "own_history"])
    check_outcomes(settings, store, report["outcomes"]["purchase_7d"])


def check_outcomes(settings: Settings, store: SequenceStore, figures: dict[str, Any]) -> None:
    """What happened is read from the events, what was predicted from the job's table."""
    split = open_store(settings)[1]
    assert isinstance(split, Cutoffs)
    happened: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for bucket in range(store.num_buckets):
        sequences = store.read_sequences(bucket)
        for row, user in enumerate(sequences.user_id.to_pylist()):
            times = sequences.event_time[sequences.offsets[row] : sequences.offsets[row + 1]]
            for stage, own in happened.items():
                since = split.of(stage)
                if (times < since).any():
                    own[user] = float(((times >= since) & (times < since + 7 * DAY_US)).any())
    rows = [
        row for table in iter_buckets(settings.place("report", "users", "purchase_7d")) for row in table.to_pylist()
    ]
    test = {row["user_id"]: row["probability"] for row in rows if row["stage"] == "test"}
    assert test.keys() == happened["test"].keys()
    labels = np.array([happened["test"][user] for user in test])
    scores = np.array(list(test.values()))
    assert figures["num_users"] == len(labels)
    assert figures["rate"] == pytest.approx(labels.mean(), abs=1e-9)
    assert figures["auc"]["value"] == pytest.approx(area(labels, scores), abs=1e-6)
    trees = np.array([row["trees"] for row in rows if row["stage"] == "test"])
    assert figures["trees"]["auc"]["value"] == pytest.approx(area(labels, trees), abs=1e-6)
    assert area(labels, trees) > 0.75
    assert figures["log_loss"] == pytest.approx(-np.log(np.where(labels == 1, scores, 1 - scores)).mean(), abs=1e-6)
    rate = np.mean(list(happened["validation"].values()))
    assert figures["mean_rate_log_loss"] == pytest.approx(
        -np.log(np.where(labels == 1, rate, 1 - rate)).mean(), abs=1e-6
    )
    assert figures["auc"]["low"] < figures["auc"]["value"] < figures["auc"]["high"]


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in order, ties counting half."""
    above = scores[labels == 1][:, None] - scores[labels == 0]
    return float(((above > 0) + (above == 0) / 2).mean())
