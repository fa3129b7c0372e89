"""`ray job submit` against a cluster that `ray start --head` started, as a user would, with every path on S3."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from data_io import storage

REPOSITORY = Path(__file__).parents[2]
BUCKET = "clickformer-submit"
SETTINGS = f"""
run_dir: s3://{BUCKET}/run
source: {{name: synthetic, synthetic: {{num_users: 60, num_items: 40, num_days: 40, mean_events_per_user: 20}}}}
store: {{num_buckets: 2}}
encoder: {{hidden_size: 16, num_layers: 1, num_heads: 2, sequence_length: 16}}
pretrain: {{softmax: {{kind: full}}, training: {{num_epochs: 1, global_batch_size: 32, micro_batch_size: 16}}}}
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def submit_environment(s3_endpoint: str) -> Iterator[dict[str, str]]:
    """The environment of a user beside a running cluster; the cluster is ended through its own processes only."""
    assert s3_endpoint
    port, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="clickformer-ray-")  # short: Ray's socket names are bounded
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--num-cpus=2", "--disable-usage-stats"]
    with (Path(folder) / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def submit(job: str, environment: dict[str, str], folder: Path) -> str:
    """The output of a job that was submitted and succeeded."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(folder)]
    command += ["--", sys.executable, "-m", f"ray_jobs.{job}", "shop.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until_jobs_are_taken(environment: dict[str, str]) -> None:
    """A head takes jobs some seconds after it answers: a submission before that fails."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--", "true"]
    deadline = time.monotonic() + 90
    while subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "no cluster that takes jobs within 90 s"


@pytest.mark.slow
def test_jobs_submitted_to_a_running_cluster_read_and_write_s3(
    submit_environment: dict[str, str], tmp_path: Path
) -> None:
    s3fs.S3FileSystem().mkdir(BUCKET)
    for package in ("data_io", "model", "cluster", "ray_jobs"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "shop.yaml").write_text(SETTINGS)
    wait_until_jobs_are_taken(submit_environment)
    for job in ("convert", "build_sequences", "pretrain"):
        assert f"next: clickformer {'finetune' if job == 'pretrain' else ''}" in submit(
            job, submit_environment, tmp_path
        )
    assert storage.exists(f"s3://{BUCKET}/run/encoder/model.safetensors")
