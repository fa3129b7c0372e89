"""UTF-8: which values of a column are not text, found without a Python call per value.

Parquet readers take the bytes of a text column as they are; what then works on them may fail or worse. Arrow's own
validation says that a column is broken but not where. Invariant: agrees with `bytes.decode` of every value.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FIRST_BEYOND_ASCII = 0x80
_WELL_FORMED = pc.MatchSubstringOptions(
    r"^(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*$"
)
"""Bytes that are UTF-8: Unicode 16.0, table 3-7."""


def is_utf8(texts: pa.ChunkedArray) -> bool:
    """Whether every value of a text column is UTF-8."""
    buffers = [buffer for chunk in texts.chunks for buffer in chunk.buffers()[2:] if buffer is not None]
    if all(np.frombuffer(buffer, np.uint8).max(initial=0) < _FIRST_BEYOND_ASCII for buffer in buffers):
        return True  # a tenth of the time of a validation
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def invalid_utf8(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[rows] whether a value (large_string or large_binary) is not UTF-8; null counts as good."""
    fits = pc.call_function("match_substring_regex", [values.cast(pa.large_binary())], _WELL_FORMED)
    return ~fits.fill_null(True).to_numpy(zero_copy_only=False)
