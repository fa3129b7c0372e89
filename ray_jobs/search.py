"""The job of personalised search: requests ranked by relevance and preference, and how that does on held-out searches.

One network recommends and answers searches: a search is an event whose query it reads, and the next item after it is
what is sought. Rankings go to RUN_DIR/search/ranked, figures to RUN_DIR/search/report.json.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("search")

from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa

from cluster.session import ray_session
from data_io import storage
from data_io.buckets import BucketWriter, fingerprint, fingerprint_after, is_published
from data_io.config import SettingsError
from data_io.inputs import OwnInput
from data_io.lease import write_lease
from data_io.requests import CANDIDATES, RELEVANCE, Requests, read_requests
from data_io.schema import FIRST_INDEX, ITEM_INDEX, QUERY, SEARCH_ACTION, USER_ID, DataContractError
from data_io.snapshots import read_manifest
from data_io.splits import Split
from data_io.store import SequenceStore
from ray_jobs.bucket_map import map_actors, map_buckets
from ray_jobs.config import Settings
from ray_jobs.learning import check_split
from ray_jobs.models import ModelFolder, find_recommender
from ray_jobs.progress import Progress, say
from ray_jobs.search_evaluator import BLENDED, COUNT, SearchEvaluationRun, SearchEvaluator, count_queries
from ray_jobs.search_figures import lines_of, search_figures
from ray_jobs.search_page import write_search_page
from ray_jobs.search_ranker import SearchRanker, SearchRun
from ray_jobs.training import open_store

REPORT_NAME = "report.json"


def run(settings: Settings) -> str:
    """Evaluate, rank requests, or both; returns the URL of the folder."""
    options = settings.search
    if not options.evaluate and options.requests is None:
        raise SettingsError("search has nothing to do: give search.requests, or set search.evaluate to true")
    store, split = open_store(settings)
    model = find_recommender(settings, store, options.model)
    _check(settings, store, model)
    url = storage.absolute(settings.place("search"))
    requests = None
    if options.requests is not None:
        ids = store.vocabulary.item_ids.type
        requests = read_requests(storage.absolute(options.requests), _user_type(store), ids)
        _check_relevance(requests, store)
        if not options.evaluate:
            _weight(settings, url)
    with ray_session(settings.cluster):
        if options.evaluate:
            _evaluate(settings, store, split, model, url)
        if requests is not None:
            _rank(settings, store, model, requests, url)
    return url


def _check(settings: Settings, store: SequenceStore, model: ModelFolder) -> None:
    """Refuse what cannot answer searches."""
    inputs = storage.read_json(storage.join(model.url, "config.json")).get("inputs", {})
    if not {OwnInput.ACTION.value, QUERY} <= set(inputs):
        raise SettingsError(
            f"search.model {settings.search.model} sees {', '.join(inputs) or 'no inputs'}, and needs action and query "
            "to answer searches: train it with encoder.inputs [action, query]"
        )
    if QUERY not in store.event_columns or SEARCH_ACTION not in store.actions:
        raise SettingsError(f"{store.url} has no events of action {SEARCH_ACTION} with a column {QUERY} to learn from")


def _check_relevance(requests: Requests, store: SequenceStore) -> None:
    """Refuse requests without scores where there are no words to score by."""
    if store.manifest.get("items"):
        return
    missing = requests.table.column(RELEVANCE).null_count - requests.counts["with_empty_candidates"]
    if missing > 0:
        raise SettingsError(
            f"{missing:,} requests come without usable {RELEVANCE}, and {store.url} has no item table whose words "
            f"could be held against queries: give {CANDIDATES} with {RELEVANCE}, or items.path when the store is built"
        )


def _user_type(store: SequenceStore) -> pa.DataType:
    return pa.int64() if store.manifest["kinds"][USER_ID] == "int" else pa.large_string()


def _search_action(store: SequenceStore) -> int:
    return store.actions.index(SEARCH_ACTION) + FIRST_INDEX


def _weight(settings: Settings, url: str) -> float:
    """The weight of the settings, else the one that was tuned.

    Raises:
        SettingsError: there is neither.
    """
    if settings.search.weight is not None:
        return settings.search.weight
    try:
        return float(storage.read_json(storage.join(url, REPORT_NAME))["weight"])
    except FileNotFoundError:
        raise SettingsError(
            "search.weight is not set and none was tuned yet: set it, or set search.evaluate to true to tune it"
        ) from None


def _evaluate(settings: Settings, store: SequenceStore, split: Split, model: ModelFolder, url: str) -> None:
    """Hold the network against rankings without the query, or without the user, and write the report."""
    store.check_items()
    check_split(model.manifest, split, model.url)
    options = settings.search
    used = options.model_dump(include={"weights", "exclude_seen", "user_share", "model"}) | {
        "rankers": list(BLENDED),
        "split": settings.split.model_dump(),
        "target_actions": settings.target_actions,
        "store": store.fingerprint,
        "model": model.manifest["fingerprint"],
    }
    mark = fingerprint_after({"searches held out of": store.store_id}, fingerprint(used))
    writer = BucketWriter(url=storage.join(url, "users"), fingerprint=mark)
    with write_lease(writer.url, "search") as lease:
        if not is_published(writer.url, writer.fingerprint):
            plan = SearchEvaluationRun(
                store=store,
                split=split,
                model_url=model.url,
                writer=writer,
                search_action=_search_action(store),
                target_actions=store.action_indices(settings.target_actions),
                counts=pl.DataFrame(),
                weights=options.weights,
                exclude_seen=options.exclude_seen,
                user_share=options.user_share,
                batch_size=options.batch_size,
            )
            marks = _evaluate_buckets(settings, plan)
            lease.check()
            writer.publish(marks, {"num_buckets": store.num_buckets})
        figures = search_figures(writer.url, options.weights, options.num_resamples, settings.seed)
        report = figures | {"settings": settings.model_dump(mode="json"), "split": settings.split.kind}
        storage.write_json(storage.join(url, REPORT_NAME), report)
        write_search_page(storage.join(url, "index.html"), report)
    num = figures["num_searches"]
    say(f"search: {num['test']:,} test searches and {num['validation']:,} validation searches, over the full catalogue")
    for line in lines_of(figures):
        say(f"search: {line}")
    say(f"search: open {url}/index.html; figures in {url}/{REPORT_NAME}")


def _evaluate_buckets(settings: Settings, plan: SearchEvaluationRun) -> list[dict[str, Any]]:
    num_buckets = plan.store.num_buckets
    done = plan.writer.committed(num_buckets)
    missing = [bucket for bucket in range(num_buckets) if bucket not in done]
    progress = Progress("search", num_buckets, "buckets of held-out searches")
    progress.resume_at(len(done))
    if missing:
        parts = list(map_buckets(partial(count_queries, plan), range(num_buckets)))
        counts = pl.concat(parts).group_by(QUERY, ITEM_INDEX).agg(pl.col(COUNT).sum())
        plan = replace(plan, counts=counts)
    for mark in map_actors(SearchEvaluator, plan, missing, settings.cluster):
        done[mark["bucket"]] = mark
        progress.advance()
    return list(done.values())


def _rank(settings: Settings, store: SequenceStore, model: ModelFolder, requests: Requests, url: str) -> None:
    """Write a ranked list for every request."""
    options, weight = settings.search, _weight(settings, url)
    used = options.model_dump(include={"k", "exclude_seen"}) | {
        "weight": weight,
        "requests": requests.digest,
        "store": store.fingerprint,
        "model": model.manifest["fingerprint"],
    }
    mark = fingerprint_after({"searches of": store.store_id}, fingerprint(used))
    writer = BucketWriter(url=storage.join(url, "ranked"), fingerprint=mark)
    plan = SearchRun(
        store=store,
        model_url=model.url,
        writer=writer,
        search_action=_search_action(store),
        k=options.k,
        weight=weight,
        exclude_seen=options.exclude_seen,
        batch_size=options.batch_size,
    )
    with write_lease(writer.url, "search") as lease:
        if not is_published(writer.url, writer.fingerprint):
            marks = _rank_buckets(settings, plan, requests)
            lease.check()
            names = ("num_requests", "num_unknown_users", "num_unknown_items")
            totals = {name: sum(mark[name] for mark in marks) for name in names}
            if totals["num_requests"] != requests.table.num_rows:
                raise DataContractError(
                    f"{writer.url}: {totals['num_requests']:,} of {requests.table.num_rows:,} requests were ranked; "
                    "delete that folder and run again"
                )
            writer.publish(marks, totals | {"num_buckets": store.num_buckets, "weight": weight})
        _say_counts(read_manifest(writer.url), requests, writer.url)


def _rank_buckets(settings: Settings, plan: SearchRun, requests: Requests) -> list[dict[str, Any]]:
    num_buckets = plan.store.num_buckets
    done = plan.writer.committed(num_buckets)
    asked = requests.by_bucket(num_buckets)
    missing = [(bucket, table) for bucket, table in asked.items() if bucket not in done]
    progress = Progress("search", len(asked), "buckets with requests")
    progress.resume_at(len(asked) - len(missing))
    for mark in map_actors(SearchRanker, plan, missing, settings.cluster):
        done[mark["bucket"]] = mark
        progress.advance()
    return list(done.values())


def _say_counts(manifest: dict[str, Any], requests: Requests, url: str) -> None:
    counts = requests.counts
    say(
        f"search: {manifest['num_requests']:,} requests ranked, each once, with weight {manifest['weight']:g}, in {url}"
    )
    say(
        f"search: {manifest['num_unknown_users']:,} of users the store does not know (ranked by the query alone; "
        f"{counts['without_user']:,} name none), {counts['without_query']:,} without a query (by the history alone), "
        f"{counts['with_empty_candidates']:,} with an empty list of candidates, {counts['with_unfit_relevance']:,} "
        f"whose relevance does not fit the candidates (BM25 instead), {manifest['num_unknown_items']:,} candidates "
        "that the model does not know (placed last)"
    )
