"""Amazon reviews with searches made up from categories, as papers on personalised product search make them.

Before a purchase stands an event of action `search`, without an item, whose query is made of the words of the category
path of the item that is bought next, each word once and without stop words. An item without a category is bought
without a search, and so is a share of the others that the settings name. The query says nothing of the user, and it is
made from the item that was bought: it is a stand-in for what people type.

Source: Ai et al., Learning a hierarchical embedding model for personalized product search (SIGIR 2017), section 4.1,
after Van Gysel et al. (CIKM 2016). Theirs are full review logs with a query for each of an item's category paths, and
pairs of user and query parted into training and test; here the reviews are those of S3-Rec (see `amazon_s3rec`), of
which items have their first path only, and events are parted by their order.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_io.hashing import hash_values
from data_io.schema import ACTION, EVENT_TIME, ITEM_ID, QUERY, SEARCH_ACTION, USER_ID, DataContractError
from data_io.side.items import CATEGORY
from data_io.sources import amazon_s3rec, slice_table, time_from_order, to_events
from data_io.words import words_of

_SHARES = 1_000
"""Parts that purchases are hashed into, of which a share is searched for."""
_PLACE, _STEP = "place", "step"


def read_events(path: Path, search_share: float = 1.0) -> Iterator[pa.Table]:
    """Events of actions `search` and `purchase`, in the order of each user.

    Args:
        path: As for `amazon_s3rec`.
        search_share: share of the purchases of items with a category that follow a search; which, is hashed from user
            and place, so that it is the same whenever the log is read.

    Raises:
        DataContractError: as `amazon_s3rec`; or there is no items.parquet.
    """
    items = read_items(path)
    queries = pl.DataFrame(items).select(ITEM_ID, query_of(pl.col(CATEGORY)).alias(QUERY))
    purchases = pl.concat([pl.DataFrame(table) for table in amazon_s3rec.read_events(path)])
    placed = purchases.with_columns(pl.int_range(pl.len()).over(USER_ID).alias(_PLACE))
    found = placed.join(queries, on=ITEM_ID, how="left", maintain_order="left")
    searched = pl.col(QUERY).is_not_null() & pl.Series(_is_searched(found, search_share))
    return slice_table(to_events(_with_searches(found.with_columns(searched.alias("searched")))))


def read_items(path: Path) -> pa.Table:
    """The item table of `amazon_s3rec`, without which there are no queries.

    Raises:
        DataContractError: there is no items.parquet.
    """
    items = amazon_s3rec.read_items(path)
    if items is None:
        raise DataContractError(f"{path}: there is no items.parquet, from whose categories queries are made")
    return items


def query_of(category: pl.Expr) -> pl.Expr:
    """The words of category paths, each once, in order and parted by spaces; null where there is none."""
    words = words_of(category.list.join(" ")).list.unique(maintain_order=True)
    return pl.when(words.list.len() > 0).then(words.list.join(" "))


def _is_searched(purchases: pl.DataFrame, share: float) -> pa.Array:
    keys = purchases.select(pl.concat_str(USER_ID, _PLACE, separator=":"))[USER_ID].to_arrow()
    return pa.array(hash_values(keys, _SHARES + 1) <= round(share * _SHARES))


def _with_searches(purchases: pl.DataFrame) -> pl.DataFrame:
    """The purchases with a search before each that is `searched`."""
    nothing = pl.lit(None, pl.Int64).alias(ITEM_ID)
    searches = purchases.filter("searched").select(
        USER_ID, nothing, pl.lit(SEARCH_ACTION).alias(ACTION), QUERY, _PLACE, pl.lit(0).alias(_STEP)
    )
    bought = purchases.select(
        USER_ID, ITEM_ID, ACTION, pl.lit(None, pl.String).alias(QUERY), _PLACE, pl.lit(1).alias(_STEP)
    )
    events = pl.concat([searches, bought]).sort(USER_ID, _PLACE, _STEP)
    time = time_from_order(2 * pl.col(_PLACE) + pl.col(_STEP))
    return events.select(USER_ID, ITEM_ID, ACTION, time.alias(EVENT_TIME), QUERY)
