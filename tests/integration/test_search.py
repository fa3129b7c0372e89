"""The road of search on a generated log: train on queries, measure held-out searches, rank requests."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from data_io.buckets import iter_buckets
from data_io.config import SettingsError, SyntheticSettings
from data_io.synthetic import category_name, draw_catalogue
from ray_jobs import build_sequences, convert, pretrain, search
from ray_jobs.config import Settings

LOG = {"num_users": 300, "num_items": 80, "num_days": 30, "mean_events_per_user": 30, "seed": 1}


def settings_of(folder: Path, **options: Any) -> Settings:
    return Settings.model_validate(
        {
            "run_dir": str(folder / "run"),
            "source": {"name": "synthetic", "synthetic": LOG},
            "items": {"path": str(folder / "items.parquet")},
            "store": {"num_buckets": 4},
            "target_actions": ["view"],
            "encoder": {"hidden_size": 16, "num_layers": 1, "sequence_length": 32, "inputs": ["action", "query"]},
            "pretrain": {"training": {"num_epochs": 1, "global_batch_size": 32, "micro_batch_size": 32}},
            "search": options,
            "cluster": {"num_workers": 1},
        }
    )


@pytest.fixture(scope="module")
def shop(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in which an encoder is trained on searches."""
    folder = tmp_path_factory.mktemp("search")
    category = draw_catalogue(SyntheticSettings.model_validate(LOG)).category
    items = {
        "item_id": [f"i{number:05d}" for number in range(len(category))],
        "category": [[category_name(kind)] for kind in category.tolist()],
    }
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    settings = settings_of(folder)
    convert.run(settings)
    build_sequences.run(settings)
    pretrain.run(settings)
    return folder


def test_held_out_searches_are_measured_and_requests_ranked(shop: Path) -> None:
    query, items = category_name(1), pl.read_parquet(shop / "items.parquet")
    wanted = set(items.filter(pl.col("category").list.first() == query)["item_id"])
    requests = {
        "user_id": ["u000001", "stranger", None, "u000002", "u000002"],
        "query": [query, query, query, query, None],
        "candidates": [None, None, [], ["i00003", "no such", "i00004"], ["i00003", "i00004"]],
        "relevance": [None, None, None, [0.0, 5.0, 100.0], None],
    }
    pl.DataFrame(requests).write_parquet(shop / "requests.parquet")
    settings = settings_of(shop, requests=str(shop / "requests.parquet"), evaluate=True, k=5, num_resamples=50)
    url = search.run(settings)

    report = json.loads((Path(url) / "report.json").read_text())
    assert "personalised" in (Path(url) / "index.html").read_text()
    figures = {name: own["ndcg_at_10"]["value"] for name, own in report["rankers"].items()}
    assert report["weight"] in settings.search.weights
    assert figures["bm25"] > figures["popularity"], "a query names the category of the view after it"
    assert {(gain["of"], gain["over"]) for gain in report["gains"]} >= {("personalised", "query_only")}
    ranks = pl.concat([pl.DataFrame(table) for table in iter_buckets(f"{url}/users")])
    by_stage = dict(ranks["stage"].value_counts().iter_rows())
    assert by_stage == report["num_searches"]
    assert ranks.select(pl.struct("user_id", "stage").is_unique().all()).item()

    rows = pl.concat([pl.DataFrame(table) for table in iter_buckets(f"{url}/ranked")]).sort("request")
    assert rows["request"].to_list() == [0, 1, 2, 3, 4]
    assert rows["known_user"].to_list() == [True, False, False, True, True]
    assert rows["item_ids"].list.len().to_list() == [5, 5, 0, 3, 2]
    assert set(rows["item_ids"][1]) & wanted, "a stranger is answered by the query"
    assert rows["item_ids"][3].to_list() == ["i00004", "i00003", "no such"], "unknown items come last"
    assert rows["preference"][3].to_list()[2] is None
    assert rows["relevance_from"].to_list() == ["bm25", "bm25", "bm25", "engine", "bm25"]
    for row in rows.filter(pl.col("request") < 2).iter_rows(named=True):
        blended = [r + report["weight"] * p for r, p in zip(row["relevance"], row["preference"], strict=True)]
        assert row["scores"] == pytest.approx(blended, rel=1e-4)

    before = {path: path.stat().st_mtime_ns for path in Path(url).rglob("*.parquet")}
    search.run(settings)
    assert {path: path.stat().st_mtime_ns for path in Path(url).rglob("*.parquet")} == before, "done work is kept"


def test_what_cannot_work_is_refused_before_it_starts(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing to do: give search\.requests, or set search\.evaluate"):
        search.run(settings_of(shop))
    pq.write_table(pl.DataFrame({"user_id": ["a"], "query": ["b"]}).to_arrow(), tmp_path / "r.parquet")
    copytree(shop / "run" / "encoder", shop / "run" / "tasks" / "blind")
    config = shop / "run" / "tasks" / "blind" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"inputs": {"action": "own"}}))
    with pytest.raises(SettingsError, match=r"search\.model blind sees action, and needs action and query"):
        search.run(settings_of(shop, model="blind", requests=str(tmp_path / "r.parquet"), weight=1.0))
