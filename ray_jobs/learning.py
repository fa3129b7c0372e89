"""What training asks of a task: examples, batches, a network and a validation metric.

Each kind of task is a module of its own. None knows Ray, so that a test can train without a cluster. Invariant: nothing
a task trains on lies at or after the validation cutoff.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data_io.batch import Batch
from data_io.config import SettingsError
from data_io.examples import Examples, wanted_events
from data_io.features import FEATURE_NAMES, history_features, scale_features
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from data_io.splits import Cutoffs, Split
from data_io.store import SequenceStore
from model.encoder import ClickformerEncoder
from model.heads import ClickformerForOutcome
from model.neighbour_choice import NeighbourTable
from model.response import ClickformerForResponse
from model.task_config import AutoTrainable, FrozenEncoder, TopLayers, Trainable

VALIDATION_BATCH = 128
"""Users validated at a time."""


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """What the driver counts over the whole store before training starts."""

    num_examples: np.ndarray
    """[num_buckets] training examples."""
    item_counts: np.ndarray
    """[V] events of each item in training history, of the actions that are to be predicted."""
    num_events: int = 0
    """Events of training history, of any action."""
    item_events: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[V] events of each item in training history, of any action; empty where items are known by their id alone."""
    item_vectors: np.ndarray | None = None
    """[V, D] of length 1, where item vectors point at first; None: at random."""
    neighbours: NeighbourTable | None = None
    """Of each item, for encoders that mix them in."""
    feature_sums: np.ndarray = field(default_factory=lambda: np.zeros((3, len(FEATURE_NAMES))))
    """[3, F] number, sum and sum of squares of scaled features over training examples."""
    label_sums: np.ndarray = field(default_factory=lambda: np.zeros((3, 1)))
    """[3, O] number, sum and sum of squares of training labels, by output of the heads (`model.answers`)."""


class Learning(Protocol):
    """One task to learn."""

    @property
    def store(self) -> SequenceStore:
        """The sequences it is learned from."""
        ...

    @property
    def encoder_config(self) -> dict[str, Any]:
        """What the encoder is built from."""
        ...

    def make_examples(self, sequences: Sequences) -> Examples:
        """Training examples of a bucket."""
        ...

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """A training batch with its targets."""
        ...

    def count(self, sequences: Sequences, examples: Examples) -> StoreIndex:
        """What the training examples of a bucket add to the index."""
        ...

    def empty_batch(self) -> Batch:
        """A training batch that asks nothing."""
        ...

    def num_targets(self, batch: Batch) -> int:
        """Targets of a batch, by which its loss is averaged."""
        ...

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective with its network."""
        ...

    def model_of(self, objective: nn.Module) -> ClickformerEncoder | ClickformerForOutcome | ClickformerForResponse:
        """The network inside an objective, the part that is published."""
        ...

    def validation_examples(self, sequences: Sequences) -> Examples:
        """Validation examples of a bucket."""
        ...

    def validate(self, model: Any, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 2] per example: what the metric is made of (see `metric`)."""
        ...

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Name and value of the validation metric, larger is better."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the manifest of the published model."""
        ...


def check_vocabulary(model_manifest: dict[str, Any], store: SequenceStore, url: str) -> None:
    """Fail where a model's item indices mean other items than the store's, which may have more of them by now.

    Raises:
        SettingsError: the vocabularies differ.
    """
    size = int(model_manifest.get("vocabulary_size", 0))  # models of an earlier version do not say it
    expected, found = store.vocabulary.digest(max(size, FIRST_INDEX)), model_manifest["vocabulary_sha256"]
    if not FIRST_INDEX <= size <= store.vocabulary.size or expected != found:
        raise SettingsError(
            f"{url} was trained on vocabulary {found[:12]}, the store {store.url} has {expected[:12]}: train it again"
        )


def check_actions(model_manifest: dict[str, Any], store: SequenceStore, url: str) -> None:
    """Fail where a model's action indices mean other actions than the store's, which may have more of them by now.

    Raises:
        SettingsError: the actions differ.
    """
    known = model_manifest.get("actions", [])  # models of an earlier version do not say them
    if known != store.actions[: len(known)]:
        raise SettingsError(
            f"{url} was trained on actions {', '.join(known)}, the store {store.url} has {', '.join(store.actions)}: "
            "train it again"
        )


def check_split(model_manifest: dict[str, Any], split: Split, url: str) -> None:
    """Fail where a model may have learned from events that it is to be tested on.

    Args:
        model_manifest: of the model; one of an earlier version does not say its split and is let pass.
        split: by which it is tested.
        url: of the model.

    Raises:
        SettingsError: it was trained by a split of the other kind, or chosen by events from the test cutoff on.
    """
    tested = describe_split(split)
    trained = model_manifest.get("split", tested)
    if trained != tested and not (isinstance(split, Cutoffs) and trained and "test" in trained):
        raise SettingsError(f"{url} was trained by another kind of split and may have seen test events: train it again")
    if isinstance(split, Cutoffs) and datetime.fromisoformat(trained["test"]) > datetime.fromisoformat(
        split.describe()["test"]
    ):
        raise SettingsError(
            f"{url} was trained and chosen by events up to {trained['test']}, past the test cutoff "
            f"{split.describe()['test']}: train it again, or set split.test_cutoff_time no earlier than that"
        )


def describe_split(split: Split) -> dict[str, str] | None:
    """What a model's manifest says of its split: the cutoffs, the actions held out, or None for any events."""
    return None if split is None else split.describe()


def count_items(
    sequences: Sequences,
    ends: np.ndarray,
    vocabulary_size: int,
    actions: np.ndarray | None = None,
    *,
    new_only: bool = False,
) -> np.ndarray:
    """[V] events of each item before each user's end; padding and unknown count nothing.

    Args:
        sequences: of a bucket.
        ends: [U] one past the last event of each user that counts.
        vocabulary_size: V.
        actions: action indices that count; None: any event.
        new_only: whether only a user's first event with an item counts.
    """
    steps = np.zeros(len(sequences.item_index) + 1, np.int64)
    np.add.at(steps, sequences.starts, 1)
    np.add.at(steps, ends, -1)
    inside = (np.cumsum(steps[:-1]) > 0) & wanted_events(sequences, actions, new_only=new_only)
    counts = np.bincount(sequences.item_index[inside], minlength=vocabulary_size)
    counts[:FIRST_INDEX] = 0
    return counts


def feature_sums(sequences: Sequences, examples: Examples) -> np.ndarray:
    """[3, F] number, sum and sum of squares of the scaled features of examples."""
    features = scale_features(history_features(sequences, examples)).astype(np.float64)
    return np.stack([np.full(features.shape[1], len(examples)), features.sum(axis=0), (features**2).sum(axis=0)])


def feature_scale(sums: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] of features, from their sums [3, F]."""
    number, total, squares = sums
    mean = total / np.maximum(number, 1)
    spread = np.sqrt(np.maximum(squares / np.maximum(number, 1) - mean**2, 0))
    return torch.from_numpy(mean), torch.from_numpy(spread)


def choose_trainable(asked: AutoTrainable | Trainable, num_labels: float) -> tuple[Trainable, bool]:
    """What learns, and whether heads are deep.

    Args:
        asked: by the settings; of auto the number of labels decides.
        num_labels: the fewest of any question, of its rarer answer where it is whether.
    """
    if not isinstance(asked, AutoTrainable):
        return asked, True
    few = num_labels < asked.few_labels
    return (FrozenEncoder() if few else TopLayers()), not few


def sample_validation(learning: Learning, sequences: Sequences, quota: int, seed: int) -> Examples:
    """At most `quota` validation examples of a bucket, the same ones in every epoch."""
    examples = learning.validation_examples(sequences)
    if len(examples) <= quota:
        return examples
    return examples.take(np.sort(np.random.default_rng(seed).choice(len(examples), quota, replace=False)))


def rank_buckets(num_buckets: int, rank: int, world_size: int) -> Iterator[int]:
    """The buckets a rank validates."""
    return iter(range(rank, num_buckets, world_size))
