"""The job that gives a pretrained encoder a task and trains it."""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("finetune")

from functools import partial

from data_io import storage
from data_io.snapshots import read_manifest
from ray_jobs.blending import fit_blends
from ray_jobs.config import Settings
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.progress import say
from ray_jobs.tasks import finetuning
from ray_jobs.training import open_store, train


def run(settings: Settings) -> str:
    """Train the task of a run; returns the URL of its folder."""
    settings = settings.model_copy(update={"run_dir": storage.absolute(settings.run_dir)})
    store, split = open_store(settings)
    name = settings.finetune.name
    url = settings.model_url(name)
    learning = finetuning(settings, store, split)
    encoder = read_manifest(settings.model_url(settings.finetune.encoder))
    inputs = {"store": store.fingerprint, "encoder": encoder["fingerprint"]}
    complete = None
    if settings.finetune.blend and isinstance(learning, OutcomeLearning):
        complete = partial(fit_blends, learning, seed=settings.seed)
    train(f"finetune {name}", settings, settings.finetune, learning, url, inputs, complete=complete)
    say(f"finetune {name}: task model in {url}; next: clickformer score_users")
    return url
