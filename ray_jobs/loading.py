"""Models as the processes of scoring and evaluation hold them, and the store as these models see it."""

from collections.abc import Iterable

import torch

from data_io.inputs import columns_among
from data_io.sequences import Sequences
from data_io.store import SequenceStore
from model.checkpoint import SavedModel, load_model
from model.encoder import ClickformerEncoder
from model.heads import ClickformerForOutcome
from ray_jobs.item_features import with_new_items


def find_device() -> torch.device:
    """The GPU of this process, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_for(url: str, device: torch.device, store: SequenceStore) -> SavedModel:
    """A published model on a device, with the items that came into the store since, where it can know them."""
    saved = with_new_items(load_model(url), store)
    torch.nn.Module.to(saved.model, device)
    return saved


def with_inputs(store: SequenceStore, encoders: Iterable[ClickformerEncoder]) -> SequenceStore:
    """The store with the columns of the events that any of the encoders takes."""
    columns = [columns_among(encoder.config.inputs) for encoder in encoders]
    return store.with_columns({name: kind for part in columns for name, kind in part.items()})


def known_to(encoder: ClickformerEncoder, sequences: Sequences) -> Sequences:
    """The events as an encoder knows their items and actions."""
    return sequences.known_to(encoder.config.vocabulary_size, encoder.config.num_actions)


def outcome_model(saved: SavedModel) -> ClickformerForOutcome:
    """The model of an outcome task."""
    assert isinstance(saved.model, ClickformerForOutcome), "jobs pass outcome tasks only"
    return saved.model
