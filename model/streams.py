"""Streams: random numbers of one training step, for each purpose its own.

Everything a step draws is fixed by its seed, whatever else is drawn beside it. Invariant: two streams of one seed are
unlike in the 32 bits that torch takes of a seed.
"""

from typing import Final

import torch

NEGATIVES: Final = 0
"""Negatives, and what is hidden."""
WINDOWS: Final = 1
"""How windows are changed."""
VIEWS: Final = 2
"""The views of users that are told apart."""
ASKED: Final = 3
"""Where the next action is asked for."""
IDS: Final = 4
"""Which items are known by their features alone."""

_APART = 0x9E37_79B1


def generator_of(seed: int, stream: int = NEGATIVES) -> torch.Generator:
    """A generator on the CPU for one purpose."""
    return torch.Generator().manual_seed(seed ^ (stream * _APART & 0xFFFF_FFFF))
