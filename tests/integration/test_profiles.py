"""Profiles on a real cluster: every user once, robots and brushers on top, restarted, looked up and forgotten."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_io import storage
from data_io.buckets import WORK, iter_buckets
from data_io.config import SyntheticSettings
from data_io.schema import DataContractError
from data_io.snapshots import MANIFEST_NAME
from data_io.synthetic import draw_catalogue, generate_events
from model.checkpoint import save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.metrics import area_under_curve
from ray_jobs import build_sequences, forget, lookup, profile, score_users
from ray_jobs.config import Settings
from tests.integration.stores import change, files_with

NUM_USERS, NUM_ODD = 240, 5
SIZE = SyntheticSettings(num_users=NUM_USERS, num_items=60, num_days=60, mean_events_per_user=25, seed=1)
SECOND_US = 1_000_000


def with_odd_users(events: pa.Table) -> pa.Table:
    """The log with robots, who view an item every 20 seconds, and brushers, who buy one item again and again."""
    log = pl.DataFrame(pl.from_arrow(events)).with_columns(
        pl.when(pl.col("user_id") < "u000120").then(pl.lit("app")).otherwise(pl.lit("web")).alias("device")
    )
    middle = log["event_time"].median()
    robots = [(f"robot{n}", f"i{k % 60:05d}", "view", 20 * k + n) for n in range(NUM_ODD) for k in range(150)]
    brushers = [(f"u{n:06d}", "i00007", "purchase", 150 * k + 7 * k * k + n) for n in range(NUM_ODD) for k in range(15)]
    odd = pl.DataFrame(robots + brushers, schema=["user_id", "item_id", "action", "seconds"], orient="row")
    times = (pl.lit(middle) + pl.duration(seconds="seconds")).cast(log.schema["event_time"]).alias("event_time")
    odd = odd.with_columns(times, pl.lit("web").alias("device")).drop("seconds")
    return pl.concat([log, odd], how="diagonal").sort("event_time", maintain_order=True).to_arrow()


def write_items(path: Path) -> None:
    catalogue = draw_catalogue(SIZE)
    table = {
        "item_id": [f"i{item:05d}" for item in range(SIZE.num_items)],
        "category": [["all", f"kind {number}"] for number in catalogue.category],
        "brand": [f"brand {item % 4}" for item in range(SIZE.num_items)],
        "merchant": [f"merchant {item % 9}" for item in range(SIZE.num_items)],
    }
    pq.write_table(pa.table(table), path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Settings:
    """A run with scores by an encoder that was not trained."""
    place = tmp_path_factory.mktemp("profiles")
    storage.write_parquet(str(place / "log/part-0.parquet"), with_odd_users(generate_events(SIZE)))
    write_items(place / "items.parquet")
    encoder = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "dropout": 0.0}
    content: dict[str, Any] = {
        "run_dir": str(place / "run"),
        "events": {"path": str(place / "log"), "features": {"device": "categorical"}},
        "items": {"path": str(place / "items.parquet"), "features": {"merchant": "categorical"}},
        "store": {"num_buckets": 3},
        "encoder": encoder,
        "scoring": {"k": 5},
        "profile": {"num_segments": 3, "seller": "merchant", "surprise_events": 8},
    }
    settings = Settings.model_validate(content)
    store = build_sequences.run(settings)
    torch.manual_seed(0)
    model = ClickformerEncoder(ClickformerConfig(**encoder, vocabulary_size=store.vocabulary.size, num_actions=10))
    save_model(model, store.vocabulary, settings.model_url("encoder"), {"kind": "next_item", "fingerprint": "e"})
    with pytest.raises(DataContractError, match="run clickformer score_users first"):
        profile.run(settings)
    score_users.run(settings)
    return settings


def rows_of(settings: Settings) -> pl.DataFrame:
    tables = iter_buckets(storage.absolute(settings.place("profiles")))
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).sort("user_id")


def check_odd_users(rows: pl.DataFrame) -> None:
    """Robots and brushers have the highest anomaly scores, and alerts of their kind."""
    robots = {f"robot{number}" for number in range(NUM_ODD)}
    brushers = {f"u{number:06d}" for number in range(NUM_ODD)}
    others = rows.filter(~pl.col("user_id").is_in(robots | brushers))
    for kind, users in (("bot", robots), ("brushing", brushers)):
        odd = rows.filter(pl.col("user_id").is_in(users))
        labels = np.repeat([1.0, 0.0], [odd.height, others.height])
        area = area_under_curve(labels, np.concatenate([odd["anomaly_score"], others["anomaly_score"]]))
        assert area > 0.95, f"{kind}: AUC {area:.3f}"
        assert odd["alerts"].list.contains(kind).all(), kind
        assert others["alerts"].list.contains(kind).mean() < 0.05, kind


def test_profiles_are_written_once_a_user_restarted_looked_up_and_forgotten(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = storage.absolute(settings.place("profiles"))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.profile.profile_figures", die)
        with pytest.raises(KeyboardInterrupt):
            profile.run(settings)
    assert not storage.exists(storage.join(url, MANIFEST_NAME)), "readers see nothing of a part"
    (work,) = storage.list_folders(storage.join(url, WORK))
    storage.delete_file(storage.join(url, WORK, work, "buckets/00001.json"))
    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.profile.make_plan", die)  # the plan is taken up, not made again
        profile.run(settings)
    rows = rows_of(settings)
    assert rows["user_id"].n_unique() == rows.height == NUM_USERS + NUM_ODD
    assert set(rows["segment"]) == {0, 1, 2}
    assert rows["segment_name"].n_unique() == 3
    assert rows["segment"].dtype == pl.Int32
    check_preferences(rows)
    check_odd_users(rows)

    figures = storage.read_json(storage.join(url, "profiles.json"))
    assert sum(segment["num_users"] for segment in figures["segments"]) == rows.height
    assert figures["alerts"]["kinds"]["bot"]["num_users"] == rows["alerts"].list.contains("bot").sum()
    held = files_with(url, ["robot", "u0000"])
    assert {name for name in held if not name.endswith(".parquet")} == set(), "page and figures name no user"

    capfd.readouterr()
    assert profile.run(settings) == url
    assert "already written" in capfd.readouterr().out
    lookup.run(change(settings, "lookup", user="robot1"))
    assert "profile alerts: bot" in capfd.readouterr().out
    file = storage.join(storage.absolute(settings.run_dir), "forget.txt")
    storage.write_bytes(file, b"robot1\nu000000\n")
    forget.run(change(settings, "forget", users=file))
    assert set(rows["user_id"]) - set(rows_of(settings)["user_id"]) == {"robot1", "u000000"}
    profile.run(change(settings, "profile", num_segments=4, sample_users=50, surprise_events=0))
    others = rows_of(settings)
    assert others["user_id"].to_list() == sorted(set(rows["user_id"]) - {"robot1", "u000000"})
    assert others["surprise"].null_count() == others.height
    assert others["segment"].max() == 3


def check_preferences(rows: pl.DataFrame) -> None:
    """What is told of users is what the log has, and what cannot be told is null."""
    robot = rows.filter(pl.col("user_id") == "robot0").to_dicts()[0]
    assert robot["num_events"] == 150
    assert robot["top_device"] == ["web"]
    assert robot["new_item_share"] == 0, "a robot goes round and round"
    assert robot["median_price"] is not None, "its events have no price, its items have one in others"
    assert robot["gap_variation"] == pytest.approx(0, abs=1e-6)
    people = rows.filter(~pl.col("user_id").str.starts_with("robot"))
    assert set(people.filter(pl.col("user_id") < "u000100")["top_device"].list.first()) <= {"app", "web"}
    assert np.isfinite(people["price_sensitivity"].to_numpy()).all()
    assert people["top_categories"].list.first().str.starts_with("kind").all()
    assert (rows["surprise"].drop_nulls() > 0).all()
    assert not [name for name in rows.columns if name.startswith(("score_", "churn_"))]
