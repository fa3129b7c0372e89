"""The scorer and the evaluator each Ray actor runs: a bucket in, its rows committed.

Modules of their own because Ray pickles what stands in an entry module by value. Invariant: a bucket is committed whole
or not at all, so that a killed job leaves no user half scored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from data_io.buckets import BucketWriter
from data_io.examples import Examples, history_examples, next_item_examples, outcome_examples
from data_io.features import FEATURE_NAMES, history_features
from data_io.schema import USER_ID
from data_io.scores import UserScores, scores_table, seen_pairs
from data_io.sequences import Sequences
from data_io.splits import Split
from data_io.store import SequenceStore
from model.checkpoint import SavedModel, load_model
from model.config import OutcomeTask
from model.encoder import ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.scoring import iter_batches, outcome_probabilities, rank_items
from model.topk import exclude_items, target_ranks, top_k
from ray_jobs.config import BASELINES


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """What a scorer needs to know."""

    store: SequenceStore
    recommender_url: str
    task_urls: Mapping[str, str]
    writer: BucketWriter
    k: int
    exclude_seen: bool
    as_of: Literal["log_end", "last_event"]
    batch_size: int
    model_version: str


class Scorer:
    """Scores the users of one bucket after the other."""

    def __init__(self, run: ScoreRun) -> None:
        self.run = run
        self.device = _device()
        self.recommender = _loaded(run.recommender_url, self.device)
        self.tasks = {name: _loaded(url, self.device) for name, url in run.task_urls.items()}

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Score and commit one bucket; returns its mark."""
        sequences = self.run.store.read_sequences(bucket)
        table = scores_table(sequences, self.score(sequences), self.recommender.vocabulary, self.run.model_version)
        facts = {"num_users": table.num_rows}
        return self.run.writer.commit(bucket, self.run.store.num_buckets, table, facts)

    def score(self, sequences: Sequences) -> UserScores:
        """Recommendations, embeddings and task probabilities of all users of a bucket."""
        encoder = self.recommender.encoder
        sequences = _known_to(encoder, sequences)
        now = self.run.store.end_time if self.run.as_of == "log_end" else None
        examples = history_examples(sequences, now, encoder.config.sequence_length)
        width = min(self.run.k, encoder.config.vocabulary_size)
        items, scores = [np.zeros((0, width), np.int64)], [np.zeros((0, width), np.float32)]
        vectors = [np.zeros((0, encoder.config.hidden_size), np.float32)]
        for part, batch in iter_batches(sequences, examples, self.run.batch_size):
            users, all_scores = rank_items(encoder, batch)
            if self.run.exclude_seen:
                exclude_items(all_scores, *seen_pairs(sequences, part))
            best, indices = top_k(all_scores, self.run.k)
            items.append(indices.cpu().numpy())
            scores.append(best.cpu().numpy())
            vectors.append(users.cpu().numpy())
        tasks = {name: self._probabilities(saved, sequences) for name, saved in self.tasks.items()}
        return UserScores(
            item_index=np.concatenate(items),
            item_score=np.concatenate(scores),
            embedding=np.concatenate(vectors),
            tasks=tasks,
        )

    def _probabilities(self, saved: SavedModel, sequences: Sequences) -> np.ndarray:
        model = _outcome_model(saved)
        sequences = _known_to(model.encoder, sequences)
        examples = history_examples(sequences, self.run.store.end_time, model.config.sequence_length)
        return outcome_probabilities(model, sequences, examples, self.run.batch_size)


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """What an evaluator needs to know."""

    store: SequenceStore
    split: Split
    model_urls: Mapping[str, str]
    """Next-item models by name."""
    task_urls: Mapping[str, str]
    """Outcome models by name."""
    target_actions: list[str] | None
    popularity: np.ndarray
    """[V] events of each item before the test cutoff."""
    writers: Mapping[str, BucketWriter]
    """Where per-user results go: next_item, and each task by name."""
    exclude_seen: bool
    batch_size: int


class Evaluator:
    """Ranks held-out targets and predicts held-out outcomes, one bucket after the other."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.device = _device()
        self.models = {name: _loaded(url, self.device).encoder for name, url in run.model_urls.items()}
        self.tasks = {name: _loaded(url, self.device) for name, url in run.task_urls.items()}
        self.popularity = torch.from_numpy(run.popularity.astype(np.float64)).to(self.device)

    def __call__(self, bucket: int) -> dict[str, dict[str, Any]]:
        """Evaluate and commit one bucket; returns its marks by table."""
        sequences = self.run.store.read_sequences(bucket)
        tables = {"next_item": self.rank_targets(sequences)}
        tables |= {name: self.predict_outcomes(saved, sequences) for name, saved in self.tasks.items()}
        return {
            name: self.run.writers[name].commit(
                bucket, self.run.store.num_buckets, table, {"num_users": table.num_rows}
            )
            for name, table in tables.items()
        }

    def rank_targets(self, sequences: Sequences) -> pa.Table:
        """One row per user with a target: its rank by every model and baseline."""
        length = max(model.config.sequence_length for model in self.models.values())
        actions = self.run.store.action_indices(self.run.target_actions)
        examples = next_item_examples(sequences, self.run.split, "test", length, actions)
        ranks: dict[str, list[np.ndarray]] = {name: [] for name in (*self.models, *BASELINES)}
        for first in range(0, len(examples), self.run.batch_size):
            part = examples.take(np.arange(first, min(first + self.run.batch_size, len(examples))))
            for name, scores in self._all_scores(sequences, part):
                ranks[name].append(self._ranks(scores, sequences, part))
        empty = np.zeros(0, np.int64)
        columns = {f"rank_{name}": np.concatenate([empty, *parts]) for name, parts in ranks.items()}
        history_length = examples.end - sequences.starts[examples.row]
        user_id = sequences.user_id.take(pa.array(examples.row))
        return pa.table({USER_ID: user_id, "history_length": history_length, **columns})

    def _all_scores(self, sequences: Sequences, part: Examples) -> Any:
        for name, model in self.models.items():
            start = np.maximum(part.start, part.end - model.config.sequence_length)
            own = Examples(row=part.row, start=start, end=part.end, now=part.now, target=part.target)
            (_, batch), *_ = iter_batches(_known_to(model, sequences), own, len(own))
            scores = rank_items(model, batch)[1].double()
            newer = len(self.popularity) - scores.shape[1]  # items the model does not know stand last
            yield name, torch.nn.functional.pad(scores, (0, newer), value=-torch.inf)
        yield "popularity", self.popularity.repeat(len(part), 1)
        row, item = seen_pairs(sequences, part)
        counts = (self.popularity / (self.popularity.max() + 1)).repeat(len(part), 1)
        place = torch.from_numpy(row).to(self.device), torch.from_numpy(item.astype(np.int64)).to(self.device)
        yield "own_history", counts.index_put_(place, torch.ones(len(row), dtype=counts.dtype), accumulate=True)

    def _ranks(self, scores: torch.Tensor, sequences: Sequences, part: Examples) -> np.ndarray:
        targets = torch.from_numpy(part.target.astype(np.int64)).to(self.device)
        if self.run.exclude_seen:
            own = scores.gather(1, targets[:, None])
            exclude_items(scores, *seen_pairs(sequences, part))
            scores.scatter_(1, targets[:, None], own)
        return target_ranks(scores, targets).cpu().numpy()

    def predict_outcomes(self, saved: SavedModel, sequences: Sequences) -> pa.Table:
        """One row per user with history at each of two moments: what was predicted, what happened, the features."""
        model, task = _outcome_model(saved), OutcomeTask.model_validate(saved.manifest["task"])
        sequences = _known_to(model.encoder, sequences)
        assert self.run.split is not None
        parts = []
        for stage in ("validation", "test"):
            cutoffs = np.array([self.run.split.of(stage)])
            actions = self.run.store.action_indices(task.actions)
            length = model.config.sequence_length
            examples = outcome_examples(sequences, cutoffs, task.horizon_days, length, actions)
            features = history_features(sequences, examples)
            columns = {f"feature_{name}": features[:, place] for place, name in enumerate(FEATURE_NAMES)}
            columns |= {
                "outcome": examples.target,
                "probability": outcome_probabilities(model, sequences, examples, self.run.batch_size),
                "stage": [stage] * len(examples),
            }
            parts.append(pa.table({USER_ID: sequences.user_id.take(pa.array(examples.row)), **columns}))
        return pa.concat_tables(parts, promote_options="permissive")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loaded(url: str, device: torch.device) -> SavedModel:
    saved = load_model(url)
    torch.nn.Module.to(saved.model, device)
    return saved


def _known_to(encoder: ClickformerEncoder, sequences: Sequences) -> Sequences:
    return sequences.known_to(encoder.config.vocabulary_size, encoder.config.num_actions)


def _outcome_model(saved: SavedModel) -> ClickformerForOutcome:
    assert isinstance(saved.model, ClickformerForOutcome), "jobs pass outcome tasks only"
    return saved.model
