"""Ranked searches: the row that is written for every request.

Invariant: lists of a request are of one length, best first; what is not known of an item is null.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from data_io.requests import RELEVANCE, REQUEST
from data_io.schema import QUERY, USER_ID
from data_io.scores import ITEM_IDS, SCORES

PREFERENCE: Final = "preference"
KNOWN_USER: Final = "known_user"
NUM_UNKNOWN_ITEMS: Final = "num_unknown_items"
RELEVANCE_FROM: Final = "relevance_from"
FROM_ENGINE, FROM_BM25 = "engine", "bm25"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedItems:
    """P items of N requests, request by request and best first; arrays are [P], numbers NaN where there is none."""

    request: np.ndarray
    """Place among the N requests."""
    item_id: pa.Array
    score: np.ndarray
    relevance: np.ndarray
    preference: np.ndarray


def ranked_table(requests: pa.Table, items: RankedItems, known_user: np.ndarray, from_engine: np.ndarray) -> pa.Table:
    """One row for each request.

    Args:
        requests: N rows of `data_io.requests.Requests.table`.
        items: of them.
        known_user: [N] whether the store knows the user.
        from_engine: [N] whether the request said the relevance of its candidates.
    """
    count = requests.num_rows
    lengths = np.bincount(items.request, minlength=count)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    unknown = np.bincount(items.request[np.isnan(items.preference)], minlength=count)

    def lists(values: pa.Array) -> pa.Array:
        return pa.LargeListArray.from_arrays(offsets, values)

    def numbers(values: np.ndarray) -> pa.Array:
        return lists(pa.array(values.astype(np.float32), from_pandas=True))

    return pa.table(
        {
            REQUEST: requests.column(REQUEST),
            USER_ID: requests.column(USER_ID),
            QUERY: requests.column(QUERY),
            ITEM_IDS: lists(items.item_id),
            SCORES: numbers(items.score),
            RELEVANCE: numbers(items.relevance),
            PREFERENCE: numbers(items.preference),
            KNOWN_USER: pa.array(known_user),
            NUM_UNKNOWN_ITEMS: pa.array(unknown.astype(np.int32)),
            RELEVANCE_FROM: pa.array(np.where(from_engine, FROM_ENGINE, FROM_BM25).tolist(), pa.string()),
        }
    )
