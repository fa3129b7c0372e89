"""The job that writes a profile of every user: segment, preferences, probabilities, price, novelty, alerts.

A survey of a bounded sample first, then a row for every user, bucket by bucket; the manifest is put last, after the
rows have been counted against the store. A page and a file of figures stand beside the rows, without ids of users.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("profile")

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import RUN_FOLDER, BucketWriter, fingerprint, fingerprint_after
from data_io.item_facts import ItemFacts, mean_log_prices, read_item_facts
from data_io.lease import write_lease
from data_io.profiles import any_event_tasks
from data_io.schema import DataContractError
from data_io.snapshots import published_manifest, read_manifest
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.price_response import price_direction
from model.sharing import PackedModel, pack_model
from ray_jobs.answer_figures import questions_of
from ray_jobs.bucket_map import map_actors, spans_of
from ray_jobs.bucket_reading import ProfileRun
from ray_jobs.config import Settings
from ray_jobs.item_features import with_new_items
from ray_jobs.models import ModelFolder, find_recommender, find_tasks
from ray_jobs.profile_config import LEAST_USERS
from ray_jobs.profile_figures import profile_figures
from ray_jobs.profile_page import write_profile_page
from ray_jobs.profile_survey import ProfilePlan, Surveyor, make_plan, survey_tasks
from ray_jobs.profiler import Profiler, ProfilingRun
from ray_jobs.progress import Progress, say

PLAN_NAME, PRICES_NAME = "plan.json", "prices.parquet"
PAGE_NAME, FIGURES_NAME = "index.html", "profiles.json"


def run(settings: Settings) -> str:
    """Profile all users of a run; returns the URL of the profiles."""
    store = SequenceStore.open(storage.absolute(settings.store_url))
    scores_url, url = storage.absolute(settings.place("scores")), storage.absolute(settings.place("profiles"))
    scores = read_manifest(scores_url, made_by="clickformer score_users")
    recommender = _embedder(settings, store, scores, scores_url)
    if store.num_users < LEAST_USERS:
        raise DataContractError(f"{store.url} has {store.num_users} users; profiles take {LEAST_USERS} or more")
    actions = store.action_indices(settings.target_actions)  # an action the log has not is told before any work
    facts = {
        "scores": scores["fingerprint"],
        "settings": settings.profile.model_dump(),
        "seed": settings.seed,
        "target_actions": None if actions is None else actions.tolist(),
    }
    mark = fingerprint_after({"profiles of": store.store_id}, fingerprint(facts | {"state": store.fingerprint}))
    writer = BucketWriter(url=url, fingerprint=mark, folder=f"{RUN_FOLDER}{mark}/")
    with write_lease(url, "profile") as lease:
        before = published_manifest(url)
        if before is not None and before["fingerprint"] == mark:
            say(f"profile: {url} is already written")
            return url
        progress = Progress("profile", store.num_users, "users")
        with ray_session(settings.cluster):
            plan, marks = _profile(settings, store, scores_url, scores, recommender, writer, progress)
        num_users = sum(mark["num_users"] for mark in marks)
        if num_users != store.num_users:
            raise DataContractError(
                f"{url}: {num_users:,} users profiled of {store.num_users:,}; nothing was published"
            )
        figures = profile_figures(store, plan, marks, url, settings.profile)
        storage.write_json(storage.join(url, FIGURES_NAME), figures)
        write_profile_page(storage.join(url, PAGE_NAME), figures, plan.map_points)
        lease.check()
        summary = facts | {"num_users": num_users, "num_buckets": store.num_buckets}
        writer.publish(marks, summary | {name: figures[name] for name in ("stability", "alerts")})
    for line in figures["verdicts"]:
        say(f"profile: {line}")
    say(f"profile: {num_users:,} users, each once, in {progress.seconds:.0f} s; open {url}/{PAGE_NAME}")
    return url


def _embedder(settings: Settings, store: SequenceStore, scores: dict[str, Any], scores_url: str) -> ModelFolder:
    """The model that embedded the users of the scores.

    Raises:
        DataContractError: the scores are of another model by now, or of a store with other buckets.
    """
    found = find_recommender(settings, store, scores["settings"]["recommender"])
    if scores["model_version"] != found.manifest["fingerprint"]:
        raise DataContractError(
            f"{scores_url} is of model {scores['model_version']}, and {found.url} is {found.manifest['fingerprint']} "
            "by now; run clickformer score_users first"
        )
    if scores["num_buckets"] != store.num_buckets:
        raise DataContractError(
            f"{scores_url} has {scores['num_buckets']} buckets, the store {store.num_buckets}; run clickformer "
            "score_users first"
        )
    return found


def _profile(
    settings: Settings,
    store: SequenceStore,
    scores_url: str,
    scores: dict[str, Any],
    recommender: ModelFolder,
    writer: BucketWriter,
    progress: Progress,
) -> tuple[ProfilePlan, list[dict[str, Any]]]:
    """The plan, and the marks of all buckets."""
    packed = pack_model(with_new_items(load_model(recommender.url), store))
    marks = writer.committed(store.num_buckets)
    own = settings.profile
    facts = read_item_facts(store, own.category_level, own.seller)
    base = ProfileRun(
        store=store,
        scores_url=scores_url,
        scores=scores,
        recommender=ray.put(packed),
        facts=ray.put(facts),
        settings=own,
        target_actions=settings.target_actions,
    )
    plan, observed = _plan(settings, base, facts, writer)
    facts = read_item_facts(store, own.category_level, own.seller, observed)
    run = _profiling_run(settings, base, facts, packed, plan, writer)
    progress.resume_at(sum(mark["num_users"] for mark in marks.values()))
    missing = [bucket for bucket in range(store.num_buckets) if bucket not in marks]
    for found in map_actors(Profiler, run, spans_of(missing), settings.cluster):
        marks |= {mark["bucket"]: mark for mark in found}
        progress.advance(sum(mark["num_users"] for mark in found))
    return plan, [marks[bucket] for bucket in sorted(marks)]


def _plan(
    settings: Settings, base: ProfileRun, facts: ItemFacts, writer: BucketWriter
) -> tuple[ProfilePlan, np.ndarray]:
    """The plan and the mean log prices [V] that events had; those a killed run left are taken up."""
    plan_url, prices_url = (storage.join(writer.work_url, name) for name in (PLAN_NAME, PRICES_NAME))
    if not storage.exists(plan_url):
        tasks = survey_tasks(base.store.num_buckets, settings.profile.sample_users)
        parts = list(map_actors(Surveyor, base, tasks, settings.cluster))
        prices = mean_log_prices([part.price_sums for part in parts], facts.num_items)
        plan = make_plan(parts, settings.profile.num_segments, settings.seed)
        storage.write_parquet(prices_url, pa.table({"log_price": prices}))
        storage.write_json(plan_url, plan.to_json())
        say(
            f"profile: {plan.segmentation.num_segments} segments from {plan.num_sampled:,} users, adjusted Rand "
            f"{plan.stability.value:.2f} between samples"
        )
    plan = ProfilePlan.from_json(storage.read_json(plan_url))
    return plan, storage.read_parquet(prices_url).column("log_price").to_numpy()


def _profiling_run(
    settings: Settings,
    base: ProfileRun,
    facts: ItemFacts,
    packed: PackedModel,
    plan: ProfilePlan,
    writer: BucketWriter,
) -> ProfilingRun:
    tasks = find_tasks(settings, base.store, list(base.scores["tasks"]))
    about = {of: asked for name, folder in tasks.items() for of, asked in questions_of(name, folder.manifest).items()}
    return ProfilingRun(
        base=replace(base, facts=ray.put(facts)),
        writer=writer,
        plan=plan,
        price_direction=price_direction(packed.catalogue, facts),
        churn_tasks=any_event_tasks(about, base.store.actions),
    )
