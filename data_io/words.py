"""Words of texts: what a query, a title or a category path says, as lists of words that can be held together.

Invariant: queries and items go through the same function, so that a word of the one is a word of the other.
"""

from typing import Final

import polars as pl

STOP_WORDS: Final = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "in",
        "into",
        "is",
        "it",
        "its",
        "no",
        "not",
        "of",
        "on",
        "or",
        "other",
        "others",
        "out",
        "over",
        "than",
        "that",
        "the",
        "their",
        "to",
        "under",
        "up",
        "via",
        "with",
        "without",
    )
)
"""English words that say little of what is sought."""
_WORD: Final = r"[\p{L}\p{N}]+"


def words_of(text: pl.Expr) -> pl.Expr:
    """Words of each text, in lower case and in order, without stop words; none where the text is null."""
    words = text.str.to_lowercase().str.extract_all(_WORD)
    kept = words.list.eval(pl.element().filter(~pl.element().is_in(list(STOP_WORDS))))
    return kept.fill_null(pl.lit([], dtype=pl.List(pl.String)))
