"""The job that runs all the others in order, on real or generated data."""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("demo")

from cluster.session import ray_session
from ray_jobs import build_sequences, convert, evaluate, finetune, pretrain, score_users
from ray_jobs.config import Settings
from ray_jobs.progress import Progress, say


def run(settings: Settings) -> str:
    """Go the whole road in one Ray session; returns the URL of the report."""
    progress = Progress("demo", 0, "jobs")
    convert.run(settings)
    with ray_session(settings.cluster):
        build_sequences.run(settings)
        pretrain.run(settings)
        finetune.run(settings)
        score_users.run(settings)
        report = evaluate.run(settings)
    say(f"demo: done in {progress.seconds / 60:.1f} min; everything is under {settings.run_dir}")
    return report
