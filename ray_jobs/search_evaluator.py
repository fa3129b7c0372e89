"""The evaluator of searches each Ray actor runs: a bucket in, ranks of what held-out searches led to committed.

A module of its own because Ray pickles what stands in an entry module by value. Invariant: all rankers see the same
searches and the whole catalogue.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from data_io.buckets import BucketWriter, hash64
from data_io.schema import EVENT_TIME, FIRST_INDEX, ITEM_INDEX, QUERY, USER_ID
from data_io.searches import Searches, held_out_searches, places_before, training_searches
from data_io.sequences import Sequences, flat_values
from data_io.splits import Split, Stage
from data_io.store import SequenceStore
from model.search_ranking import blend
from model.topk import exclude_items, target_ranks
from ray_jobs.search_ranker import SearchModel

STAGE: Final = "stage"
RANK: Final = "rank_"
"""Before the name of a ranker."""
POPULARITY, QUERY_POPULARITY, BM25 = "popularity", "query_popularity", "bm25"
QUERY_ONLY, HISTORY_ONLY, PERSONALISED = "query_only", "history_only", "personalised"
COUNT: Final = "count"
_SHARES: Final = 10_000
"""Parts that users are hashed into, of which a share is measured."""


BLEND, QUERY_BLEND, COUNTED_BLEND, COUNTED_QUERY_BLEND = "blend", "query_blend", "counted_blend", "counted_query_blend"
COUNTED_LIFT: Final = "counted_lift"
LIFT: Final = "lift"
"""What a history changes: log-probability by the network with both, less that with the query only."""
BLENDED: Final = {
    BLEND: (BM25, PERSONALISED),
    QUERY_BLEND: (BM25, QUERY_ONLY),
    COUNTED_BLEND: (QUERY_POPULARITY, PERSONALISED),
    COUNTED_QUERY_BLEND: (QUERY_POPULARITY, QUERY_ONLY),
    COUNTED_LIFT: (QUERY_POPULARITY, LIFT),
}
"""Rankings that a relevance (of query_popularity its logarithm) and the network make together, each with both."""


def weighted_name(blended: str, place: int) -> str:
    """Name of a blend by the weight at that place."""
    return f"{blended}_{place}"


@dataclass(frozen=True, kw_only=True)
class SearchEvaluationRun:
    """What an evaluator of searches needs to know."""

    store: SequenceStore
    split: Split
    model_url: str
    writer: BucketWriter
    search_action: int
    target_actions: np.ndarray | None
    counts: pl.DataFrame
    """query, item_index and count of what searches of the training part led to."""
    weights: tuple[float, ...]
    exclude_seen: bool
    user_share: float
    batch_size: int


def queries_of(store: SequenceStore, bucket: int) -> pa.Array:
    """[E] queries of the events of a bucket, as text."""
    rows = store.read_rows(bucket, columns=[USER_ID, EVENT_TIME, QUERY])
    return flat_values(rows.column(QUERY))[1].cast(pa.large_string())


def count_queries(run: SearchEvaluationRun, bucket: int) -> pl.DataFrame:
    """query, item_index and count of what training searches of a bucket led to."""
    sequences, queries = run.store.read_sequences(bucket), queries_of(run.store, bucket)
    asked, items = training_searches(sequences, queries, run.split, run.search_action, run.target_actions)
    pairs = pl.DataFrame({QUERY: pl.Series(asked, dtype=pl.String), ITEM_INDEX: items})
    return pairs.group_by(QUERY, ITEM_INDEX).len(COUNT)


def _is_measured(user_ids: pa.Array, share: float) -> np.ndarray:
    """[N] True for about a share of the users, the same ones each time, whatever bucket they are in."""
    return (hash64(user_ids) >> np.uint64(32)) % np.uint64(_SHARES) < share * _SHARES


class SearchEvaluator:
    """Ranks what held-out searches led to, one bucket after the other."""

    def __init__(self, run: SearchEvaluationRun) -> None:
        self.run = run
        self.model = SearchModel(run.store, run.model_url, run.search_action)
        size = self.model.num_items
        popular = np.bincount(run.counts[ITEM_INDEX], run.counts[COUNT], size) + 1.0
        self.popular = torch.from_numpy(popular / popular.sum())

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Evaluate and commit one bucket; returns its mark."""
        sequences, queries = self.model.store.read_sequences(bucket), queries_of(self.run.store, bucket)
        stages: tuple[Stage, ...] = get_args(Stage)
        table = pa.concat_tables([self.rank_stage(sequences, queries, stage) for stage in stages])
        return self.run.writer.commit(bucket, self.run.store.num_buckets, table, {"num_rows": table.num_rows})

    def rank_stage(self, sequences: Sequences, queries: pa.Array, stage: Stage) -> pa.Table:
        """One row for each held-out search of a stage, with the rank of what it led to by each ranker."""
        run = self.run
        searches, targets = held_out_searches(
            sequences,
            queries,
            run.split,
            stage,
            run.search_action,
            run.target_actions,
            new_only=run.exclude_seen,
        )
        measured = np.flatnonzero(_is_measured(sequences.user_id.take(pa.array(searches.row)), run.user_share))
        searches, targets = searches.take(measured), targets[measured]
        names = [POPULARITY, QUERY_POPULARITY, BM25, QUERY_ONLY, HISTORY_ONLY, PERSONALISED]
        names += [weighted_name(blended, place) for blended in BLENDED for place in range(len(run.weights))]
        ranks = {name: [np.zeros(0, np.int64)] for name in names}
        for places in self.model.batches(len(searches), run.batch_size):
            part = searches.take(places)
            seen = places_before(part, sequences) if run.exclude_seen else None
            for name, scores in self._all_scores(part, sequences):
                ranks[name].append(self._rank(scores, targets[places], seen, sequences))
        columns = {
            USER_ID: sequences.user_id.take(pa.array(searches.row)),
            STAGE: pa.array([stage] * len(searches), pa.string()),
            "history_length": pa.array(searches.before - sequences.starts[searches.row]),
        }
        return pa.table(columns | {f"{RANK}{name}": np.concatenate(parts) for name, parts in ranks.items()})

    def _all_scores(self, searches: Searches, sequences: Sequences) -> Iterator[tuple[str, torch.Tensor]]:
        popular = self.popular.expand(len(searches), -1)
        yield POPULARITY, popular.clone()
        counted = (self._counted(searches.query) + popular).log().float()
        yield QUERY_POPULARITY, counted.clone()
        words = self.model.relevance(searches.query)
        yield BM25, words.clone()
        yield HISTORY_ONLY, self.model.preference(searches.without_query(), sequences)
        relevance = {BM25: words, QUERY_POPULARITY: counted}
        both = self.model.preference(searches, sequences)
        alone = self.model.preference(searches.without_history(), sequences)
        lift = torch.where(torch.isneginf(alone), alone, both - alone)
        networks = {PERSONALISED: both, QUERY_ONLY: alone, LIFT: lift}
        for blended, (fit, network) in BLENDED.items():
            for place, weight in enumerate(self.run.weights):
                yield weighted_name(blended, place), blend(relevance[fit], networks[network], weight)
        yield PERSONALISED, both
        yield QUERY_ONLY, alone

    def _counted(self, queries: pa.Array) -> torch.Tensor:
        """[N, V] how often the same query led to each item in training."""
        asked = pl.DataFrame({QUERY: pl.Series(queries, dtype=pl.String)}).with_row_index("row")
        found = asked.join(self.run.counts, on=QUERY, how="inner")
        cells = found["row"].to_numpy().astype(np.int64) * self.model.num_items + found[ITEM_INDEX].to_numpy()
        size = len(queries) * self.model.num_items
        return torch.from_numpy(np.bincount(cells, found[COUNT], size).reshape(len(queries), -1))

    def _rank(
        self,
        scores: torch.Tensor,
        target: np.ndarray,
        seen: tuple[np.ndarray, np.ndarray] | None,
        sequences: Sequences,
    ) -> np.ndarray:
        """[B] ranks of targets; one that the ranker does not know comes after the whole catalogue."""
        scores[:, :FIRST_INDEX] = -torch.inf
        if seen is not None:
            exclude_items(scores, seen[0], sequences.item_index[seen[1]])
        targets = torch.from_numpy(target)
        own = scores.gather(1, targets[:, None])[:, 0]
        ranks = target_ranks(scores, targets).masked_fill(torch.isneginf(own), scores.shape[1] + 1)
        return ranks.numpy()
