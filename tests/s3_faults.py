"""Faults of an S3 endpoint, from the side of the tests: start the proxy, say what breaks, read what broke."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack

from tests import s3_proxy as server
from tests.s3_proxy import CONTROL, Faults


class FaultOptions(TypedDict, total=False):
    """The fields of `Faults`, each of which may be left out."""

    kinds: tuple[str, ...]
    in_order: bool
    rate: float
    seed: int
    limit: int | None
    methods: tuple[str, ...]
    prefix: str
    query: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class Injection:
    """What a script of faults has done, while it runs and after."""

    url: str
    said: dict[str, Any] | None = None

    def stop(self) -> None:
        """Keep the counts and let everything pass again."""
        self.said = _control(self.url)
        _control(self.url, Faults())

    @property
    def injected(self) -> dict[str, int]:
        """Faults injected, by kind."""
        return (self.said or _control(self.url))["injected"]

    @property
    def requests(self) -> list[str]:
        """Requests the script concerns, broken or not, such as `GET /bucket/key?list-type=2`."""
        return (self.said or _control(self.url))["requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyS3:
    """An S3 endpoint that breaks requests when told to: `with faulty_s3(kinds=("503",), rate=0.2, seed=1):`."""

    url: str

    @contextmanager
    def __call__(self, **faults: Unpack[FaultOptions]) -> Iterator[Injection]:
        """Faults, for as long as the block lasts; see `Faults` for what may be given."""
        injection = Injection(url=self.url)
        before = os.environ.get("AWS_ENDPOINT_URL")
        os.environ["AWS_ENDPOINT_URL"] = self.url
        _control(self.url, Faults(**faults))
        try:
            yield injection
        finally:
            injection.stop()
            os.environ.pop("AWS_ENDPOINT_URL")
            if before is not None:
                os.environ["AWS_ENDPOINT_URL"] = before


@contextmanager
def s3_proxy(upstream: str) -> Iterator[str]:
    """URL of a proxy before an S3 endpoint; its process ends with the block, or with this process."""
    command = [sys.executable, server.__file__, upstream]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait()


def _control(url: str, faults: Faults | None = None) -> dict[str, Any]:
    content = json.dumps(asdict(faults)).encode() if faults else None
    request = urllib.request.Request(url + CONTROL, data=content, method="PUT" if faults else "GET")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
