"""The shipped cluster files name what exists."""

from pathlib import Path

import yaml

from ray_jobs.cli import JOBS, parse_settings

CLUSTER = Path(__file__).parent.parent.parent / "cluster"


def test_rayjob_runs_a_job_with_settings_that_parse(tmp_path: Path) -> None:
    job = yaml.safe_load((CLUSTER / "kuberay/rayjob.yaml").read_text())
    words = job["spec"]["entrypoint"].split()
    name = words[2].removeprefix("ray_jobs.")
    assert name in JOBS
    settings_file = tmp_path / "run.yaml"
    settings_file.write_text("pretrain: {training: {global_batch_size: 128}}")
    settings = parse_settings(name, [str(settings_file), *words[4:]])
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert settings.cluster.num_workers == workers
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
