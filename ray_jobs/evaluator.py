"""The evaluator each Ray actor runs: a bucket in, the ranks of its targets and its outcomes committed.

A module of its own because Ray pickles what stands in an entry module by value. Invariant: a bucket is committed whole
or not at all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_io.buckets import BucketWriter
from data_io.examples import Examples, next_item_examples
from data_io.questions import recall_questions, with_numbers_for
from data_io.schema import ITEM_INDEX, USER_ID
from data_io.scores import response_column, seen_pairs
from data_io.sequences import Sequences
from data_io.splits import Cutoffs, Split
from data_io.store import SequenceStore
from model.baselines import Baselines, BaselineTables
from model.checkpoint import SavedModel
from model.popularity import GROUPS, popularity_groups
from model.scoring import UserBatches, iter_batches, rank_items
from model.topk import exclude_items, target_ranks, top_k
from model.trees import load_trees
from ray_jobs.loading import find_device, known_to, load_for, with_inputs
from ray_jobs.outcome_tables import AskedTask, outcome_tables
from ray_jobs.response_tables import AskedResponse, response_table

RANKER, NUM_LISTED = "ranker", "num_listed"
_SCORES_AT_ONCE = 1 << 25
"""So that memory does not grow with the catalogue: scores are 8 bytes, and ranking them takes about as much again."""
HISTORIES = "(histories)"
"""Stands where a ranker's name does, for items of the histories themselves; no model can be called so."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """What an evaluator needs to know."""

    store: SequenceStore
    split: Split
    model_urls: Mapping[str, str]
    """Next-item models by name; each is held against those after it."""
    task_urls: Mapping[str, str]
    """Outcome models by name."""
    target_actions: list[str] | None
    baselines: BaselineTables
    training_events: np.ndarray
    """[V] events of each item before the validation cutoff."""
    writers: Mapping[str, BucketWriter]
    """Where results go: next_item and each task by user, responses by pair, lists by item."""
    exclude_seen: bool
    list_k: int
    """Items in the lists that are counted by item."""
    batch_size: int
    response_urls: Mapping[str, str] = field(default_factory=dict)
    """Response models by name."""
    trees: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Gradient-boosted trees by task and question, as text."""


class Evaluator:
    """Ranks held-out targets and predicts held-out outcomes, one bucket after the other."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.device = find_device()
        self.models = {name: load_for(url, self.device, run.store).encoder for name, url in run.model_urls.items()}
        self.asked = {
            name: self._ask(name, load_for(url, self.device, run.store)) for name, url in run.task_urls.items()
        }
        self.responses = {
            name: AskedResponse.of(load_for(url, self.device, run.store)) for name, url in run.response_urls.items()
        }
        tasks = [*self.asked.values(), *self.responses.values()]
        encoders = [*self.models.values(), *(task.saved.encoder for task in tasks)]
        questions = [question for task in self.asked.values() for question in task.questions]
        self.store = with_numbers_for(with_inputs(run.store, encoders), questions)
        self.baselines = Baselines(run.baselines, self.device)
        self.groups = popularity_groups(run.training_events)

    def _ask(self, name: str, saved: SavedModel) -> AskedTask:
        trees = {question: load_trees(text) for question, text in self.run.trees.get(name, {}).items()}
        questions = recall_questions(saved.manifest["questions"], self.run.store)
        return AskedTask(name=name, saved=saved, questions=questions, trees=trees)

    def __call__(self, bucket: int) -> dict[str, dict[str, Any]]:
        """Evaluate and commit one bucket; returns its marks by table."""
        sequences = self.store.read_sequences(bucket)
        ranks, lists = self.rank_targets(sequences)
        tables = {"next_item": ranks, "lists": lists}
        for name in self.asked:
            tables |= self.predict_outcomes(name, sequences)
        tables |= {response_column(name): self.predict_responses(name, sequences) for name in self.responses}
        return {
            name: self.run.writers[name].commit(bucket, self.run.store.num_buckets, table, {"num_rows": table.num_rows})
            for name, table in tables.items()
        }

    def rank_targets(self, sequences: Sequences) -> tuple[pa.Table, pa.Table]:
        """Every model and baseline held against the targets of a bucket.

        Returns:
            One row per user with a target, with its rank by each; and one row per ranker and item, with the number of
            users in whose first `list_k` items it stands.
        """
        length = max(model.config.sequence_length for model in self.models.values())
        actions = self.run.store.action_indices(self.run.target_actions)
        examples = next_item_examples(
            sequences, self.run.split, "test", length, actions, new_only=self.run.exclude_seen
        )
        names, size = (*self.models, *self.baselines.names), len(self.groups)
        ranks = {name: [np.zeros(0, np.int64)] for name in names}
        listed = {name: np.zeros(size, np.int64) for name in (*names, HISTORIES)}
        at_once = min(self.run.batch_size, max(_SCORES_AT_ONCE // size, 1))
        for first in range(0, len(examples), at_once):
            part = examples.take(np.arange(first, min(first + at_once, len(examples))))
            seen = seen_pairs(sequences, part)
            listed[HISTORIES] += np.bincount(seen[1], minlength=size)
            for name, scores in self._all_scores(sequences, part, seen):
                of_targets, items = self._rank(scores, part.target, seen)
                ranks[name].append(of_targets)
                listed[name] += np.bincount(items, minlength=size)
        columns = {
            USER_ID: sequences.user_id.take(pa.array(examples.row)),
            "history_length": examples.end - sequences.starts[examples.row],
            "target_group": pa.array(np.array(GROUPS)[self.groups[examples.target]]),
            "target_training_events": self.run.training_events[examples.target],
        }
        columns |= {f"rank_{name}": np.concatenate(parts) for name, parts in ranks.items()}
        return pa.table(columns), _lists_table(listed)

    def _all_scores(
        self, sequences: Sequences, part: Examples, seen: tuple[np.ndarray, np.ndarray]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, model in self.models.items():
            start = np.maximum(part.start, part.end - model.config.sequence_length)
            own = Examples(row=part.row, start=start, end=part.end, now=part.now, target=part.target)
            (_, batch), *_ = iter_batches(known_to(model, sequences), own, len(own))
            scores = rank_items(model, batch)[1].double()
            newer = len(self.groups) - scores.shape[1]  # items the model does not know stand last
            yield name, torch.nn.functional.pad(scores, (0, newer), value=-torch.inf)
        yield from self.baselines.iter_scores(*seen, len(part))

    def _rank(
        self, scores: torch.Tensor, target: np.ndarray, seen: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """[B] ranks of targets among scores [B, V], and the items of all first `list_k` places, user after user.

        A target that has no score, because the ranker does not know the item, comes after the whole catalogue.
        """
        targets = torch.from_numpy(target.astype(np.int64)).to(self.device)
        own = scores.gather(1, targets[:, None])
        if self.run.exclude_seen:
            exclude_items(scores, *seen)
        best, items = top_k(scores, self.run.list_k)
        ranks = target_ranks(scores, targets).masked_fill(torch.isneginf(own[:, 0]), scores.shape[1] + 1)
        return ranks.cpu().numpy(), items[torch.isfinite(best)].cpu().numpy()

    def predict_outcomes(self, name: str, sequences: Sequences) -> dict[str, pa.Table]:
        """One table for each question of a task (see `ray_jobs.outcome_tables`)."""
        assert isinstance(self.run.split, Cutoffs), "there are no outcomes without moments"
        task = self.asked[name]
        known = known_to(task.saved.encoder, sequences)
        return outcome_tables(task, known, self.run.split, UserBatches(self.run.batch_size))

    def predict_responses(self, name: str, sequences: Sequences) -> pa.Table:
        """Pairs of a task of responses (see `ray_jobs.response_tables`)."""
        assert isinstance(self.run.split, Cutoffs), "there are no responses without moments"
        batches = UserBatches(self.run.batch_size)
        return response_table(self.responses[name], self.store, sequences, self.run.split, batches)


def _lists_table(listed: dict[str, np.ndarray]) -> pa.Table:
    """Counts [V] by ranker as rows of ranker, item_index and num_listed; items in no list have none."""
    items = {name: np.flatnonzero(counts) for name, counts in listed.items()}
    return pa.table(
        {
            RANKER: pa.array(np.repeat(list(listed), [len(found) for found in items.values()]).tolist(), pa.string()),
            ITEM_INDEX: pa.array(np.concatenate(list(items.values())).astype(np.int32)),
            NUM_LISTED: pa.array(np.concatenate([listed[name][found] for name, found in items.items()])),
        }
    )
