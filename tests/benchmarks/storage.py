"""Which S3 client is faster for the files we write: Arrow's own or s3fs. Against moto_server on this machine.

The server, not a network, is the limit here, so this compares the clients' own work only.
Usage: python -m tests.benchmarks.storage [--quick]
"""

import os
import socket
import subprocess
import sys
import urllib.request

import s3fs
from pyarrow import fs

from tests.benchmarks.harness import compare, finish, is_quick, print_table


def main() -> None:
    num_files, size = (8, 1 << 20) if is_quick() else (32, 4 << 20)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(url)
        remote = s3fs.S3FileSystem(endpoint_url=url)
        remote.mkdir("bench")
        sides = {
            "arrow": fs.S3FileSystem(endpoint_override=url, region="us-east-1"),
            "s3fs": fs.PyFileSystem(fs.FSSpecHandler(remote)),
        }
        content = os.urandom(size)
        jobs = {name: lambda side=side: _round_trip(side, content, num_files) for name, side in sides.items()}
        timings = compare(jobs, repetitions=3 if is_quick() else 7)
    finally:
        server.terminate()
        server.wait()
    print_table(timings, num_files * size * 2, "bytes")
    ratio = timings["s3fs"].median / timings["arrow"].median
    finish("storage", {"s3fs_over_arrow_time": ratio}, bar=1.0, ok=ratio >= 1.0)


def _round_trip(filesystem: fs.FileSystem, content: bytes, num_files: int) -> None:
    for number in range(num_files):
        with filesystem.open_output_stream(f"bench/{number}") as sink:
            sink.write(content)
    for number in range(num_files):
        with filesystem.open_input_stream(f"bench/{number}") as source:
            assert len(source.read()) == len(content)


def _wait(url: str) -> None:
    for _ in range(10_000):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            continue
        return


if __name__ == "__main__":
    main()
