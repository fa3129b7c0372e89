"""The job that writes recommendations, task scores and an embedding for every user.

Ray Data hands buckets to scoring actors; a bucket whose mark stands is not done again. The manifest is put last, after
the users written have been counted against the store and the gate has let them through: readers see what was published
before, whole, or this.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("score_users")

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import RUN_FOLDER, BucketWriter, fingerprint, fingerprint_after
from data_io.lease import write_lease
from data_io.schema import DataContractError
from data_io.scores import stability_index
from data_io.snapshots import published_manifest
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.sharing import pack_model
from ray_jobs.bucket_map import map_actors, spans_of
from ray_jobs.config import Settings
from ray_jobs.item_features import with_new_items
from ray_jobs.models import ModelFolder, find_recommender, find_tasks
from ray_jobs.popularity import count_popularity
from ray_jobs.progress import Progress, say
from ray_jobs.rules import RulePlan, plan_rules
from ray_jobs.scorer import Scorer, ScoreRun
from ray_jobs.scoring_config import GateSettings, ScoringSettings

_NOT_OF_OUTPUT = {"batch_size", "gate", "retain_hours", "incremental"}
"""Settings of scoring that rows do not depend on."""


class PublishRefusedError(Exception):
    """Scores were written but the gate does not let readers see them; the message says which bound was broken."""


def run(settings: Settings) -> str:
    """Score all users of a run; returns the URL of the scores."""
    store = SequenceStore.open(storage.absolute(settings.store_url))
    url = storage.absolute(settings.place("scores"))
    recommender = find_recommender(settings, store, settings.scoring.recommender)
    tasks = find_tasks(settings, store, settings.scoring.tasks)
    rules = plan_rules(settings.scoring, store)
    facts = _facts(store, settings.scoring, rules, recommender, tasks)
    mark = fingerprint_after({"scores of": store.store_id}, fingerprint(facts | {"state": store.fingerprint}))
    writer = BucketWriter(url=url, fingerprint=mark, folder=f"{RUN_FOLDER}{mark}/")
    with write_lease(url, "score_users") as lease:
        before = published_manifest(url)
        if before is not None and before["fingerprint"] == mark:
            say(f"score_users: {url} is already written")
            return url
        progress = Progress("score_users", store.num_users, "users")
        with ray_session(settings.cluster):
            plan = _plan(settings, store, writer, recommender, tasks, rules, facts, before)
            marks = _score_buckets(settings, plan, progress)
        num_users = sum(mark["num_users"] for mark in marks.values())
        if num_users != store.num_users:
            raise DataContractError(f"{url}: {num_users:,} users scored of {store.num_users:,}; nothing was published")
        figures = _figures(list(marks.values()))
        _check_gate(settings.scoring.gate, figures, url)
        lease.check()
        summary = facts | figures | {"num_users": num_users, "num_buckets": store.num_buckets}
        writer.publish(list(marks.values()), summary, settings.scoring.retain_hours)
    rate = num_users / max(progress.seconds, 1e-9)
    sources = ", ".join(f"{count:,} from {source}" for source, count in figures["sources"].items())
    say(f"score_users: {num_users:,} users, each once, in {progress.seconds:.0f} s ({rate:,.0f} users/s with start-up)")
    say(f"score_users: {sources}; {figures['coverage']:.1%} have all {settings.scoring.k} items")
    say(f"score_users: scores in {url}/{writer.folder}; read them with any Parquet reader, or clickformer lookup")
    return url


def _facts(
    store: SequenceStore,
    scoring: ScoringSettings,
    rules: RulePlan,
    recommender: ModelFolder,
    tasks: Mapping[str, ModelFolder],
) -> dict[str, Any]:
    """What the rows of a user without new events depend on."""
    return {
        "model_version": str(recommender.manifest["fingerprint"]),
        "tasks": {name: str(task.manifest["fingerprint"]) for name, task in tasks.items()},
        "settings": scoring.model_dump(exclude=_NOT_OF_OUTPUT),
        "rules": rules.digest(),
        "num_items": store.vocabulary.size,
    }


def _plan(
    settings: Settings,
    store: SequenceStore,
    writer: BucketWriter,
    recommender: ModelFolder,
    tasks: Mapping[str, ModelFolder],
    rules: RulePlan,
    facts: dict[str, Any],
    before: dict[str, Any] | None,
) -> ScoreRun:
    """What scorers need, in memory that those of a machine share."""
    scoring = settings.scoring
    packed = {
        name: pack_model(with_new_items(load_model(folder.url), store))
        for name, folder in {"": recommender, **tasks}.items()
    }
    popularity = None
    if scoring.fallback.min_events:
        popularity = count_popularity(store, scoring.fallback, len(packed[""].catalogue))
    if before is not None and before.get("num_buckets") != store.num_buckets:
        before = None
    return ScoreRun(
        store=store,
        recommender=ray.put(packed[""]),
        tasks={name: ray.put(packed[name]) for name in tasks},
        writer=writer,
        scoring=scoring,
        rules=ray.put(rules),
        popularity=None if popularity is None else ray.put(popularity),
        model_version=str(recommender.manifest["fingerprint"]),
        before=before,
        carries=scoring.incremental and _can_carry(before, facts),
    )


def _can_carry(before: dict[str, Any] | None, facts: dict[str, Any]) -> bool:
    """Whether rows from before still hold, for users without new events; says why where they do not."""
    if before is None:
        say("score_users: there are no scores from before: every user is encoded")
        return False
    changed = [name for name, value in facts.items() if before.get(name) != value]
    if changed:
        say(f"score_users: {', '.join(changed)} changed since the scores before: every user is encoded")
    return not changed


def _score_buckets(settings: Settings, plan: ScoreRun, progress: Progress) -> dict[int, dict[str, Any]]:
    marks = plan.writer.committed(plan.store.num_buckets)
    progress.resume_at(sum(mark["num_users"] for mark in marks.values()))
    missing = [bucket for bucket in range(plan.store.num_buckets) if bucket not in marks]
    for found in map_actors(Scorer, plan, spans_of(missing), settings.cluster):
        marks |= {mark["bucket"]: mark for mark in found}
        progress.advance(sum(mark["num_users"] for mark in found))
    return marks


def _figures(marks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the gate looks at, of all users."""
    num_users = max(sum(mark["num_users"] for mark in marks), 1)
    compared = [mark for mark in marks if "overlap" in mark]
    num_compared = sum(mark["num_compared"] for mark in compared)
    sources: Counter[str] = Counter()
    for mark in marks:
        sources.update(mark["sources"])
    figures: dict[str, Any] = {
        "coverage": sum(mark["num_full"] for mark in marks) / num_users,
        "num_scored": sum(mark["num_scored"] for mark in marks),
        "sources": dict(sources.most_common()),
    }
    if num_compared:
        histograms = [
            [sum(bins) for bins in zip(*(mark[name] for mark in compared), strict=True)]
            for name in ("first_scores_before", "first_scores")
        ]
        figures |= {
            "overlap": sum(mark["overlap"] for mark in compared) / num_compared,
            "drift": stability_index(*histograms),
        }
    return figures


def _check_gate(gate: GateSettings, figures: dict[str, Any], url: str) -> None:
    """Let scores through to readers.

    Raises:
        PublishRefusedError: a bound is broken.
    """
    broken = []
    if gate.min_coverage is not None and figures["coverage"] < gate.min_coverage:
        broken.append(f"coverage {figures['coverage']:.3f} is below min_coverage {gate.min_coverage}")
    if gate.min_overlap is not None and figures.get("overlap", 1.0) < gate.min_overlap:
        broken.append(f"overlap {figures['overlap']:.3f} with those before is below min_overlap {gate.min_overlap}")
    if gate.max_drift is not None and figures.get("drift", 0.0) > gate.max_drift:
        broken.append(f"drift {figures['drift']:.3f} is above max_drift {gate.max_drift}")
    if broken:
        raise PublishRefusedError(
            f"{url}: {'; '.join(broken)}. Readers still see the scores before. Look into it, or set other bounds in "
            "scoring.gate and run again: what was written is taken up"
        )
