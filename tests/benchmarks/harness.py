"""The harness of all benchmarks: both sides in turn, median and spread, peak memory of all processes.

A benchmark prints a table and one last line `NAME: figure=value ... bar=value ok|short`, and exits 0 or 1.
"""

import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each repetition of one side, and the peak memory of its process tree."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.seconds) < 3:
            return float("nan")
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def is_quick(arguments: list[str] | None = None) -> bool:
    """Whether the run must end within a minute."""
    return "--quick" in (sys.argv[1:] if arguments is None else arguments)


def compare(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, Timing]:
    """Time every side in turn, so that a busy machine is busy for all of them; the first round is a warm-up.

    A side that returns a float has timed itself, without its start-up, and is taken at its word.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            with PeakMemory() as memory:
                began = time.perf_counter()
                said = side()
                elapsed = said if isinstance(said, float) else time.perf_counter() - began
            peaks[name] = max(peaks[name], memory.peak_bytes)
            if repetition:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values), peaks[name]) for name, values in seconds.items()}


def print_table(timings: dict[str, Timing], amount: float, unit: str) -> None:
    """One line a side: seconds, spread, rate and memory."""
    print(f"{'side':<24} {'median s':>9} {'spread':>7} {unit + '/s':>16} {'peak MB':>9}")
    for name, timing in timings.items():
        rate = amount / timing.median
        print(f"{name:<24} {timing.median:>9.3f} {timing.spread:>6.0%} {rate:>16,.0f} {timing.peak_bytes / 1e6:>9,.0f}")


def finish(name: str, figures: dict[str, float], bar: float, *, ok: bool) -> None:
    """Print the last line and exit."""
    text = " ".join(f"{figure}={value:.4g}" for figure, value in figures.items())
    print(f"{name}: {text} bar={bar:.4g} {'ok' if ok else 'short'}")
    sys.exit(0 if ok else 1)


class PeakMemory:
    """Samples the resident memory of this process and all its children."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(_SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, sum(_resident(process) for process in [me, *me.children(True)]))


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
