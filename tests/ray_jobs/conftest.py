"""A store of a few users, settings and a published encoder, for tests of what is learned."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import torch

from data_io.buckets import BucketWriter
from data_io.schema import store_schema
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Cutoffs
from data_io.store import SequenceStore
from data_io.vocabulary import Vocabulary, build_vocabulary, write_vocabulary
from model.checkpoint import load_model, save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.sharing import pack_model
from ray_jobs.config import Settings
from ray_jobs.item_features import with_new_items
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import StoreIndex
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.response_learning import ResponseLearning
from ray_jobs.rules import plan_rules
from ray_jobs.scorer import ScoreRun
from ray_jobs.scoring_config import ScoringSettings

SPLIT = Cutoffs(validation=6 * DAY_US, test=8 * DAY_US, end=10 * DAY_US)
ENCODER = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "sequence_length": 4, "dropout": 0.0}
VIEW, BUY = 2, 3
USERS: list[list[tuple[float, int, int]]] = [
    [(day, 2 + day % 4, VIEW) for day in range(10)],
    [(0, 2, VIEW), (1, 3, BUY), (5.9, 4, BUY), (6, 5, BUY), (9, 2, VIEW)],
    [(2, 0, VIEW), (3, 1, VIEW), (4, 5, VIEW)],
    [(7, 3, BUY)],
]
"""(day, item index, action index) of each user's events; 0 is a search without item, 1 an item nobody knows."""

MakeStore = Callable[..., SequenceStore]
MakeSettings = Callable[..., Settings]
SaveEncoder = Callable[..., ClickformerEncoder]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """The store of USERS under RUN_DIR/store; its items are i2, i3, ..."""

    def make(num_items: int = 4) -> SequenceStore:
        url = str(tmp_path / "store")
        columns = list(zip(*([[*zip(*events, strict=True)] for events in USERS]), strict=True))
        times = [[int(day * DAY_US) for day in days] for days in columns[0]]
        content = {"user_id": [*"abcd"], "item_index": columns[1], "action_index": columns[2], "event_time": times}
        rows = pa.table(content, schema=pa.schema([store_schema("string", {}).field(name) for name in content]))
        items = pl.DataFrame({"item_id": [f"i{index + 2}" for index in range(num_items)], "count": [1] * num_items})
        write_vocabulary(url, build_vocabulary(items, 1))
        facts = {"num_buckets": 1, "num_users": len(USERS), "actions": ["view", "buy"], "last_minute": 0}
        writer = BucketWriter(url=url, fingerprint="store")
        writer.publish([writer.commit(0, 1, rows, {})], facts)
        return SequenceStore.open(url)

    return make


@pytest.fixture
def store(make_store: MakeStore) -> SequenceStore:
    return make_store()


@pytest.fixture
def sequences(store: SequenceStore) -> Sequences:
    return store.read_sequences(0)


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    def make(**sections: Any) -> Settings:
        content = {"run_dir": str(tmp_path), "encoder": ENCODER, "pretrain": {"softmax": {"kind": "full"}}}
        return Settings.model_validate(content | sections)

    return make


@pytest.fixture
def save_encoder(make_settings: MakeSettings) -> SaveEncoder:
    """Publishes a fresh encoder for a store as a pretrained one of the run."""

    def save(
        store: SequenceStore,
        attention: str = "causal",
        items: Sequence[str] | None = None,
        name: str = "encoder",
    ) -> ClickformerEncoder:
        torch.manual_seed(0)
        size = {"vocabulary_size": store.vocabulary.size if items is None else len(items) + 2, "num_actions": 4}
        encoder = ClickformerEncoder(ClickformerConfig(attention=attention, **ENCODER, **size))  # pyright: ignore[reportArgumentType]
        vocabulary = Vocabulary(pa.array(items, pa.large_string())) if items else store.vocabulary
        save_model(encoder, vocabulary, make_settings().model_url(name), {"kind": "next_item"})
        return encoder

    return save


def make_score_run(
    store: SequenceStore, url: str, *, tasks: dict[str, str] | None = None, fingerprint: str = "f", **scoring: Any
) -> ScoreRun:
    """A run of a scorer in this process."""
    settings = ScoringSettings.model_validate({"k": 3, "as_of": "last_event"} | scoring)
    packed = {
        name: pack_model(with_new_items(load_model(of), store)) for name, of in {"": url, **(tasks or {})}.items()
    }
    return ScoreRun(
        store=store,
        recommender=packed.pop(""),
        tasks=packed,
        writer=BucketWriter(url=f"{store.url}/scores", fingerprint=fingerprint, folder=f"run={fingerprint}/"),
        scoring=settings,
        rules=plan_rules(settings, store),
        popularity=None,
        model_version="v",
    )


def count_bucket(learning: ItemLearning | OutcomeLearning | ResponseLearning, sequences: Sequences) -> StoreIndex:
    return learning.count(sequences, learning.make_examples(sequences))
