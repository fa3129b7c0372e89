"""Requests: searches that a shop wants ranked, read from files and told apart by the buckets of their users.

A request is never dropped. What cannot be used of it (no user, no query, scores that do not fit its candidates) is left
out, counted and said. Invariant: every request has one row, under the number of its row in the files.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_io import storage
from data_io.buckets import bucket_of
from data_io.schema import QUERY, USER_ID, DataContractError
from data_io.searches import NOBODY, Searches, places_before
from data_io.sequences import Sequences

REQUEST: Final = "request"
"""Number of a request: its row in the files, in their order."""
CANDIDATES: Final = "candidates"
RELEVANCE: Final = "relevance"
REQUEST_TIME: Final = "request_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """N requests, of types that are the store's."""

    table: pa.Table
    """request, user_id, query, candidates, relevance and request_time (microseconds since 1970 UTC), null where a
    request does not say them."""
    digest: str
    """SHA-256 of the files."""
    counts: dict[str, int]
    """Of requests that lack something, by what."""

    def by_bucket(self, num_buckets: int) -> dict[int, pa.Table]:
        """Requests by the bucket of their user; those without one are spread by their number."""
        users = self.table.column(USER_ID).combine_chunks()
        bucket = (np.arange(len(users)) % num_buckets).astype(np.int64)
        known = users.is_valid().to_numpy(zero_copy_only=False)
        bucket[known] = bucket_of(users.drop_null(), num_buckets)
        return {int(found): self.table.take(pa.array(np.flatnonzero(bucket == found))) for found in np.unique(bucket)}


def read_requests(url: str, user_type: pa.DataType, item_type: pa.DataType) -> Requests:
    """The requests of Parquet files.

    Args:
        url: folder, file or glob.
        user_type, item_type: of the ids in the store.

    Raises:
        DataContractError: there is no file, no column user_id or query, or a column is of another type.
    """
    digest, tables = hashlib.sha256(), []
    types = {
        USER_ID: user_type,
        QUERY: pa.large_string(),
        CANDIDATES: pa.large_list(item_type),
        RELEVANCE: pa.large_list(pa.float64()),
        REQUEST_TIME: pa.timestamp("us", tz="UTC"),
    }
    for file in storage.find_parquet_files(url):
        content = storage.read_bytes(file)
        digest.update(content)
        tables.append(_typed(file, pq.read_table(pa.BufferReader(content)), types))
    frame = pl.DataFrame(pa.concat_tables(tables)).with_row_index(REQUEST)
    frame = frame.with_columns(
        pl.col(REQUEST).cast(pl.Int64),
        pl.when(pl.col(QUERY).str.strip_chars() != "").then(QUERY),
        pl.when(_fits()).then(RELEVANCE),
        pl.col(REQUEST_TIME).dt.epoch("us"),
        (pl.col(RELEVANCE).is_not_null() & ~_fits().fill_null(False)).alias("unfit"),
    )
    counts = frame.select(
        pl.len().alias("requests"),
        pl.col(USER_ID).is_null().sum().alias("without_user"),
        pl.col(QUERY).is_null().sum().alias("without_query"),
        (pl.col(CANDIDATES).list.len() == 0).sum().alias("with_empty_candidates"),
        pl.col("unfit").sum().alias("with_unfit_relevance"),
    )
    kept = {REQUEST: pa.int64(), **types, REQUEST_TIME: pa.int64()}
    table = frame.select(list(kept)).to_arrow().cast(pa.schema(list(kept.items())))
    return Requests(table=table, digest=digest.hexdigest(), counts=counts.row(0, named=True))


def searches_of(requests: pa.Table, sequences: Sequences, end_time: int) -> Searches:
    """What requests ask, of users of a bucket.

    Args:
        requests: rows of `Requests.table`.
        sequences: of the bucket.
        end_time: moment of a request that does not say one.
    """
    users = requests.column(USER_ID).combine_chunks()
    options = pc.SetLookupOptions(sequences.user_id.cast(users.type), skip_nulls=True)
    row = pc.call_function("index_in", [users], options).fill_null(NOBODY).to_numpy().astype(np.int64)
    time = requests.column(REQUEST_TIME).fill_null(end_time).to_numpy()
    ends = sequences.ends[row] if sequences.num_users else np.zeros(len(row), np.int64)
    searches = Searches(row=row, before=ends, query=requests.column(QUERY).combine_chunks(), time=time)
    search, places = places_before(searches, sequences)
    later = np.bincount(search[sequences.event_time[places] >= time[search]], minlength=len(row))
    return Searches(row=row, before=ends - later, query=searches.query, time=time)


def _fits() -> pl.Expr:
    """Whether a request has a finite score for each of its candidates."""
    finite = pl.col(RELEVANCE).list.eval(pl.element().is_finite().fill_null(False)).list.all()
    return (pl.col(RELEVANCE).list.len() == pl.col(CANDIDATES).list.len()) & finite


def _typed(file: str, table: pa.Table, types: dict[str, pa.DataType]) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, kind in types.items():
        if name not in table.column_names:
            if name in (USER_ID, QUERY):
                raise DataContractError(f"{file}: there is no column {name}; requests need {USER_ID} and {QUERY}")
            columns[name] = pa.nulls(table.num_rows, kind)
            continue
        try:
            columns[name] = table.column(name).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataContractError(
                f"{file}: {name} is {table.column(name).type}, and cannot be read as {kind}, which it must be ({error})"
            ) from None
    return pa.table(columns)
