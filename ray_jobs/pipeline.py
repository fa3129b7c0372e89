"""A pipeline of three steps: while one value is worked on, the next is read and the last is written.

Invariant: at most two values wait before the work and one behind it, so memory does not follow their number.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")
Read = TypeVar("Read")
Made = TypeVar("Made")
Written = TypeVar("Written")

_READ_AHEAD = 2


def overlap(
    values: Iterable[Value],
    read: Callable[[Value], Read],
    work: Callable[[Read], Made],
    write: Callable[[Made], Written],
) -> list[Written]:
    """What writing gives for each value, in order; reading and writing have a thread each, the work is done here."""
    waiting = iter(values)
    reads: deque[Future[Read]] = deque()
    writes: list[Future[Written]] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def read_on() -> None:
            for value in waiting:
                reads.append(reader.submit(read, value))
                if len(reads) >= _READ_AHEAD:
                    return

        read_on()
        while reads:
            value = reads.popleft().result()
            read_on()
            made = work(value)
            if writes:
                writes[-1].result()
            writes.append(writer.submit(write, made))
        return [future.result() for future in writes]
