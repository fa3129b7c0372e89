"""Columns of events as a network takes them: rows of an embedding table, found without a vocabulary.

Numbers fall into fixed buckets, texts and categories are hashed, so that appended data and values never seen before
need nothing anew. Row 0 stands for a missing value and for padding. Invariant: the row of a value is a function of the
value alone, the same on every machine.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from data_io.hashing import NUM_NUMERIC_BUCKETS, hash_text, hash_values, numeric_bucket

NUM_CATEGORY_ROWS: Final = 1_021
"""0 missing; a category shares its row with another at a chance of 1 % among ten, 9 % among a hundred."""
NUM_TOKEN_ROWS: Final = 8_191
"""0 no token; words and trigrams of a text."""
TOKENS_PER_TEXT: Final = 16
"""Most tokens of a text, K; the first ones, words before trigrams."""
NUM_ROWS: Final = {"numeric": NUM_NUMERIC_BUCKETS, "categorical": NUM_CATEGORY_ROWS, "text": NUM_TOKEN_ROWS}
"""Rows of the embedding table of a column, by its kind."""


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
    if kind == "categorical":
        code = hash_values(values, NUM_CATEGORY_ROWS)
    else:
        code = numeric_bucket(values.to_numpy(zero_copy_only=False))
    return EncodedColumn(kind=kind, code=code, tokens=_no_texts(0))


def missing_column(kind: str, num_events: int) -> EncodedColumn:
    """A column of which no event has a value."""
    texts = _no_texts(1 if kind == "text" else 0)
    return EncodedColumn(kind=kind, code=np.zeros(num_events, np.uint8), tokens=texts)


def padding_rows(kind: str, num_examples: int) -> np.ndarray:
    """What stands for a column in a batch without events: [B, 1], of text [B, 1, K]."""
    shape = (num_examples, 1, TOKENS_PER_TEXT) if kind == "text" else (num_examples, 1)
    return np.zeros(shape, np.int64)


def _text_codes(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Code [E] of each text, and the rows [C, K] of the tokens of each code; a text is hashed once."""
    encoded = values.dictionary_encode()
    rows = hash_text(encoded.dictionary, TOKENS_PER_TEXT, NUM_TOKEN_ROWS)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    return codes.astype(np.int32), np.concatenate([_no_texts(1), rows])


def _no_texts(num_texts: int) -> np.ndarray:
    return np.zeros((num_texts, TOKENS_PER_TEXT), np.int32)
