"""Builders of tiny networks and batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from data_io.batch import ACTION_INDEX, ELAPSED, GAP, ITEM_INDEX, MOMENT, PADDING_MASK, TARGET_ITEM_INDEX, Batch
from model.encoder import ClickformerConfig, ClickformerEncoder

NUM_ITEMS, NUM_ACTIONS = 12, 4


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., ClickformerEncoder]:
    """An untrained encoder of width 8 without dropout, its weights large enough to matter; fields may be given."""

    def make(**fields: Any) -> ClickformerEncoder:
        torch.manual_seed(0)
        shape = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "sequence_length": 8, "dropout": 0.0}
        sizes = {"vocabulary_size": NUM_ITEMS, "num_actions": NUM_ACTIONS}
        encoder = ClickformerEncoder(ClickformerConfig(**(shape | sizes | fields)))
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "norm" not in name:
                    parameter.mul_(3)
        return encoder.eval()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """A batch of users with these numbers of events, drawn at random, padded to `width`."""

    def make(*lengths: int, seed: int = 0, width: int | None = None) -> Batch:
        generator = np.random.default_rng(seed)
        real = np.arange(width or max(*lengths, 1)) < np.array(lengths)[:, None]
        tops = {ITEM_INDEX: NUM_ITEMS, ACTION_INDEX: NUM_ACTIONS, GAP: 60, ELAPSED: 60, TARGET_ITEM_INDEX: NUM_ITEMS}
        batch = {name: np.where(real, generator.integers(2, top, real.shape), 0) for name, top in tops.items()}
        moment = np.where(real, generator.integers(0, 10**12, real.shape).cumsum(axis=1), 0)
        return batch | {MOMENT: moment, PADDING_MASK: real}

    return make
