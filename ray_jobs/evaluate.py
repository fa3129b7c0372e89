"""The job that holds the models against what happened next, beside simple baselines.

Every user with history before the test cutoff and a target after it is ranked over the full catalogue; outcomes are
predicted at the cutoff. Per-user results are kept as Parquet; figures go to report.json and index.html.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("evaluate")

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint, is_published
from data_io.lease import write_lease
from data_io.snapshots import read_manifest
from data_io.splits import Split, history_ends
from data_io.store import QUALITY_REPORT_NAME, SequenceStore
from ray_jobs.bucket_map import map_actors, map_buckets
from ray_jobs.config import Settings
from ray_jobs.figures import next_item_figures, outcome_figures, verdicts
from ray_jobs.learning import count_items
from ray_jobs.models import find_recommender, find_tasks
from ray_jobs.progress import Progress, say
from ray_jobs.report import write_report
from ray_jobs.scorer import EvaluationRun, Evaluator
from ray_jobs.training import open_store

REPORT_NAME = "report.json"


def run(settings: Settings) -> str:
    """Evaluate the models of a run; returns the URL of the report's folder."""
    store, split = open_store(settings)
    url = storage.absolute(settings.place("report"))
    evaluation = _plan(settings, store, split, url)
    with ExitStack() as held:
        leases = [held.enter_context(write_lease(writer.url, "evaluate")) for writer in evaluation.writers.values()]
        with ray_session(settings.cluster):
            evaluation = replace(evaluation, popularity=_popularity(store, split))
            marks = _evaluate_buckets(settings, evaluation)
        for lease in leases:
            lease.check()
        for name, writer in evaluation.writers.items():
            if not is_published(writer.url, writer.fingerprint):
                writer.publish(marks[name], {"num_buckets": store.num_buckets})
        report = _report(settings, evaluation, split)
        storage.write_json(storage.join(url, REPORT_NAME), report)
        write_report(storage.join(url, "index.html"), report)
    for line in report["verdicts"]:
        say(f"evaluate: {line}")
    say(f"evaluate: open {url}/index.html; figures in {url}/{REPORT_NAME}")
    return url


def _plan(settings: Settings, store: SequenceStore, split: Split, url: str) -> EvaluationRun:
    """What is evaluated, checked before any cluster starts; popularity is counted later."""
    store.action_indices(settings.target_actions)
    models = {name: find_recommender(settings, store, name) for name in settings.evaluation.models}
    tasks = find_tasks(settings, store, settings.evaluation.tasks) if split else {}
    used = {
        "store": store.fingerprint,
        "models": {name: folder.manifest["fingerprint"] for name, folder in (models | tasks).items()},
        "split": settings.split.model_dump(),
        "target_actions": settings.target_actions,
        "evaluation": settings.evaluation.model_dump(include={"exclude_seen", "models", "tasks"}),
    }
    mark = fingerprint(used)
    names = ("next_item", *tasks)
    return EvaluationRun(
        store=store,
        split=split,
        model_urls={name: folder.url for name, folder in models.items()},
        task_urls={name: folder.url for name, folder in tasks.items()},
        target_actions=settings.target_actions,
        popularity=np.zeros(store.vocabulary.size),
        writers={name: BucketWriter(url=storage.join(url, "users", name), fingerprint=mark) for name in names},
        exclude_seen=settings.evaluation.exclude_seen,
        batch_size=settings.evaluation.batch_size,
    )


def _popularity(store: SequenceStore, split: Split) -> np.ndarray:
    """[V] events of each item before the test cutoff, counted by Ray Data."""
    size = store.vocabulary.size

    def count(bucket: int) -> np.ndarray:
        sequences = store.read_sequences(bucket)
        return count_items(sequences, history_ends(sequences, split, "test"), size)

    return np.sum(list(map_buckets(count, range(store.num_buckets))), axis=0)


def _evaluate_buckets(settings: Settings, evaluation: EvaluationRun) -> dict[str, list[dict[str, Any]]]:
    num_buckets = evaluation.store.num_buckets
    done = {name: writer.committed(num_buckets) for name, writer in evaluation.writers.items()}
    missing = [bucket for bucket in range(num_buckets) if any(bucket not in marks for marks in done.values())]
    progress = Progress("evaluate", num_buckets, "buckets")
    progress.resume_at(num_buckets - len(missing))
    for marks in map_actors(Evaluator, evaluation, missing, settings.cluster):
        for name, mark in marks.items():
            done[name][mark["bucket"]] = mark
        progress.advance()
    return {name: list(marks.values()) for name, marks in done.items()}


def _report(settings: Settings, evaluation: EvaluationRun, split: Split) -> dict[str, Any]:
    store, options = evaluation.store, settings.evaluation
    next_item = next_item_figures(evaluation.writers["next_item"].url, options, settings.seed)
    outcomes = {name: outcome_figures(evaluation.writers[name].url, settings.seed) for name in evaluation.task_urls}
    return {
        "verdicts": verdicts(next_item, outcomes),
        "next_item": next_item,
        "outcomes": outcomes,
        "protocol": {
            "split": settings.split.model_dump(mode="json") | (split.describe() if split else {}),
            "ranking": "full catalogue; the first event after the cutoff that has an item"
            + (f" and an action among {settings.target_actions}" if settings.target_actions else "")
            + (", seen items left out" if options.exclude_seen else ", seen items kept"),
            "interval": f"95 %, {options.num_resamples} bootstrap resamples of users",
            "seed": settings.seed,
        },
        "data": storage.read_json(storage.join(store.url, QUALITY_REPORT_NAME)),
        "models": _model_facts([*evaluation.model_urls.values(), *evaluation.task_urls.values()]),
        "settings": settings.model_dump(mode="json"),
    }


def _model_facts(urls: Iterable[str]) -> dict[str, Any]:
    manifests = {url.rsplit("/", 1)[1]: read_manifest(url) for url in urls}
    return {name: {key: m[key] for key in ("kind", "fingerprint", "validation")} for name, m in manifests.items()}
