"""Columns of events as a network takes them: rows of an embedding table, found without a vocabulary.

Numbers fall into fixed buckets, texts and categories are hashed, so that appended data and values never seen before
need nothing anew. Row 0 stands for a missing value and for padding. Invariant: the row of a value is a function of the
value alone, the same on every machine.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from data_io.buckets import hash64

NUM_NUMERIC_ROWS: Final = 162
"""0 missing, 1 zero, 104 quarter-octaves of positive numbers, 56 of negative ones."""
NUM_CATEGORY_ROWS: Final = 1_021
"""0 missing; a category shares its row with another at a chance of 1 % among ten, 9 % among a hundred."""
NUM_TOKEN_ROWS: Final = 8_191
"""0 no token; words and trigrams of a text."""
TOKENS_PER_TEXT: Final = 16
"""Most tokens of a text, K; the first ones, words before trigrams."""
NUM_ROWS: Final = {"numeric": NUM_NUMERIC_ROWS, "categorical": NUM_CATEGORY_ROWS, "text": NUM_TOKEN_ROWS}
"""Rows of the embedding table of a column, by its kind."""

_POSITIVE: Final = 2.0 ** (np.arange(104) / 4 - 6)
"""Where the buckets of positive numbers begin: 1/64 to 2^20 (a million) and on; the first takes what is smaller."""
_NEGATIVE: Final = 2.0 ** (np.arange(56) / 4)
"""Where those of negative numbers begin, by size: 1 to 2^14 and on, for what is negative is mostly a return."""
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedColumn:
    """One column of E events."""

    kind: str
    """numeric, categorical or text."""
    code: np.ndarray
    """[E] row of the embedding table, or of `tokens`; 0 where the value is missing."""
    tokens: np.ndarray
    """[C, K] rows of the embedding table for each text, padded with 0, the first text being a missing one; of other
    kinds nothing, [0, K]."""

    def at(self, places: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Rows of the events at places [B, T]: [B, T] int64, of text [B, T, K]; 0 where not `real` [B, T]."""
        code = np.where(real, self.code[places], 0)
        return (self.tokens[code] if self.kind == "text" else code).astype(np.int64)


def encode_column(kind: str, values: pa.Array) -> EncodedColumn:
    """A column of the store's type for its kind, encoded."""
    if kind == "text":
        code, tokens = _text_codes(values)
        return EncodedColumn(kind=kind, code=code, tokens=tokens)
    code = category_row(values) if kind == "categorical" else numeric_bucket(values.to_numpy(zero_copy_only=False))
    return EncodedColumn(kind=kind, code=code, tokens=_no_texts(0))


def missing_column(kind: str, num_events: int) -> EncodedColumn:
    """A column of which no event has a value."""
    texts = _no_texts(1 if kind == "text" else 0)
    return EncodedColumn(kind=kind, code=np.zeros(num_events, np.uint8), tokens=texts)


def padding_rows(kind: str, num_examples: int) -> np.ndarray:
    """What stands for a column in a batch without events: [B, 1], of text [B, 1, K]."""
    shape = (num_examples, 1, TOKENS_PER_TEXT) if kind == "text" else (num_examples, 1)
    return np.zeros(shape, np.int64)


def numeric_bucket(values: np.ndarray) -> np.ndarray:
    """[E] uint8 bucket of numbers: 0 missing (NaN), 1 zero, from 2 positive by size, from 106 negative by size."""
    numbers = values.astype(np.float64)
    size = np.abs(numbers)
    positive = 1 + np.maximum(np.searchsorted(_POSITIVE, size, side="right"), 1)
    negative = 1 + len(_POSITIVE) + np.maximum(np.searchsorted(_NEGATIVE, size, side="right"), 1)
    bucket = np.where(numbers > 0, positive, np.where(numbers < 0, negative, 1))
    return np.where(np.isnan(numbers), 0, bucket).astype(np.uint8)


def category_row(values: pa.Array) -> np.ndarray:
    """[E] int16 row of categories, 1 to NUM_CATEGORY_ROWS - 1 by `hash64`; 0 missing (null)."""
    return _hashed(values, NUM_CATEGORY_ROWS).astype(np.int16)


def tokens_of(text: str) -> list[str]:
    """The words of a text in lower case, then the trigrams of its words (their ends marked); at most K, none twice."""
    words = _WORD.findall(text.lower())
    marked = [f"<{word}>" for word in words]
    trigrams = [word[place : place + 3] for word in marked for place in range(len(word) - 2)]
    return list(dict.fromkeys(words + trigrams))[:TOKENS_PER_TEXT]


def _hashed(values: pa.Array, num_rows: int) -> np.ndarray:
    present = values.is_valid().to_numpy(zero_copy_only=False)
    hashes = hash64(values.fill_null("") if values.null_count else values)
    return np.where(present, 1 + hashes % np.uint64(num_rows - 1), 0)


def _text_codes(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Code [E] of each text, and the rows [C, K] of the tokens of each code; Python runs once a distinct text."""
    encoded = values.dictionary_encode()
    tokens = [tokens_of(text) for text in encoded.dictionary.to_pylist()]
    lengths = np.array([len(found) for found in tokens], np.int64)
    rows = _hashed(pa.array([token for found in tokens for token in found], pa.large_string()), NUM_TOKEN_ROWS)
    table = _no_texts(1 + len(tokens))
    table[1:][np.arange(TOKENS_PER_TEXT) < lengths[:, None]] = rows
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    return codes.astype(np.int32), table


def _no_texts(num_texts: int) -> np.ndarray:
    return np.zeros((num_texts, TOKENS_PER_TEXT), np.int16)
