"""Progress for a person: a line now and then with what is done, what is left and when it will be over."""

import sys
import time

_SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """A line of a job's own output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """Counts work done and says so at most every few seconds."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done = self._earlier = 0
        self._began = self._said = time.monotonic()

    def resume_at(self, done: int) -> None:
        """Count work as done by an earlier run: it says nothing about how fast this one is."""
        self._done = self._earlier = done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count work as done."""
        self._done += count
        now = time.monotonic()
        if self._done == self._earlier or now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        left = (now - self._began) / max(self._done - self._earlier, 1) * (self._total - self._done)
        suffix = f", {note}" if note else ""
        say(f"{self._name}: {self._done:,} of {self._total:,} {self._unit}, {describe_seconds(left)} left{suffix}")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began


def describe_seconds(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
