"""The ranker of searches each Ray actor runs: requests of a bucket's users in, their rows committed.

A module of its own because Ray pickles what stands in an entry module by value. Invariants: only buckets with requests
are read; a bucket is committed whole or not at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_io.buckets import BucketWriter
from data_io.ranked import RankedItems, ranked_table
from data_io.requests import CANDIDATES, RELEVANCE, searches_of
from data_io.schema import FIRST_INDEX
from data_io.searches import NOBODY, Searches, places_before
from data_io.sequences import Sequences
from data_io.store import SequenceStore
from model.relevance import Relevance, item_texts
from model.search_ranking import blend, order_candidates, preferences
from model.topk import exclude_items, top_k
from ray_jobs.loading import find_device, known_to, load_for, with_inputs

_SCORES_AT_ONCE = 1 << 24
"""So that memory does not grow with the catalogue: there are some ten numbers of 4 bytes for each."""


@dataclass(frozen=True, kw_only=True)
class SearchRun:
    """What a ranker of searches needs to know."""

    store: SequenceStore
    model_url: str
    writer: BucketWriter
    search_action: int
    """Index of the action of searches."""
    k: int
    weight: float
    exclude_seen: bool
    batch_size: int


class SearchModel:
    """What ranks searches, loaded once: the network, and the words of the items."""

    def __init__(self, store: SequenceStore, model_url: str, search_action: int) -> None:
        self.encoder = load_for(model_url, find_device(), store).encoder
        self.store = with_inputs(store, [self.encoder])
        self.num_items = store.vocabulary.size
        self.search_action = search_action
        has_items = bool(store.manifest.get("items"))
        self.words = Relevance(item_texts(store.read_items())) if has_items else None

    def batches(self, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """Places of searches that are ranked together."""
        at_once = max(min(batch_size, _SCORES_AT_ONCE // self.num_items), 1)
        return (np.arange(first, min(first + at_once, count)) for first in range(0, count, at_once))

    def preference(self, searches: Searches, sequences: Sequences) -> torch.Tensor:
        """[N, V] see `model.search_ranking.preferences`; 0 where neither user nor query say anything."""
        known = known_to(self.encoder, sequences)
        found = preferences(self.encoder, searches, known, self.search_action, self.num_items).cpu()
        events = np.bincount(places_before(searches, sequences)[0], minlength=len(searches))
        silent = (events == 0) & ~searches.query.is_valid().to_numpy(zero_copy_only=False)
        rows = torch.from_numpy(silent)[:, None] & torch.isfinite(found)
        return found.masked_fill(rows, 0.0)

    def relevance(self, queries: pa.Array) -> torch.Tensor:
        """[N, V] BM25 of each item; 0 where there is no item table, which only requests with scores may do without."""
        if self.words is None:
            return torch.zeros(len(queries), self.num_items)
        return torch.from_numpy(self.words.scores(queries))


class SearchRanker:
    """Ranks the requests of one bucket after the other."""

    def __init__(self, run: SearchRun) -> None:
        self.run = run
        self.model = SearchModel(run.store, run.model_url, run.search_action)

    def __call__(self, work: tuple[int, pa.Table]) -> dict[str, Any]:
        """Rank and commit the requests of a bucket; returns its mark."""
        bucket, requests = work
        table = self.rank(requests, self.model.store.read_sequences(bucket))
        facts = {
            "num_requests": table.num_rows,
            "num_unknown_users": table.num_rows - int(np.sum(table.column("known_user").to_numpy())),
            "num_unknown_items": int(np.sum(table.column("num_unknown_items").to_numpy())),
        }
        return self.run.writer.commit(bucket, self.run.store.num_buckets, table, facts)

    def rank(self, requests: pa.Table, sequences: Sequences) -> pa.Table:
        """Rows of the requests of a bucket."""
        searches = searches_of(requests, sequences, self.run.store.end_time)
        parts = [
            self._rank(requests.take(pa.array(places)), searches.take(places), sequences)
            for places in self.model.batches(len(searches), self.run.batch_size)
        ]
        return pa.concat_tables(parts)

    def _rank(self, requests: pa.Table, searches: Searches, sequences: Sequences) -> pa.Table:
        preference = self.model.preference(searches, sequences)
        words = self.model.relevance(searches.query)
        named = requests.column(CANDIDATES).is_valid().to_numpy()
        found = _together(
            self._best_of_all(preference, words, searches, sequences, named),
            self._best_candidates(requests, preference.numpy(), words.numpy()),
        )
        engine = requests.column(RELEVANCE).is_valid().to_numpy()
        return ranked_table(requests, found, searches.row != NOBODY, engine)

    def _best_of_all(
        self,
        preference: torch.Tensor,
        words: torch.Tensor,
        searches: Searches,
        sequences: Sequences,
        named: np.ndarray,
    ) -> RankedItems:
        """The K best items of the catalogue for searches that name no candidates."""
        scores = blend(words, preference, self.run.weight)
        if self.run.exclude_seen:
            search, places = places_before(searches, sequences)
            exclude_items(scores, search, sequences.item_index[places])
        values, items = top_k(scores, self.run.k)
        listed = torch.isfinite(values) & ~torch.from_numpy(named)[:, None]
        request, place = (part.numpy() for part in listed.nonzero(as_tuple=True))
        item = items.numpy()[request, place]
        return RankedItems(
            request=request,
            item_id=self.run.store.vocabulary.item_ids.take(pa.array(item - FIRST_INDEX)),
            score=values.numpy()[request, place],
            relevance=words.numpy()[request, item],
            preference=preference.numpy()[request, item],
        )

    def _best_candidates(self, requests: pa.Table, preference: np.ndarray, words: np.ndarray) -> RankedItems:
        """All candidates of the requests that name any, best first."""
        lists = requests.column(CANDIDATES).combine_chunks()
        lengths = lists.value_lengths().fill_null(0).to_numpy()
        request = np.repeat(np.arange(len(lists)), lengths)
        ids = lists.flatten()
        item = self.run.store.vocabulary.encode(ids)
        relevance = words[request, item].astype(np.float64)
        given = requests.column(RELEVANCE).combine_chunks()
        has_given = np.repeat(given.is_valid().to_numpy(zero_copy_only=False), lengths)
        relevance[has_given] = given.flatten().to_numpy()
        own = preference[request, item].astype(np.float64)
        own[np.isneginf(own)] = np.nan
        score = relevance + self.run.weight * own
        order = order_candidates(request, score, relevance)
        return RankedItems(
            request=request[order],
            item_id=ids.take(pa.array(order)),
            score=score[order],
            relevance=relevance[order],
            preference=own[order],
        )


def _together(one: RankedItems, other: RankedItems) -> RankedItems:
    """Items of different requests of the same batch, in the order of the requests."""
    request = np.concatenate([one.request, other.request])
    order = np.argsort(request, kind="stable")
    ids = pa.concat_arrays([one.item_id.cast(other.item_id.type), other.item_id])
    numbers = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])[order]
        for name in ("score", "relevance", "preference")
    }
    return RankedItems(request=request[order], item_id=ids.take(pa.array(order)), **numbers)
