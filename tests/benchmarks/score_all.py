"""Scoring from store to scores: reading, encoding, ranking and writing together, against encoding and ranking alone.

A scorer as it stands in an actor, on all cores, start-up excluded. Encoding alone and ranking alone have all cores too,
so together they can at best take the sum of both times; reading and writing cost what does not hide behind them. Then a
day of one per cent of the events comes, of a twentieth of the users, and is scored incrementally and whole.
Usage: python -m tests.benchmarks.score_all [--quick]
"""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cluster.config import ClusterSettings
from cluster.session import ray_session
from data_io.buckets import BucketWriter, iter_buckets
from data_io.examples import history_examples
from data_io.schema import FIRST_INDEX
from data_io.scores import EMBEDDING, ITEM_IDS, SCORES
from data_io.snapshots import read_manifest
from data_io.storage import write_parquet
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.eligibility import make_personal
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.sharing import pack_model
from ray_jobs import append, build_sequences
from ray_jobs.config import Settings
from ray_jobs.rules import plan_rules
from ray_jobs.scorer import Scorer, ScoreRun
from ray_jobs.scoring_config import ScoringSettings
from tests.benchmarks.harness import finish, is_quick

NUM_ITEMS, EVENTS_PER_USER, NUM_BUCKETS = 100_000, 200, 16
ENCODER = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "sequence_length": 200, "dropout": 0.0}
SCORING = ScoringSettings.model_validate(
    {"k": 100, "as_of": "last_event", "tasks": [], "fallback": {"min_events": 0}, "exclude_seen": [{"within_days": 30}]}
)
_LEAST_SHARE, _MOST_COST = 0.7, 0.1


def main() -> None:
    num_users = 2_000 if is_quick() else 16_000
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name, ray_session(ClusterSettings()):
        folder = Path(name)
        write_log(folder / "log/0.parquet", np.arange(num_users), EVENTS_PER_USER, day=0)
        settings = make_settings(folder, NUM_BUCKETS, ENCODER)
        store = build_sequences.run(settings)
        publish_encoder(settings, store)
        print(f"{num_users:,} users of {EVENTS_PER_USER} events, {NUM_ITEMS:,} items, {os.cpu_count()} threads")
        figures = pipeline(settings, store, num_users)
        active = np.arange(0, num_users, 20)
        write_log(folder / "log/1.parquet", active, EVENTS_PER_USER // 5, day=70)
        figures |= incremental(settings, store, append.run(settings), num_users)
    ok = figures["share_of_slower"] >= _LEAST_SHARE and figures["cost"] <= _MOST_COST and figures["same"] == 1
    print(f"bars: at least {_LEAST_SHARE:.0%} of the slower part, an increment at most {_MOST_COST:.0%} of a whole run")
    finish("score_all", figures, _LEAST_SHARE, ok=ok)


def write_log(file: Path, users: np.ndarray, num_events: int, day: int) -> None:
    """So many events of each user, of items by Zipf's law, in sixty days from a day on."""
    rng = np.random.default_rng(day)
    row = np.repeat(users, num_events)
    items = np.where(
        rng.random(len(row)) < 0.5, rng.zipf(1.1, len(row)) % NUM_ITEMS, rng.integers(0, NUM_ITEMS, len(row))
    )
    moments = np.datetime64("2026-01-01", "us") + np.timedelta64(day, "D")
    times = moments + rng.integers(0, 60 * 86_400, len(row)).astype("timedelta64[s]")
    actions = pa.array(np.where(rng.random(len(row)) < 0.1, "purchase", "view"))
    write_parquet(str(file), pa.table({"user_id": row, "item_id": items, "event_time": times, "action": actions}))


def make_settings(folder: Path, num_buckets: int, encoder: dict[str, Any]) -> Settings:
    content = {
        "run_dir": str(folder / "run"),
        "events": {"path": str(folder / "log/*.parquet")},
        "store": {"num_buckets": num_buckets},
        "encoder": encoder,
    }
    return Settings.model_validate(content)


def publish_encoder(settings: Settings, store: SequenceStore) -> None:
    """One that has learned nothing: it takes as long."""
    torch.manual_seed(0)
    sizes = {"vocabulary_size": store.vocabulary.size, "num_actions": len(store.actions) + FIRST_INDEX}
    shape: dict[str, Any] = settings.encoder.model_dump(exclude={"inputs"}) | sizes
    model = ClickformerEncoder(ClickformerConfig(**shape))
    save_model(model, store.vocabulary, settings.model_url("encoder"), {"kind": "next_item", "fingerprint": "f"})


def make_run(settings: Settings, store: SequenceStore, name: str) -> ScoreRun:
    return ScoreRun(
        store=store,
        recommender=pack_model(load_model(settings.model_url("encoder"))),
        tasks={},
        writer=BucketWriter(url=settings.place("scores"), fingerprint=name, folder=f"run={name}/"),
        scoring=SCORING,
        rules=plan_rules(SCORING, store),
        popularity=None,
        model_version="f",
    )


def pipeline(settings: Settings, store: SequenceStore, num_users: int) -> dict[str, float]:
    """Rates of a whole run and of its parts."""
    scorer = Scorer(make_run(settings, store, "warm"))
    scorer([0])
    encoder = scorer.recommender.encoder
    encoding = ranking = 0.0
    for bucket in range(NUM_BUCKETS):
        sequences = store.read_sequences(bucket)
        examples = history_examples(sequences, None, encoder.config.sequence_length)
        pairs = scorer.rules.seen_pairs(sequences, examples)
        began = time.perf_counter()
        queries = scorer.encode(encoder, sequences, examples)
        encoded = time.perf_counter()
        scorer.ranker.rank(queries, SCORING.k, make_personal(len(examples), pairs=pairs))
        encoding, ranking = encoding + encoded - began, ranking + time.perf_counter() - encoded
    scorer = Scorer(make_run(settings, store, "whole"))
    began = time.perf_counter()
    marks = scorer(range(NUM_BUCKETS))
    whole = time.perf_counter() - began
    scorer.run.writer.publish(marks, {"num_buckets": NUM_BUCKETS}, retain_hours=1)
    print(f"{'part':<12} {'users/s':>9}")
    for name, seconds in (("encode", encoding), ("rank", ranking), ("all", whole), ("sum", encoding + ranking)):
        print(f"{name:<12} {num_users / seconds:>9,.0f}")
    share = max(encoding, ranking) / whole
    print(
        f"the whole runs at {share:.0%} of its slower part alone, and {(encoding + ranking) / whole:.0%} of their sum"
    )
    return {"users_per_s": num_users / whole, "share_of_slower": share, "share_of_sum": (encoding + ranking) / whole}


def incremental(settings: Settings, before: SequenceStore, store: SequenceStore, num_users: int) -> dict[str, float]:
    """What an increment costs of a whole run, and whether both give the same."""
    url = settings.place("scores")
    seconds, tables = {}, {}
    for name in ("increment", "again"):
        run = make_run(settings, store, name)
        if name == "increment":
            run = replace(run, before=read_manifest(url), carries=True)
        scorer = Scorer(run)
        began = time.perf_counter()
        marks = scorer(range(NUM_BUCKETS))
        seconds[name] = time.perf_counter() - began
        num_scored = sum(mark["num_scored"] for mark in marks)
        print(f"{name:<12} {num_scored:>8,} users encoded in {seconds[name]:.2f} s")
        if name == "increment":
            assert num_scored < num_users
        run.writer.publish(marks, {"num_buckets": NUM_BUCKETS}, retain_hours=1)
        tables[name] = pl.concat([pl.DataFrame(table) for table in iter_buckets(url)])
    grown = store.manifest["num_events"] / before.manifest["num_events"] - 1
    print(f"{grown:.1%} new events; an increment takes {seconds['increment'] / seconds['again']:.1%} of a whole run")
    return {"cost": seconds["increment"] / seconds["again"], "same": float(same(*tables.values()))}


def same(found: pl.DataFrame, expected: pl.DataFrame) -> bool:
    """Whether rows are the same but for rounding: batches of other users round otherwise."""
    if found.height != expected.height or not found["user_id"].equals(expected["user_id"]):
        return False
    vectors, scores = ([np.array(frame[name].to_list()) for frame in (found, expected)] for name in (EMBEDDING, SCORES))
    lists = [np.array(frame[ITEM_IDS].to_list()) for frame in (found, expected)]
    moved = (lists[0] != lists[1]).mean()
    return np.allclose(*vectors, atol=1e-4) and np.allclose(*scores, atol=1e-4) and moved < 1e-3


if __name__ == "__main__":
    main()
