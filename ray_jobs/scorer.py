"""The scorer each Ray actor runs: buckets in, their rows committed.

A module of its own because Ray pickles what stands in an entry module by value. Invariant: a bucket is committed whole
or not at all, so that a killed job leaves no user half scored.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from data_io.batch import Batch
from data_io.buckets import BucketWriter, read_bucket
from data_io.examples import Examples, history_examples
from data_io.schema import FIRST_INDEX, USER_ID
from data_io.scores import FROM_MODEL, ITEM_IDS, SCORES, UserScores, put_together, score_facts, scores_table
from data_io.sequences import Sequences
from data_io.snapshots import bucket_files
from data_io.store import SequenceStore
from model.checkpoint import SavedModel
from model.eligibility import make_personal
from model.encoder import ClickformerEncoder
from model.queries import Queries, concatenate
from model.ranker import Ranker, Ranking
from model.response import ClickformerForResponse
from model.scoring import UserBatches, ask, blended_answers, predict_responses
from model.sharing import unpack_model
from ray_jobs.loading import find_device, known_to, with_inputs
from ray_jobs.models import score_name
from ray_jobs.pipeline import overlap
from ray_jobs.popularity import Popularity, segments_of
from ray_jobs.rules import RulePlan
from ray_jobs.scoring_config import ScoringSettings
from ray_jobs.user_classes import UserClasses

_RANKED_AT_A_TIME = 2048
"""Users whose queries are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class ScoreRun:
    """What a scorer needs to know; models and arrays may be references to Ray's object store."""

    store: SequenceStore
    recommender: Any
    """A `PackedModel`."""
    tasks: Mapping[str, Any]
    """Packed models by name of the task."""
    writer: BucketWriter
    scoring: ScoringSettings
    rules: RulePlan | Any
    popularity: Popularity | Any | None
    """None: no user falls back to it."""
    model_version: str
    before: dict[str, Any] | None = None
    """Manifest of the scores that were published before; None: there are none."""
    carries: bool = False
    """Whether users without new events keep their rows from before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBucket:
    """What is read of a bucket before it is scored."""

    bucket: int
    sequences: Sequences
    carried: np.ndarray
    """[U] True where a user keeps the row from before."""
    before: pa.Table | None
    """Rows from before: all columns where any user is carried, else those that are compared."""


class Scorer:
    """Scores the users of one bucket after the other, the next being read and the last written meanwhile."""

    def __init__(self, run: ScoreRun) -> None:
        self.run = run
        self.device = find_device()
        self.recommender, items = unpack_model(_fetched(run.recommender), self.device)
        self.tasks = {name: unpack_model(_fetched(packed), self.device)[0] for name, packed in run.tasks.items()}
        self.store = with_inputs(run.store, [self.recommender.encoder, *(task.encoder for task in self.tasks.values())])
        self.rules = _fetched(run.rules).of_size(len(items))
        self.classes = UserClasses(self.rules)
        self.popularity: Popularity | None = _fetched(run.popularity)
        threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
        self.ranker = Ranker(items, num_threads=threads)
        self.popular = None
        if self.popularity is not None:
            self.popular = Ranker(torch.from_numpy(np.array(self.popularity.vectors)), num_threads=threads)
        self.batches = UserBatches(run.scoring.batch_size)

    def __call__(self, buckets: Sequence[int]) -> list[dict[str, Any]]:
        """Score and commit some buckets; returns their marks. What an attempt before has committed is left alone."""
        found = {bucket: self.run.writer.find_mark(bucket) for bucket in buckets}
        missing = [bucket for bucket, mark in found.items() if mark is None]
        marks = overlap(missing, self._read, self._work, self._commit)
        return [mark for mark in found.values() if mark is not None] + marks

    def _read(self, bucket: int) -> LoadedBucket:
        sequences = self.store.read_sequences(bucket)
        carried = np.zeros(sequences.num_users, bool)
        before = None
        if self.run.before is not None:
            if self.run.carries:
                carried = self._unchanged(bucket, sequences)
            columns = None if carried.any() else [USER_ID, ITEM_IDS, SCORES]
            before = read_bucket(self.run.writer.url, self.run.before, bucket, columns=columns)
            if carried.any():
                carried &= _is_in(sequences.user_id, before.column(USER_ID))
        return LoadedBucket(bucket=bucket, sequences=sequences, carried=carried, before=before)

    def _unchanged(self, bucket: int, sequences: Sequences) -> np.ndarray:
        """[U] True where nothing has been known of a user since the scores before."""
        assert self.run.before is not None
        known, parts = self.run.before["buckets"][str(bucket)].get("inputs"), inputs_of(self.store, bucket)
        if known is None or known["users"] != parts["users"] or known["parts"] != parts["parts"][: len(known["parts"])]:
            return np.zeros(sequences.num_users, bool)
        new_parts = self.store.read_columns(bucket, [USER_ID])[len(known["parts"]) :]
        kept = np.ones(sequences.num_users, bool)
        for part in new_parts:
            kept &= ~_is_in(sequences.user_id, part.column(USER_ID))
        return kept & ~self._falls_back(sequences)

    def _falls_back(self, sequences: Sequences) -> np.ndarray:
        """[U] True where too little is known of a user."""
        sequences = known_to(self.recommender.encoder, sequences)
        return num_known(sequences) < self.run.scoring.fallback.min_events

    def _work(self, loaded: LoadedBucket) -> tuple[int, pa.Table, dict[str, Any]]:
        """The rows of a bucket, and facts of them for its mark."""
        sequences, rows = loaded.sequences, np.flatnonzero(~loaded.carried)
        scores = self.score(loaded.bucket, sequences, rows)
        table = scores_table(
            sequences.user_id.take(pa.array(rows)),
            (sequences.ends - sequences.starts)[rows],
            scores,
            self.recommender.vocabulary,
            self.run.model_version,
            rules=self.rules.names,
            sources=[FROM_MODEL, *(self.popularity.sources if self.popularity else [])],
        )
        if loaded.before is not None and loaded.carried.any():
            table = put_together(sequences.user_id, table, loaded.before)
        facts = score_facts(table, loaded.before, self.run.scoring.k, loaded.carried)
        sources = dict(np.stack(np.unique(table.column("source").to_numpy(), return_counts=True), axis=1).tolist())
        facts |= {"num_users": table.num_rows, "num_scored": len(rows), "sources": sources}
        return loaded.bucket, table, facts | {"entry": {"inputs": inputs_of(self.store, loaded.bucket)}}

    def _commit(self, made: tuple[int, pa.Table, dict[str, Any]]) -> dict[str, Any]:
        bucket, table, facts = made
        return self.run.writer.commit(bucket, self.run.store.num_buckets, table, facts)

    def score(self, bucket: int, sequences: Sequences, rows: np.ndarray) -> UserScores:
        """Recommendations, embeddings and task probabilities of users of a bucket, by their rows [B]."""
        encoder, scoring = self.recommender.encoder, self.run.scoring
        known = known_to(encoder, sequences)
        now = self.run.store.end_time if scoring.as_of == "log_end" else None
        examples = history_examples(known, now, encoder.config.sequence_length).take(rows)
        order = np.argsort(examples.start - examples.end, kind="stable")  # long histories first, so few are padded
        ids = sequences.user_id.take(pa.array(rows[order]))
        kinds, self.ranker.rules = self.classes.of(ids, partial(self.run.store.read_user_table, bucket, ids))
        parts = [
            self._rank(known, examples.take(order[first : first + _RANKED_AT_A_TIME]), kinds, first)
            for first in range(0, len(order), _RANKED_AT_A_TIME)
        ]
        source = np.zeros(len(rows), np.int64)
        ranking, embedding = _together(parts, scoring.k, encoder.config.hidden_size)
        few = np.flatnonzero(num_known(known)[rows[order]] < scoring.fallback.min_events)
        if len(few) and self.popularity is not None:
            users = ids.take(pa.array(few))
            segment = segments_of(self.run.store, bucket, users, self.popularity.column, self.popularity.values)
            self._rank_popular(known, examples.take(order[few]), segment, kinds[few], ranking, few)
            source[few] = segment + 1
        places = np.argsort(order)
        items = ranking.item[places]
        return UserScores(
            item_index=items,
            item_score=ranking.score[places],
            acted=ranking.acted[places],
            source=source[places],
            embedding=embedding[places].astype(scoring.embedding),
            tasks={of: own for name in self._outcomes for of, own in self._answers(name, sequences, rows).items()},
            responses={
                name: self._responses(task, sequences, rows, items)
                for name, task in self.tasks.items()
                if isinstance(task.model, ClickformerForResponse)
            },
        )

    def _rank(
        self, sequences: Sequences, examples: Examples, kinds: np.ndarray, first: int
    ) -> tuple[Ranking, np.ndarray]:
        """Rankings and vectors [B, D] of some users, who stand from `first` on among the classes."""
        queries = self.encode(self.recommender.encoder, sequences, examples)
        pairs = self.rules.seen_pairs(sequences, examples)
        own = kinds[first : first + len(examples)]
        ranking = self.ranker.rank(queries, self.run.scoring.k, make_personal(len(examples), own, pairs))
        return ranking, queries.users.float().cpu().numpy()

    def encode(self, encoder: ClickformerEncoder, sequences: Sequences, examples: Examples) -> Queries:
        """What users ask of the catalogue."""

        def work(_: Examples, batch: Batch) -> Queries:
            return ask(encoder, batch)

        return concatenate(list(self.batches.each(sequences, examples, work)))

    def _rank_popular(
        self,
        sequences: Sequences,
        examples: Examples,
        segment: np.ndarray,
        kinds: np.ndarray,
        ranking: Ranking,
        places: np.ndarray,
    ) -> None:
        """Put what is popular in their segments in the places of some users."""
        assert self.popular is not None
        assert self.popularity is not None
        self.popular.rules = self.ranker.rules
        pairs = self.rules.seen_pairs(sequences, examples)
        personal = make_personal(len(examples), kinds, pairs)
        found = self.popular.rank(self.popularity.queries(segment), self.run.scoring.k, personal)
        ranking.item[places], ranking.score[places] = found.item, found.score
        ranking.acted[places] = found.acted

    def _answers(self, name: str, sequences: Sequences, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Answers [B, P] to the questions of a task, by score name."""
        saved = self.tasks[name]
        known = known_to(saved.encoder, sequences)
        examples = history_examples(known, self.run.store.end_time, saved.encoder.config.sequence_length).take(rows)
        order = np.argsort(examples.start - examples.end, kind="stable")
        found = blended_answers(saved, known, examples.take(order), self.batches)
        return {score_name(name, question): own[np.argsort(order)] for question, (own, _) in found.items()}

    @property
    def _outcomes(self) -> list[str]:
        """Names of the tasks that ask about users alone."""
        return [name for name, task in self.tasks.items() if not isinstance(task.model, ClickformerForResponse)]

    def _responses(self, saved: SavedModel, sequences: Sequences, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Probabilities [B, K] that items [B, K] of users are responded to."""
        assert isinstance(saved.model, ClickformerForResponse), "the only tasks that ask about items"
        known = known_to(saved.encoder, sequences)
        examples = history_examples(known, self.run.store.end_time, saved.encoder.config.sequence_length).take(rows)
        order = np.argsort(examples.start - examples.end, kind="stable")
        asked = examples.take(order).with_candidates(items[order])
        return predict_responses(saved.model, known, asked, self.batches)[np.argsort(order)]


def inputs_of(store: SequenceStore, bucket: int) -> dict[str, Any]:
    """What the rows of a bucket's scores are made of: its parts, and the rows of the user table."""
    users = store.manifest.get("users")
    of_users = bucket_files(users["buckets"][str(bucket)]) if users else []
    parts = bucket_files(store.manifest["buckets"][str(bucket)])
    return {"parts": [file["name"] for file in parts], "users": [file["sha256"] for file in of_users]}


def num_known(sequences: Sequences) -> np.ndarray:
    """[U] events with an item that is known."""
    counted = np.concatenate([[0], np.cumsum(sequences.item_index >= FIRST_INDEX)])
    return counted[sequences.ends] - counted[sequences.starts]


def _fetched(value: Any) -> Any:
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


def _is_in(values: pa.Array, chosen: pa.ChunkedArray) -> np.ndarray:
    options = pc.SetLookupOptions(chosen.cast(values.type))
    return pc.call_function("is_in", [values], options).to_numpy(zero_copy_only=False)


def _together(parts: list[tuple[Ranking, np.ndarray]], k: int, width: int) -> tuple[Ranking, np.ndarray]:
    """Rankings and vectors of several groups of users, one after the other."""
    rankings = [ranking for ranking, _ in parts]
    return Ranking(
        item=np.concatenate([np.zeros((0, k), np.int32), *(ranking.item for ranking in rankings)]),
        score=np.concatenate([np.zeros((0, k), np.float32), *(ranking.score for ranking in rankings)]),
        acted=np.concatenate([np.zeros(0, np.uint32), *(ranking.acted for ranking in rankings)]),
    ), np.concatenate([np.zeros((0, width), np.float32), *(vectors for _, vectors in parts)])
