"""The job that holds the models against what happened next, beside rivals of other runs and simple baselines.

Every user with history before the test cutoff and a target after it is ranked over the full catalogue; outcomes are
predicted at the cutoff. Per-user results, and how often each item stands in a list, are kept as Parquet; figures go to
report.json and index.html. An evaluation of other models replaces the one before.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("evaluate")

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint, fingerprint_after, is_published
from data_io.config import SettingsError
from data_io.lease import write_lease
from data_io.questions import recall_questions
from data_io.scores import response_column
from data_io.snapshots import read_manifest
from data_io.splits import Cutoffs, Split
from data_io.store import QUALITY_REPORT_NAME, SequenceStore
from model.baselines import BaselineTables
from model.checkpoint import load_model
from ray_jobs.answer_figures import answer_figures, answer_verdicts, is_binary, questions_of
from ray_jobs.baseline_passes import ItemCounts, count_history, find_neighbours, why_without_item_knn
from ray_jobs.bucket_map import map_actors
from ray_jobs.config import Settings
from ray_jobs.evaluator import EvaluationRun, Evaluator
from ray_jobs.figures import next_item_figures, own_intervals, verdicts
from ray_jobs.learning import check_split
from ray_jobs.list_figures import list_figures
from ray_jobs.models import ModelFolder, find_recommender, find_rivals, find_tasks
from ray_jobs.outcome_figures import outcome_figures
from ray_jobs.progress import Progress, say
from ray_jobs.protocol import describe_protocol
from ray_jobs.report import write_report
from ray_jobs.response_figures import response_figures, response_verdicts
from ray_jobs.training import open_store
from ray_jobs.tree_baseline import fit_trees

REPORT_NAME = "report.json"


def run(settings: Settings) -> str:
    """Evaluate the models of a run; returns the URL of the report's folder."""
    store, split = open_store(settings)
    url = storage.absolute(settings.place("report"))
    evaluation = _plan(settings, store, split, url)
    with ExitStack() as held:
        leases = [held.enter_context(write_lease(writer.url, "evaluate")) for writer in evaluation.writers.values()]
        with ray_session(settings.cluster):
            counts = count_history(store, split, settings.evaluation.recent_days)
            marks = _evaluate_buckets(settings, evaluation, counts)
            for lease in leases:
                lease.check()
            for name, writer in evaluation.writers.items():
                if not is_published(writer.url, writer.fingerprint):
                    writer.publish(marks[name], {"num_buckets": store.num_buckets})
            report = _report(settings, evaluation, counts)
        storage.write_json(storage.join(url, REPORT_NAME), report)
        write_report(storage.join(url, "index.html"), report)
    for line in (*own_intervals(report["next_item"]), *report["verdicts"]):
        say(f"evaluate: {line}")
    say(f"evaluate: open {url}/index.html; figures in {url}/{REPORT_NAME}")
    return url


def _plan(settings: Settings, store: SequenceStore, split: Split, url: str) -> EvaluationRun:
    """What is evaluated, checked before any cluster starts; items are counted later."""
    options = settings.evaluation
    store.action_indices(settings.target_actions)
    models, tasks = _find_models(settings, store, split)
    used = {
        "store": store.store_id,
        "split": settings.split.model_dump(),
        "target_actions": settings.target_actions,
        "evaluation": options.model_dump(include={"exclude_seen", "recent_days", "item_knn", "trees"}),
        "list_k": options.headline_k,
    }
    held = [(name, folder.manifest["fingerprint"]) for name, folder in (models | tasks).items()]
    mark = fingerprint_after(used, fingerprint({"store": store.fingerprint, "models": held}))
    asked = {name: questions_of(name, folder.manifest) for name, folder in tasks.items()}
    names = [name for of_task in asked.values() for name in of_task]
    responses = {name: folder.url for name, folder in tasks.items() if folder.is_response}
    names += [response_column(name) for name in responses]
    places = {name: storage.join(url, "users", name) for name in ("next_item", *names)}
    places["lists"] = storage.join(url, "lists")
    uncounted = np.zeros(store.vocabulary.size, np.int64)
    return EvaluationRun(
        store=store,
        split=split,
        model_urls={name: folder.url for name, folder in models.items()},
        task_urls={name: folder.url for name, folder in tasks.items() if folder.is_outcome},
        response_urls=responses,
        target_actions=settings.target_actions,
        baselines=BaselineTables(
            popularity=uncounted,
            recent_popularity=uncounted,
            neighbours=None,
            num_events=options.item_knn.num_events,
            decay=options.item_knn.decay,
        ),
        training_events=uncounted,
        writers={name: BucketWriter(url=place, fingerprint=mark) for name, place in places.items()},
        exclude_seen=options.exclude_seen,
        list_k=options.headline_k,
        batch_size=options.batch_size,
    )


def _find_models(
    settings: Settings, store: SequenceStore, split: Split
) -> tuple[dict[str, ModelFolder], dict[str, ModelFolder]]:
    """Models that rank items, those of other runs last, and those of outcomes and responses, by name."""
    options = settings.evaluation
    models = {name: find_recommender(settings, store, name) for name in options.models}
    models |= find_rivals(settings, store)
    tasks = find_tasks(settings, store, options.tasks) if isinstance(split, Cutoffs) else {}
    both = sorted(set(options.rivals) & set(tasks))
    if both:
        raise SettingsError(f"evaluation.rivals {both[0]} is a task of this run too; choose another name")
    for folder in (*models.values(), *tasks.values()):
        check_split(folder.manifest, split, folder.url)
    return models, tasks


def _with_counts(settings: Settings, evaluation: EvaluationRun, counts: ItemCounts) -> EvaluationRun:
    """The same with what its baselines know of the items."""
    options, neighbours = settings.evaluation.item_knn, None
    if why_without_item_knn(counts, options) is None:
        neighbours = find_neighbours(evaluation.store, evaluation.split, counts, options.num_neighbours)
    tables = replace(
        evaluation.baselines,
        popularity=counts.history,
        recent_popularity=counts.recent,
        neighbours=neighbours,
    )
    return replace(evaluation, baselines=tables, training_events=counts.training)


def _with_trees(settings: Settings, evaluation: EvaluationRun) -> EvaluationRun:
    """The same with trees beside each outcome model, where there is anything to learn."""
    if not settings.evaluation.trees or not isinstance(evaluation.split, Cutoffs):
        return evaluation
    fitted = {
        name: _trees_of(url, evaluation.store, evaluation.split, settings.seed)
        for name, url in evaluation.task_urls.items()
    }
    return replace(evaluation, trees=fitted)


def _trees_of(url: str, store: SequenceStore, split: Cutoffs, seed: int) -> dict[str, str]:
    """Trees by question of a task: those that it is blended with, or new ones."""
    saved = load_model(url)
    known = {name: blend.trees for name, blend in saved.blends.items() if blend.trees is not None}
    questions = [q for q in recall_questions(saved.manifest["questions"], store) if q.name not in known]
    if not questions:
        return known
    moments = np.array(saved.manifest["moments"])
    return known | fit_trees(store, split, questions, moments, seed)


def _evaluate_buckets(
    settings: Settings, evaluation: EvaluationRun, counts: ItemCounts
) -> dict[str, list[dict[str, Any]]]:
    num_buckets = evaluation.store.num_buckets
    if all(is_published(writer.url, writer.fingerprint) for writer in evaluation.writers.values()):
        return {}
    done = {name: writer.committed(num_buckets) for name, writer in evaluation.writers.items()}
    missing = [bucket for bucket in range(num_buckets) if any(bucket not in marks for marks in done.values())]
    progress = Progress("evaluate", num_buckets, "buckets")
    progress.resume_at(num_buckets - len(missing))
    if missing:
        evaluation = _with_trees(settings, _with_counts(settings, evaluation, counts))
    for marks in map_actors(Evaluator, evaluation, missing, settings.cluster):
        for name, mark in marks.items():
            done[name][mark["bucket"]] = mark
        progress.advance()
    return {name: list(marks.values()) for name, marks in done.items()}


def _report(settings: Settings, evaluation: EvaluationRun, counts: ItemCounts) -> dict[str, Any]:
    store, options = evaluation.store, settings.evaluation
    next_item = next_item_figures(evaluation.writers["next_item"].url, options, settings.seed)
    asked = {
        name: described
        for task, url in evaluation.task_urls.items()
        for name, described in questions_of(task, read_manifest(url)).items()
    }
    outcomes = {
        name: outcome_figures(evaluation.writers[name].url) for name, described in asked.items() if is_binary(described)
    }
    answers = {
        name: answer_figures(evaluation.writers[name].url, described)
        for name, described in asked.items()
        if not is_binary(described)
    }
    responses = {
        name: response_figures(evaluation.writers[response_column(name)].url, store.vocabulary.size)
        for name in evaluation.response_urls
    }
    without = why_without_item_knn(counts, options.item_knn)
    return {
        "verdicts": verdicts(next_item, outcomes)
        + answer_verdicts(answers)
        + response_verdicts(responses)
        + ([f"item_knn is {without}"] if without else []),
        "next_item": next_item,
        "lists": list_figures(evaluation.writers["lists"].url, counts.training, options.headline_k),
        "outcomes": outcomes,
        "answers": answers,
        "responses": responses,
        "protocol": describe_protocol(settings, evaluation.split, without),
        "data": storage.read_json(storage.join(store.url, QUALITY_REPORT_NAME)),
        "models": _model_facts({**evaluation.model_urls, **evaluation.task_urls, **evaluation.response_urls}),
        "settings": settings.model_dump(mode="json"),
    }


def _model_facts(urls: Mapping[str, str]) -> dict[str, Any]:
    kept = ("kind", "fingerprint", "split", "validation")
    manifests = {name: read_manifest(url) for name, url in urls.items()}
    facts = {name: {key: found[key] for key in kept if key in found} for name, found in manifests.items()}
    return {name: {"folder": urls[name]} | found for name, found in facts.items()}
