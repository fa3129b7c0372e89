"""Item ids that are no good (T19): padding's, negative, huge, unseen in training, gone from the catalogue, unlisted."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from data_io.buckets import iter_buckets
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from ray_jobs import append, build_sequences
from ray_jobs.config import Settings
from ray_jobs.rules import plan_rules
from ray_jobs.scorer import Scorer
from tests.integration.stores import make_settings, write_batch
from tests.ray_jobs.conftest import make_score_run

POISON = [0, 1, -1, -(2**63), 2**63 - 1, 2**31, 7]
LATE = [-5, 2**62, 3]
"""Items that come up after the model was trained."""


def log(items: list[int], users: list[str], day: int) -> pa.Table:
    rows = [(user, item, number) for user in users for number, item in enumerate(items)]
    times = [np.datetime64("2026-01-01", "us") + np.timedelta64(day * 1440 + number, "m") for _, _, number in rows]
    return pa.table(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": pa.array([item for _, item, _ in rows], pa.int64()),
            "event_time": pa.array(np.array(times)),
            "action": ["view"] * len(rows),
        }
    )


@pytest.fixture
def settings(on_threads: None, tmp_path: Path) -> Settings:
    """A run on a log of such ids whose encoder knows none that came late."""
    settings = make_settings(tmp_path)
    write_batch(settings, "0", log(POISON, ["ann", "bob"], day=0))
    store = build_sequences.run(settings)
    torch.manual_seed(0)
    config = ClickformerConfig(
        vocabulary_size=store.vocabulary.size, num_actions=3, hidden_size=8, num_layers=1, num_heads=2,
        sequence_length=8, dropout=0.0,
    )  # fmt: skip
    save_model(ClickformerEncoder(config), store.vocabulary, settings.model_url("encoder"), {"kind": "next_item"})
    write_batch(settings, "1", log([*LATE, 7], ["ann", "cem"], day=1))
    append.run(settings)
    return settings


def score(settings: Settings, **scoring: Any) -> dict[str, list[int]]:
    """Lists by user."""
    store = SequenceStore.open(settings.store_url)
    run = make_score_run(store, settings.model_url("encoder"), k=20, **scoring)
    marks = Scorer(run)(range(store.num_buckets))
    run.writer.publish(marks, {"num_buckets": store.num_buckets})
    frame = pl.concat([pl.DataFrame(table) for table in iter_buckets(run.writer.url)])
    return dict(zip(frame["user_id"], frame["item_ids"].to_list(), strict=True))


def test_ids_are_items_like_others_and_late_ones_are_unknown_to_the_model(settings: Settings) -> None:
    store = SequenceStore.open(settings.store_url)
    assert set(store.vocabulary.item_ids.to_pylist()) == {*POISON, *LATE}
    known = load_model(settings.model_url("encoder")).vocabulary
    for bucket in range(store.num_buckets):
        seen = store.read_sequences(bucket).known_to(known.size, 3).item_index
        assert (seen >= 0).all()
        assert (seen < known.size).all(), "no index lies outside the item table"
    lists = score(settings)
    assert lists.keys() == {"ann", "bob", "cem"}
    assert all(set(items) == set(POISON) for items in lists.values()), "every item the model knows, none it does not"


def test_items_gone_from_the_catalogue_are_left_out(settings: Settings) -> None:
    gone = {"name": "gone", "effect": "deny", "items": {"column": "item_id", "is_in": [0, 2**63 - 1, -(2**63)]}}
    assert all(set(items) == {1, -1, 2**31, 7} for items in score(settings, rules=[gone]).values())


def test_an_allow_list_of_items_nobody_knows_is_told_and_counted(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "allowed.txt").write_text("7\n-1\n123456789\n-77\n")
    only = {"name": "shelf", "effect": "only", "items": {"column": "item_id", "file": str(tmp_path / "allowed.txt")}}
    lists = score(settings, rules=[only])
    assert all(set(items) == {7, -1} for items in lists.values())
    assert "2 of 4 item ids of rule shelf are not in the vocabulary" in capsys.readouterr().out


@pytest.mark.parametrize("ids", ["9223372036854775808", "seven", "1.5"])
def test_an_id_that_does_not_fit_is_refused(settings: Settings, tmp_path: Path, ids: str) -> None:
    store = SequenceStore.open(settings.store_url)
    (tmp_path / "ids.txt").write_text(ids)
    deny = {"name": "huge", "effect": "deny", "items": {"column": "item_id", "file": str(tmp_path / "ids.txt")}}
    scoring = settings.scoring.model_validate({"rules": [deny]})
    with pytest.raises(ValueError, match="huge"):
        plan_rules(scoring, store)
