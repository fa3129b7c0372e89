"""Fixtures every test may use: real data where present, one Ray cluster and one S3 endpoint a session."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3_faults import FaultyS3, s3_proxy

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = Path(os.environ.get("CLICKFORMER_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        folder = SHARED_DATA / name
        if not folder.is_dir():
            pytest.skip(f"real data set {name} is not at {SHARED_DATA}; set CLICKFORMER_DATA to its parent folder")
        return folder

    return find


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """A real local Ray cluster, the same for all tests: start-up dominates. Its workers know the S3 endpoint."""
    assert s3_endpoint
    from cluster.config import ClusterSettings
    from cluster.session import ray_session

    with ray_session(ClusterSettings(address="local")):
        yield


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 endpoint on this machine, with its credentials in the environment, behind the proxy of `faulty_s3`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_up(url, server)
        with s3_proxy(url) as endpoint, _environment(_s3_environment(endpoint)):
            yield endpoint
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def faulty_s3(s3_endpoint: str) -> FaultyS3:
    """The same endpoint, told to break requests: `with faulty_s3(kinds=("503",), rate=0.2, seed=1) as faults:`."""
    return FaultyS3(url=s3_endpoint)


def _s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait_until_up(url: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            continue
        return
    raise RuntimeError("moto_server ended before it answered")
