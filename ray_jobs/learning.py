"""What is learned: for each kind of task, its network, its examples, its batches and its validation metric.

Knows data_io and model but not Ray, so that a test can train without a cluster. Invariant: nothing here reads an event
at or after the validation cutoff for training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from data_io.batch import (
    FEATURES,
    OUTCOME,
    PADDING_MASK,
    TARGET_ITEM_INDEX,
    Batch,
    collate,
    padding_batch,
    shifted_targets,
)
from data_io.config import SettingsError
from data_io.examples import Examples, next_item_examples, outcome_examples, window_examples
from data_io.features import FEATURE_NAMES, history_features, scale_features
from data_io.schema import FIRST_INDEX
from data_io.sequences import Sequences
from data_io.splits import DAY_US, Cutoffs, Split, history_ends
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.config import (
    FrozenEncoder,
    FullEncoder,
    FullSoftmax,
    MaskedItem,
    NextItem,
    NextItemTask,
    OutcomeTask,
    SampledSoftmax,
    TopLayers,
)
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.heads import ClickformerForOutcome, free_parameters
from model.metrics import area_under_curve, ndcg_at
from model.objectives import ItemLoss, ItemObjective, MaskedItemObjective, NextItemObjective, OutcomeObjective
from model.scoring import iter_batches, outcome_probabilities, rank_items
from model.topk import target_ranks
from ray_jobs.config import Settings

VALIDATION_K = 10
_VALIDATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """What the driver counts over the whole store before training starts."""

    num_examples: np.ndarray
    """[num_buckets] training examples."""
    item_counts: np.ndarray
    """[V] events of each item in training history."""
    feature_sums: np.ndarray = field(default_factory=lambda: np.zeros((3, len(FEATURE_NAMES))))
    """[3, F] number, sum and sum of squares of scaled features over training examples."""


class Learning(Protocol):
    """One task to learn."""

    @property
    def store(self) -> SequenceStore:
        """The sequences it is learned from."""
        ...

    def make_examples(self, sequences: Sequences) -> Examples:
        """Training examples of a bucket."""
        ...

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """A training batch with its targets."""
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

    def model_of(self, objective: nn.Module) -> ClickformerEncoder | ClickformerForOutcome:
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


@dataclass(frozen=True, kw_only=True)
class ItemLearning:
    """Learning which item comes next, or which one is hidden, from scratch or from a pretrained encoder."""

    store: SequenceStore
    split: Split
    softmax: FullSoftmax | SampledSoftmax
    objective: NextItem | MaskedItem
    encoder_config: dict[str, Any]
    target_actions: list[str] | None
    pretrained_url: str | None
    """Encoder to start from; None: a fresh one."""
    trainable: FrozenEncoder | TopLayers | FullEncoder

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    def make_examples(self, sequences: Sequences) -> Examples:
        """Windows over each user's training history."""
        return window_examples(sequences, self.split, self.length)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Windows and, at each event, the item after it."""
        targets = shifted_targets(sequences, examples, self._target_actions)
        return collate(sequences, examples) | {TARGET_ITEM_INDEX: targets}

    def empty_batch(self) -> Batch:
        """One row of padding."""
        return padding_batch(1) | {TARGET_ITEM_INDEX: np.zeros((1, 1), np.int64)}

    def num_targets(self, batch: Batch) -> int:
        """Positions whose item is to be predicted; for masked items all known ones, for which the hidden stand."""
        if isinstance(self.objective, MaskedItem):
            return int((batch[PADDING_MASK] & (batch["item_index"] >= FIRST_INDEX)).sum())
        return int((batch[TARGET_ITEM_INDEX] > 0).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective, its encoder fresh or pretrained."""
        encoder = self._encoder()
        item_loss = ItemLoss(self.softmax, torch.tensor(index.item_counts))
        match self.objective:
            case MaskedItem(mask_share=mask_share):
                return MaskedItemObjective(encoder, item_loss, mask_share)
            case NextItem():
                return NextItemObjective(encoder, item_loss)

    def model_of(self, objective: nn.Module) -> ClickformerEncoder:
        """The encoder."""
        assert isinstance(objective, ItemObjective)
        return objective.encoder

    def validation_examples(self, sequences: Sequences) -> Examples:
        """The first target of each user after the validation cutoff."""
        return next_item_examples(sequences, self.split, "validation", self.length, self._target_actions)

    def validate(self, model: ClickformerEncoder, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 1] NDCG of each target in the full catalogue."""
        parts = [np.zeros((0, 1))]
        for part, batch in iter_batches(sequences, examples, _VALIDATION_BATCH):
            _, scores = rank_items(model, batch)
            targets = torch.from_numpy(part.target.astype(np.int64)).to(scores.device)
            parts.append(ndcg_at(target_ranks(scores, targets).cpu().numpy(), VALIDATION_K)[:, None])
        return np.concatenate(parts)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Mean NDCG."""
        return f"ndcg_at_{VALIDATION_K}", float(values.mean()) if len(values) else 0.0

    def describe(self) -> dict[str, Any]:
        """An encoder, whose vectors are held against items."""
        return {"kind": "next_item", "target_actions": self.target_actions}

    @property
    def _target_actions(self) -> np.ndarray | None:
        return self.store.action_indices(self.target_actions)

    def _encoder(self) -> ClickformerEncoder:
        if self.pretrained_url is None:
            return ClickformerEncoder(ClickformerConfig(**self.encoder_config))
        encoder = load_model(self.pretrained_url).encoder
        free_parameters(encoder, self.trainable)
        return encoder


@dataclass(frozen=True, kw_only=True)
class OutcomeLearning:
    """Learning a binary outcome with a head on a pretrained encoder."""

    store: SequenceStore
    split: Cutoffs
    task: OutcomeTask
    trainable: FrozenEncoder | TopLayers | FullEncoder
    encoder_config: dict[str, Any]
    pretrained_url: str

    @property
    def length(self) -> int:
        """Most events of a span."""
        return int(self.encoder_config["sequence_length"])

    @property
    def cutoffs(self) -> np.ndarray:
        """[C] moments at which training users are asked; every horizon ends by the validation cutoff."""
        horizon = int(self.task.horizon_days * DAY_US)
        return self.split.validation - horizon * np.arange(self.task.num_cutoffs, 0, -1)

    def make_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at every training cutoff."""
        return self._outcomes(sequences, self.cutoffs)

    def make_batch(self, sequences: Sequences, examples: Examples) -> Batch:
        """Histories, their features and outcomes."""
        features = scale_features(history_features(sequences, examples))
        return collate(sequences, examples) | {FEATURES: features, OUTCOME: examples.target.astype(np.float32)}

    def empty_batch(self) -> Batch:
        """One user without events."""
        features = np.zeros((1, len(FEATURE_NAMES)), np.float32)
        return padding_batch(1) | {FEATURES: features, OUTCOME: np.zeros(1, np.float32)}

    def num_targets(self, batch: Batch) -> int:
        """Users that have events."""
        return int(batch[PADDING_MASK].any(axis=1).sum())

    def build(self, index: StoreIndex) -> nn.Module:
        """The objective with the pretrained encoder and a fresh head."""
        config = ClickformerConfig(num_features=len(FEATURE_NAMES), **self.encoder_config)
        model = ClickformerForOutcome(config)
        model.encoder.load_state_dict(load_model(self.pretrained_url).encoder.state_dict())
        model.free_parameters(self.trainable)
        number, total, squares = index.feature_sums
        mean = total / np.maximum(number, 1)
        spread = np.sqrt(np.maximum(squares / np.maximum(number, 1) - mean**2, 0))
        model.head.set_scale(torch.from_numpy(mean), torch.from_numpy(spread))
        return OutcomeObjective(model)

    def model_of(self, objective: nn.Module) -> ClickformerForOutcome:
        """Encoder and head."""
        assert isinstance(objective, OutcomeObjective)
        return objective.model

    def validation_examples(self, sequences: Sequences) -> Examples:
        """Every user with history at the validation cutoff."""
        return self._outcomes(sequences, np.array([self.split.validation]))

    def validate(self, model: ClickformerForOutcome, sequences: Sequences, examples: Examples) -> np.ndarray:
        """[N, 2] outcome and probability."""
        probability = outcome_probabilities(model, sequences, examples, _VALIDATION_BATCH)
        return np.stack([examples.target.astype(np.float64), probability.astype(np.float64)], axis=1)

    def metric(self, values: np.ndarray) -> tuple[str, float]:
        """Area under the ROC curve; 0.5 where only one outcome occurs."""
        area = area_under_curve(values[:, 0], values[:, 1]) if len(values) else float("nan")
        return "auc", 0.5 if np.isnan(area) else area

    def describe(self) -> dict[str, Any]:
        """An encoder with a head, and what its probability means."""
        return {"kind": "outcome", "task": self.task.model_dump()}

    def _outcomes(self, sequences: Sequences, cutoffs: np.ndarray) -> Examples:
        actions = self.store.action_indices(self.task.actions)
        return outcome_examples(sequences, cutoffs, self.task.horizon_days, self.length, actions)


def pretraining(settings: Settings, store: SequenceStore, split: Split) -> ItemLearning:
    """What `pretrain` learns."""
    masked = isinstance(settings.pretrain.objective, MaskedItem)
    config = settings.encoder.model_dump() | {
        "vocabulary_size": store.vocabulary.size,
        "num_actions": len(store.actions) + FIRST_INDEX,
        "attention": "bidirectional" if masked else "causal",
    }
    _check_negatives(settings.pretrain.softmax, store)
    store.action_indices(settings.target_actions)
    return ItemLearning(
        store=store,
        split=split,
        softmax=settings.pretrain.softmax,
        objective=settings.pretrain.objective,
        encoder_config=config,
        target_actions=settings.target_actions,
        pretrained_url=None,
        trainable=FullEncoder(),
    )


def finetuning(settings: Settings, store: SequenceStore, split: Split) -> Learning:
    """What `finetune` learns.

    Raises:
        SettingsError: the task does not suit the encoder or the log.
        CheckpointError: there is no pretrained encoder, or it was trained on another vocabulary.
    """
    url = settings.model_url("encoder")
    saved = load_model(url)
    check_vocabulary(saved.manifest, store, url)
    free_parameters(saved.encoder, settings.finetune.trainable)
    store.action_indices(settings.target_actions)
    config = saved.encoder.config.to_dict()
    kept = {name: config[name] for name in ("vocabulary_size", "num_actions", "attention", *_encoder_fields())}
    match settings.finetune.task:
        case NextItemTask(softmax=softmax):
            if config["attention"] != "causal":
                raise SettingsError(
                    "finetune.task next_item needs a causal encoder, and this one was pretrained with masked_item"
                )
            _check_negatives(softmax, store)
            return ItemLearning(
                store=store,
                split=split,
                softmax=softmax,
                objective=NextItem(),
                encoder_config=kept,
                target_actions=settings.target_actions,
                pretrained_url=url,
                trainable=settings.finetune.trainable,
            )
        case OutcomeTask() as task:
            assert split is not None, "Settings refuses outcomes under leave_one_out"
            store.action_indices(task.actions)
            return OutcomeLearning(
                store=store,
                split=split,
                task=task,
                trainable=settings.finetune.trainable,
                encoder_config=kept,
                pretrained_url=url,
            )


def check_vocabulary(model_manifest: dict[str, Any], store: SequenceStore, url: str) -> None:
    """Fail where a model's item indices mean other items than the store's.

    Raises:
        SettingsError: the vocabularies differ.
    """
    expected, found = store.manifest["vocabulary_sha256"], model_manifest["vocabulary_sha256"]
    if expected != found:
        raise SettingsError(
            f"{url} was trained on vocabulary {found[:12]}, the store {store.url} has {expected[:12]}: train it again"
        )


def count_bucket(learning: Learning, sequences: Sequences) -> StoreIndex:
    """What one bucket adds to the index of a task."""
    examples = learning.make_examples(sequences)
    if isinstance(learning, OutcomeLearning):
        features = scale_features(history_features(sequences, examples)).astype(np.float64)
        sums = np.stack([np.full(features.shape[1], len(examples)), features.sum(axis=0), (features**2).sum(axis=0)])
        return StoreIndex(num_examples=np.array([len(examples)]), item_counts=np.zeros(0, np.int64), feature_sums=sums)
    assert isinstance(learning, ItemLearning)
    ends = history_ends(sequences, learning.split, "validation")
    counts = count_items(sequences, ends, learning.encoder_config["vocabulary_size"])
    return StoreIndex(num_examples=np.array([len(examples)]), item_counts=counts)


def count_items(sequences: Sequences, ends: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """[V] events of each item before each user's end; padding and unknown count nothing."""
    steps = np.zeros(len(sequences.item_index) + 1, np.int64)
    np.add.at(steps, sequences.starts, 1)
    np.add.at(steps, ends, -1)
    inside = np.cumsum(steps[:-1]) > 0
    counts = np.bincount(sequences.item_index[inside], minlength=vocabulary_size)
    counts[:FIRST_INDEX] = 0
    return counts


def sample_validation(learning: Learning, sequences: Sequences, quota: int, seed: int) -> Examples:
    """At most `quota` validation examples of a bucket, the same ones in every epoch."""
    examples = learning.validation_examples(sequences)
    if len(examples) <= quota:
        return examples
    return examples.take(np.sort(np.random.default_rng(seed).choice(len(examples), quota, replace=False)))


def rank_buckets(num_buckets: int, rank: int, world_size: int) -> Iterator[int]:
    """The buckets a rank validates."""
    return iter(range(rank, num_buckets, world_size))


def _encoder_fields() -> tuple[str, ...]:
    return ("hidden_size", "num_layers", "num_heads", "sequence_length", "dropout")


def _check_negatives(softmax: Any, store: SequenceStore) -> None:
    if isinstance(softmax, SampledSoftmax) and store.vocabulary.size <= FIRST_INDEX + 1:
        raise SettingsError("softmax kind sampled needs at least two items in the vocabulary; use kind full")
