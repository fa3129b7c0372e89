"""A shop whose users are scored while something is killed: its settings, its untrained encoder, the marks of a run."""

from pathlib import Path
from typing import Any

import torch

from data_io.buckets import WORK
from data_io.vocabulary import Vocabulary
from model.checkpoint import save_model
from model.encoder import ClickformerConfig, ClickformerEncoder
from ray_jobs.config import Settings

NUM_USERS, NUM_BUCKETS = 400, 24


def publish_encoder(folder: Path, vocabulary: Vocabulary, seed: int) -> None:
    torch.manual_seed(seed)
    settings = make_settings(folder)
    shape: dict[str, Any] = settings.encoder.model_dump(exclude={"inputs"})
    shape |= {"vocabulary_size": vocabulary.size, "num_actions": 10}
    model = ClickformerEncoder(ClickformerConfig(**shape))
    save_model(model, vocabulary, settings.model_url("encoder"), {"kind": "next_item", "fingerprint": f"of {seed}"})


def make_settings(folder: Path, **scoring: Any) -> Settings:
    return Settings.model_validate(
        {
            "run_dir": str(folder),
            "events": {"path": str(folder / "log")},
            "store": {"num_buckets": NUM_BUCKETS},
            "encoder": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "dropout": 0.0},
            "scoring": {"k": 5, "batch_size": 4, "exclude_seen": [{}]} | scoring,
        }
    )


def marks_of(folder: Path) -> list[Path]:
    return list((folder / "scores" / WORK).glob("*/buckets/*.json"))
