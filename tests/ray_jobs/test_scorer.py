"""The scorer in this process: what users get by rule and by history, and what is carried over from scores before."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from data_io.buckets import read_bucket
from data_io.examples import history_examples
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.encoder import ClickformerEncoder
from model.scoring import UserBatches, iter_batches, rank_items
from model.sharing import pack_model, unpack_model
from ray_jobs.config import Settings
from ray_jobs.popularity import Popularity
from ray_jobs.scorer import Scorer
from tests.ray_jobs.conftest import USERS, MakeSettings, SaveEncoder, make_score_run

CPU = torch.device("cpu")


@pytest.fixture
def url(store: SequenceStore, make_settings: MakeSettings, save_encoder: SaveEncoder) -> str:
    save_encoder(store)
    settings: Settings = make_settings()
    return settings.model_url("encoder")


def score(store: SequenceStore, url: str, **scoring: Any) -> pl.DataFrame:
    """Rows of a run of its own."""
    scorer = Scorer(make_score_run(store, url, fingerprint=uuid.uuid4().hex, **scoring))
    (mark,) = scorer([0])
    return read_marked(store, mark)


def read_marked(store: SequenceStore, mark: dict[str, Any]) -> pl.DataFrame:
    manifest = {"buckets": {"0": {"files": [mark["file"]]}}}
    frame = pl.from_arrow(read_bucket(f"{store.url}/scores", manifest, 0))
    assert isinstance(frame, pl.DataFrame)
    return frame


def items_of(frame: pl.DataFrame) -> list[list[str]]:
    return frame["item_ids"].to_list()


def test_lists_equal_sorting_the_whole_catalogue(store: SequenceStore, url: str) -> None:
    frame = score(store, url, k=4)
    encoder, sequences = load_model(url).encoder, store.read_sequences(0)
    ((_, batch),) = iter_batches(sequences, history_examples(sequences, None, 4), 10)
    vectors, scores = rank_items(encoder, batch)
    best = scores.sort(dim=1, descending=True, stable=True)
    assert items_of(frame) == [[f"i{item}" for item in row] for row in best.indices[:, :4].tolist()]
    np.testing.assert_allclose(frame["scores"].to_list(), best.values[:, :4], atol=1e-5)
    np.testing.assert_allclose(frame["embedding"].to_list(), vectors, atol=1e-5)
    assert frame["user_id"].to_list() == [*"abcd"]
    assert frame["num_events"].to_list() == [len(events) for events in USERS]


def test_seen_items_are_left_out_and_the_rule_is_told(store: SequenceStore, url: str) -> None:
    frame = score(store, url, k=2, exclude_seen=[{"name": "bought", "actions": ["buy"]}])
    bought = [{f"i{item}" for _, item, action in events if action == 3} for events in USERS]
    assert all(not set(items) & gone for items, gone in zip(items_of(frame), bought, strict=True))
    assert [len(items) for items in items_of(frame)] == [2, 1, 2, 2], "b bought three of four"
    plain = items_of(score(store, url, k=2, embedding="float16"))
    for rules, before, gone in zip(frame["rules"].to_list(), plain, bought, strict=True):
        assert rules == (["bought"] if set(before) & gone else [])


def test_half_embeddings_take_two_bytes(store: SequenceStore, url: str) -> None:
    scorer = Scorer(make_score_run(store, url, embedding="float16"))
    (mark,) = scorer([0])
    table = read_bucket(f"{store.url}/scores", {"buckets": {"0": {"files": [mark["file"]]}}}, 0)
    assert table.schema.field("embedding").type.value_type == pa.float16()


def test_users_of_whom_too_little_is_known_get_what_is_popular(store: SequenceStore, url: str) -> None:
    counts = np.array([0, 0, 5, 1, 9, 2], np.float32)
    vectors = np.log(np.maximum(counts / counts.sum(), 1e-9))[:, None].astype(np.float32)
    run = make_score_run(store, url, fallback={"min_events": 2}, exclude_seen=[{}])
    popularity = Popularity(vectors=vectors, column=None, values=[])
    scorer = Scorer(replace(run, popularity=popularity))
    frame = read_marked(store, scorer([0])[0])
    assert frame["source"].to_list() == ["model", "model", "popularity", "popularity"]
    assert items_of(frame)[2:] == [["i4", "i2", "i3"], ["i4", "i2", "i5"]], "without what they had"
    np.testing.assert_allclose(frame["scores"].to_list()[2], np.log(np.array([9, 5, 1]) / 17), atol=1e-4)
    assert np.isfinite(np.array(frame["embedding"].to_list())).all()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batches_change_nothing(store: SequenceStore, url: str, size: int) -> None:
    whole, parts = score(store, url, k=4), score(store, url, k=4, batch_size=size)
    assert items_of(whole) == items_of(parts)
    np.testing.assert_allclose(whole["scores"].to_list(), parts["scores"].to_list(), atol=1e-5)


def test_a_batch_the_gpu_has_no_room_for_is_halved_for_good(store: SequenceStore) -> None:
    sequences, asked = store.read_sequences(0), []

    def work(part: Sequence[Any], _: object) -> int:
        asked.append(len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError
        return len(part)

    batches = UserBatches(4)
    examples = history_examples(sequences, None, 4)
    assert list(batches.each(sequences, examples, work)) == [1] * 4
    assert asked == [4, 2, 1, 1, 1, 1]
    assert batches.size == 1


def test_a_bucket_that_an_attempt_before_committed_is_left_alone(store: SequenceStore, url: str) -> None:
    run = make_score_run(store, url)
    (first,), (again,) = Scorer(run)([0]), Scorer(run)([0])
    assert first == again


def test_users_without_new_events_keep_their_rows(
    store: SequenceStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_score_run(store, url, k=4)
    (mark,) = Scorer(whole)([0])
    before = {"buckets": {"0": {"files": [mark["file"]], **mark["entry"]}}}
    entry = store.manifest["buckets"]["0"]
    part = store.read_rows(0).slice(1, 1)  # as if b had come with an append
    grown = replace(
        store, manifest=store.manifest | {"buckets": {"0": entry | {"files": [*entry["files"], {"name": "new"}]}}}
    )
    monkeypatch.setattr(SequenceStore, "read_columns", lambda *_: [store.read_rows(0), part])
    sequences = store.read_sequences(0)
    monkeypatch.setattr(SequenceStore, "read_sequences", lambda *_: sequences)
    run = make_score_run(grown, url, k=4, fingerprint="g", fallback={"min_events": 0})
    scorer = Scorer(replace(run, before=before, carries=True))
    encoded: list[int] = []
    score_rows = scorer.score

    def counted(bucket: int, sequences: Any, rows: np.ndarray) -> Any:
        encoded.extend(rows.tolist())
        return score_rows(bucket, sequences, rows)

    monkeypatch.setattr(scorer, "score", counted)
    (mark,) = scorer([0])
    assert encoded == [1]
    assert (mark["num_scored"], mark["num_users"], mark["num_compared"], mark["overlap"]) == (1, 4, 4, 4.0)
    again, expected = read_marked(store, mark), score(store, url, k=4)
    assert items_of(again) == items_of(expected)
    np.testing.assert_allclose(again["scores"].to_list(), expected["scores"].to_list(), atol=1e-5)


def test_an_unpacked_model_reads_the_arrays_it_was_packed_into(url: str, store: SequenceStore) -> None:
    saved = load_model(url)
    packed = pack_model(saved)
    assert not any(parameter.device.type == "cpu" for parameter in packed.skeleton.model.parameters())
    assert packed.catalogue is packed.arrays["item_table.weight"], "the catalogue is there once"
    again, items = unpack_model(packed, CPU)
    assert isinstance(again.model, ClickformerEncoder)
    assert items.data_ptr() == again.model.item_table.weight.data_ptr() == packed.catalogue.ctypes.data
    sequences = store.read_sequences(0)
    ((_, batch),) = iter_batches(sequences, history_examples(sequences, None, 4), 10)
    for found, expected in zip(rank_items(again.model, batch), rank_items(saved.encoder, batch), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
