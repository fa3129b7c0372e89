"""UTF-8: the vectorised check agrees with Python's decoder, value by value."""

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_io.utf8 import invalid_utf8

PIECES = [b"a", "é".encode(), "€".encode(), "😀".encode(), b"\xc3", b"\xa9", b"\xe0\x9f\xbf", b"\xed\xa0\x80"]
PIECES += [b"\xf0\x8f", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xff", b"\xe2\x82", b"\x00"]


def decodes(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.none() | st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join) | st.binary(max_size=5)))
@example([b"\xc3", b"\xa9"])  # valid together, not alone
@example([b"\xe0", b"a"])
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_decoder_of_every_value(values: list[bytes | None]) -> None:
    expected = [not decodes(value) for value in values]
    assert invalid_utf8(pa.array(values, pa.large_binary())).tolist() == expected
    padded = pa.array([b"\xff", *values], pa.large_binary())
    assert invalid_utf8(padded.slice(1)).tolist() == expected


@pytest.mark.parametrize("first", range(0x80, 0x100))
def test_every_pair_of_bytes(first: int) -> None:
    values = [bytes([first, second, *rest]) for second in range(256) for rest in ([], [0x80], [0x80, 0x80])]
    assert invalid_utf8(pa.array(values, pa.large_binary())).tolist() == [not decodes(value) for value in values]
