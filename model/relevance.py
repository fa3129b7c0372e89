"""Relevance: how well items fit the words of a query (BM25), without learning anything.

Invariant: words that no item has add nothing, and an item without words scores 0.
"""

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from data_io.schema import FIRST_INDEX
from data_io.words import words_of

K1: Final = 1.2
"""How soon more of the same word stops to count."""
B: Final = 0.75
"""How far long items are held to say less with a word, from 0 to 1."""
_ITEM, _WORD, _COUNT, _LENGTH = "item", "word", "count", "length"


class Relevance:
    """BM25 over a catalogue, from an index of its words.

    Source: Robertson and Zaragoza, The probabilistic relevance framework (2009), eq. 3.15, with the inverse document
    frequency log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.

    Args:
        texts: [V - 2] what is said of each item, those of `data_io.schema.FIRST_INDEX` first.
    """

    def __init__(self, texts: pl.Series) -> None:
        self.num_items = len(texts) + FIRST_INDEX
        words = pl.DataFrame({_WORD: texts.cast(pl.String)}).with_row_index(_ITEM, FIRST_INDEX)
        words = words.select(pl.col(_ITEM).cast(pl.Int64), words_of(pl.col(_WORD)))
        lengths = words.with_columns(pl.col(_WORD).list.len().cast(pl.Float64).alias(_LENGTH))
        mean = float(np.nan_to_num(lengths[_LENGTH].to_numpy().mean())) if len(lengths) else 0.0
        counted = lengths.explode(_WORD).drop_nulls(_WORD).group_by(_WORD, _ITEM, _LENGTH).len(_COUNT)
        counted = counted.sort(_WORD, _ITEM)
        rarity = ((len(texts) - pl.col("n") + 0.5) / (pl.col("n") + 0.5)).log1p()
        count = pl.col(_COUNT).cast(pl.Float64)
        damping = K1 * (1 - B + B * pl.col(_LENGTH) / max(mean, 1e-9))
        weighted = counted.with_columns(pl.len().over(_WORD).cast(pl.Float64).alias("n"))
        weighted = weighted.with_columns((rarity * count * (K1 + 1) / (count + damping)).alias("weight"))
        self._item, self._weight = weighted[_ITEM].to_numpy(), weighted["weight"].to_numpy()
        spans = weighted.group_by(_WORD, maintain_order=True).len("size")
        self._spans = spans.with_columns((pl.col("size").cum_sum() - pl.col("size")).alias("first"))

    def scores(self, queries: pa.Array) -> np.ndarray:
        """[N, V] float32 scores of all items for each query; a null asks for nothing."""
        asked = pl.DataFrame({_WORD: pl.Series(queries.cast(pa.large_string()))}).with_row_index("row")
        asked = asked.select(pl.col("row").cast(pl.Int64), words_of(pl.col(_WORD))).explode(_WORD).drop_nulls(_WORD)
        found = asked.join(self._spans, on=_WORD, how="inner")
        size, first = (found[name].to_numpy().astype(np.int64) for name in ("size", "first"))
        places = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size - first, size)
        cells = np.repeat(found["row"].to_numpy() * self.num_items, size) + self._item[places]
        total = np.bincount(cells, self._weight[places], len(queries) * self.num_items)
        return total.reshape(len(queries), self.num_items).astype(np.float32)


def item_texts(items: pa.Table) -> pl.Series:
    """[V - 2] title, category path and brand of each item in one text, as far as the table has them."""
    frame = pl.DataFrame(items)
    parts = [
        pl.col(name).list.join(" ") if isinstance(frame.schema[name], pl.List) else pl.col(name).cast(pl.String)
        for name in ("title", "category", "brand")
        if name in frame.columns
    ]
    if not parts:
        return pl.Series([""] * len(frame), dtype=pl.String)
    return frame.select(pl.concat_str([part.fill_null("") for part in parts], separator=" ").alias("text"))["text"]
