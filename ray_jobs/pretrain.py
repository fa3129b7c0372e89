"""The job that trains an encoder on the sequences, without labels."""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("pretrain")

from functools import partial

from data_io import storage
from ray_jobs.config import Settings
from ray_jobs.item_neighbours import with_neighbours
from ray_jobs.progress import say
from ray_jobs.tasks import pretraining
from ray_jobs.training import open_store, train


def run(settings: Settings) -> str:
    """Train the encoder of a run; returns the URL of its folder."""
    store, split = open_store(settings)
    url = storage.absolute(settings.model_url(settings.pretrain.name))
    inputs = {"store": store.fingerprint, "encoder": settings.encoder.model_dump()}
    prepare = partial(with_neighbours, settings, store, split)
    train("pretrain", settings, settings.pretrain, pretraining(settings, store, split), url, inputs, prepare)
    say(f"pretrain: encoder in {url}; next: clickformer finetune, or score_users")
    return url
