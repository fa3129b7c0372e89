"""The job that writes recommendations, task scores and an embedding for every user.

Ray Data hands buckets to scoring actors; a bucket whose mark stands is not done again. The manifest is put last, after
the users written have been counted against the store.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("score_users")

from typing import Any

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint_after, is_published
from data_io.lease import write_lease
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs.bucket_map import map_actors
from ray_jobs.config import Settings
from ray_jobs.models import find_recommender, find_tasks
from ray_jobs.progress import Progress, say
from ray_jobs.scorer import Scorer, ScoreRun


def run(settings: Settings) -> str:
    """Score all users of a run; returns the URL of the scores."""
    store = SequenceStore.open(storage.absolute(settings.store_url))
    url = storage.absolute(settings.place("scores"))
    score_run = _plan(settings, store, url)
    if is_published(url, score_run.writer.fingerprint):
        say(f"score_users: {url} is already written")
        return url
    progress = Progress("score_users", store.num_users, "users")
    with write_lease(url, "score_users") as lease:
        with ray_session(settings.cluster):
            marks = _score_buckets(settings, score_run, progress)
        num_users = sum(mark["num_users"] for mark in marks.values())
        if num_users != store.num_users:
            raise DataContractError(f"{url}: {num_users:,} users scored of {store.num_users:,}; nothing was published")
        facts = {"num_users": num_users, "num_buckets": store.num_buckets, "model_version": score_run.model_version}
        lease.check()
        score_run.writer.publish(list(marks.values()), facts | {"settings": settings.scoring.model_dump()})
    rate = num_users / max(progress.seconds, 1e-9)
    say(f"score_users: {num_users:,} users, each once, in {progress.seconds:.0f} s ({rate:,.0f} users/s with start-up)")
    say(f"score_users: scores in {url}; read them with any Parquet reader, or next: clickformer evaluate")
    return url


def _plan(settings: Settings, store: SequenceStore, url: str) -> ScoreRun:
    recommender = find_recommender(settings, store, settings.scoring.recommender)
    tasks = find_tasks(settings, store, settings.scoring.tasks)
    version = str(recommender.manifest["fingerprint"])
    used: dict[str, Any] = {
        "store": store.store_id,
        "models": [version, *(f"{name}:{task.manifest['fingerprint']}" for name, task in tasks.items())],
        "scoring": settings.scoring.model_dump(exclude={"batch_size"}),
    }
    return ScoreRun(
        store=store,
        recommender_url=recommender.url,
        task_urls={name: task.url for name, task in tasks.items()},
        writer=BucketWriter(url=url, fingerprint=fingerprint_after(used, store.fingerprint)),
        k=settings.scoring.k,
        exclude_seen=settings.scoring.exclude_seen,
        as_of=settings.scoring.as_of,
        batch_size=settings.scoring.batch_size,
        model_version=version,
    )


def _score_buckets(settings: Settings, score_run: ScoreRun, progress: Progress) -> dict[int, dict[str, Any]]:
    marks = score_run.writer.committed(score_run.store.num_buckets)
    progress.resume_at(sum(mark["num_users"] for mark in marks.values()))
    missing = [bucket for bucket in range(score_run.store.num_buckets) if bucket not in marks]
    for mark in map_actors(Scorer, score_run, missing, settings.cluster):
        marks[mark["bucket"]] = mark
        progress.advance(mark["num_users"])
    return marks
