"""Scores: one row per user, what the scoring job writes and everyone else reads.

Invariant: every user of the store has exactly one row, in the bucket of the user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io.examples import Examples
from data_io.schema import FIRST_INDEX, USER_ID
from data_io.sequences import Sequences
from data_io.vocabulary import Vocabulary

ITEM_IDS = "item_ids"
SCORES = "scores"
SOURCE = "source"
RULES = "rules"
EMBEDDING = "embedding"
NUM_EVENTS = "num_events"
MODEL_VERSION = "model_version"
FROM_MODEL = "model"
FROM_POPULARITY = "popularity"

_SCORE_BINS = np.linspace(-24.0, 0.0, 25)[1:-1]
"""Edges between which first scores are counted; they are log-probabilities."""


def response_column(name: str) -> str:
    """The column of a task's probabilities that the items of a list are responded to, in the list's order."""
    return f"response_{name}"


def task_column(name: str) -> str:
    """The column of a task's probability or amount, or of the probabilities of its classes."""
    return f"score_{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserScores:
    """What was computed for B users."""

    item_index: np.ndarray
    """[B, K] recommended items, best first."""
    item_score: np.ndarray
    """[B, K] their scores; minus infinity where there was no further item."""
    acted: np.ndarray
    """[B] uint32, rules that acted, as bits."""
    source: np.ndarray
    """[B] place of the source among `sources`."""
    embedding: np.ndarray
    """[B, D] float32 or float16."""
    tasks: dict[str, np.ndarray]
    """[B, P] answers by task and question: a probability or number, or several."""
    responses: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[B, K] probabilities that recommended items are responded to, by task."""


def scores_table(
    user_ids: pa.Array,
    num_events: np.ndarray,
    scores: UserScores,
    vocabulary: Vocabulary,
    model_version: str,
    *,
    rules: Sequence[str] = (),
    sources: Sequence[str] = (FROM_MODEL,),
) -> pa.Table:
    """The rows of B users; lists of users with fewer than K eligible items are shorter.

    Args:
        user_ids: of the users.
        num_events: [B] of their histories.
        scores: of the users.
        vocabulary: that items are indices of.
        model_version: of all of them.
        rules: names of the rules, by bit.
        sources: names of the sources.
    """
    real = np.isfinite(scores.item_score)
    offsets = pa.array(np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64))
    width = scores.embedding.shape[1]
    vectors = pa.array(scores.embedding.reshape(-1))
    columns = {
        USER_ID: user_ids,
        ITEM_IDS: pa.LargeListArray.from_arrays(offsets, vocabulary.decode(scores.item_index[real])),
        SCORES: pa.LargeListArray.from_arrays(offsets, pa.array(scores.item_score[real].astype(np.float32))),
        SOURCE: pa.array(sources, pa.string()).take(pa.array(scores.source)),
        RULES: _names_of_bits(scores.acted, rules),
    }
    for name, values in scores.responses.items():
        columns[response_column(name)] = pa.LargeListArray.from_arrays(offsets, pa.array(values[real], pa.float32()))
    columns |= {task_column(name): _answers(values.astype(np.float32)) for name, values in scores.tasks.items()}
    columns |= {
        EMBEDDING: pa.FixedSizeListArray.from_arrays(vectors, width),
        NUM_EVENTS: pa.array(num_events.astype(np.int32)),
        MODEL_VERSION: pa.repeat(pa.scalar(model_version), len(user_ids)),
    }
    return pa.table(columns)


def _answers(values: np.ndarray) -> pa.Array:
    """[B] answers, each a number or, where there are several, a list of them."""
    if values.ndim == 1 or values.shape[1] == 1:
        return pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _names_of_bits(bits: np.ndarray, names: Sequence[str]) -> pa.LargeListArray:
    """[B] lists of the names whose bits are set."""
    is_set = (bits[:, None] >> np.arange(len(names), dtype=np.uint32)) & np.uint32(1) == 1
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_set.sum(axis=1))]).astype(np.int64))
    return pa.LargeListArray.from_arrays(offsets, pa.array(names, pa.string()).take(pa.array(is_set.nonzero()[1])))


def put_together(user_ids: pa.Array, fresh: pa.Table, before: pa.Table) -> pa.Table:
    """The rows of users in their order: those that were scored anew, and of the others those from before."""
    table = pa.concat_tables([fresh, before.select(fresh.column_names).cast(fresh.schema)])
    known = table.column(USER_ID).combine_chunks()
    places = pc.call_function("index_in", [user_ids.cast(known.type)], pc.SetLookupOptions(known))
    return table.take(places)


def score_facts(table: pa.Table, before: pa.Table | None, k: int, carried: np.ndarray) -> dict[str, Any]:
    """What a gate holds against its bounds, of the rows of a bucket; figures of buckets add up.

    Args:
        table: rows of a bucket.
        before: columns user_id, item_ids and scores of the same bucket as it was published before; None: it was not.
        k: length of a full list.
        carried: [U] True where a row is the one from before.
    """
    lengths = pc.call_function("list_value_length", [table.column(ITEM_IDS)]).to_numpy()
    facts: dict[str, Any] = {"num_full": int((lengths >= k).sum()), "first_scores": _histogram(table)}
    if before is None:
        return facts
    known = pc.call_function("is_in", [table.column(USER_ID)], pc.SetLookupOptions(before.column(USER_ID)))
    compared = known.to_numpy() & (lengths > 0)
    return facts | {
        "num_compared": int(compared.sum()),
        "overlap": float((compared & carried).sum() + _overlap(table.filter(pa.array(compared & ~carried)), before)),
        "first_scores_before": _histogram(before),
    }


def _overlap(table: pa.Table, before: pa.Table) -> float:
    """The sum over users of the share of their items that they had before."""
    lengths = pc.call_function("list_value_length", [table.column(ITEM_IDS)]).to_numpy()
    places = pc.call_function("index_in", [table.column(USER_ID)], pc.SetLookupOptions(before.column(USER_ID)))
    (rows, items), (old_rows, old_items) = _pairs(table), _pairs(before.take(places))
    new = pa.table({"u": rows, "i": items})
    shared = new.join(pa.table({"u": old_rows, "i": old_items}), keys=["u", "i"], join_type="left semi")
    return float((1 / lengths[shared.column("u").to_numpy()]).sum())


def _pairs(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Row and item of everything in the lists."""
    lists = table.column(ITEM_IDS).combine_chunks()
    parents = pc.call_function("list_parent_indices", [lists]).cast(pa.int64())
    return parents, pc.call_function("list_flatten", [lists])


def _histogram(table: pa.Table) -> list[int]:
    lists = table.column(SCORES).combine_chunks()
    offsets = lists.offsets.to_numpy()
    first = lists.values.to_numpy(zero_copy_only=False)[offsets[:-1][np.diff(offsets) > 0]]
    return np.bincount(np.digitize(first, _SCORE_BINS), minlength=len(_SCORE_BINS) + 1).tolist()


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Population stability index of two histograms: the sum of (p - q) ln(p / q), with half a count in each bin more.

    Source:
        Siddiqi 2006, "Credit Risk Scorecards", chapter 9.
    """
    before, now = np.asarray(expected) + 0.5, np.asarray(found) + 0.5
    p, q = now / now.sum(), before / before.sum()
    return float(((p - q) * np.log(p / q)).sum())


def history_places(sequences: Sequences, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """(row of the batch, place of the event) of every event with a known item in the whole history of each example,
    before its span's end."""
    begin = sequences.starts[examples.row]
    lengths = examples.end - begin
    row = np.repeat(np.arange(len(examples)), lengths)
    places = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begin, lengths)
    known = sequences.item_index[places] >= FIRST_INDEX
    return row[known], places[known]


def seen_pairs(sequences: Sequences, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """(row of the batch, item) of every known item in the whole history of each example, before its span's end."""
    row, places = history_places(sequences, examples)
    return row, sequences.item_index[places]
