"""From the settings of a run to what its jobs learn."""

from typing import Any

from data_io.config import SettingsError
from data_io.inputs import OwnInput, columns_among, with_kinds
from data_io.questions import find_question, with_numbers_for
from data_io.schema import FIRST_INDEX, PADDING_INDEX
from data_io.splits import Cutoffs, Split
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.config import EncoderSettings, MaskedItem, NextItem
from model.encoder import ClickformerConfig, make_backbone
from model.heads import free_parameters
from model.loss_config import FullSoftmax, SoftmaxSettings
from model.objectives import check_choices, softmax_for
from model.task_config import (
    AutoTrainable,
    FullEncoder,
    NextItemTask,
    OutcomeTask,
    QuestionsTask,
    ResponseTask,
    RewardSettings,
    TopLayers,
)
from ray_jobs.config import Settings
from ray_jobs.item_features import find_features
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import Learning, check_vocabulary
from ray_jobs.outcome_learning import OutcomeLearning
from ray_jobs.response_learning import ResponseLearning, shown_items


def pretraining(settings: Settings, store: SequenceStore, split: Split) -> ItemLearning:
    """What `pretrain` learns."""
    masked = isinstance(settings.pretrain.objective, MaskedItem)
    if masked and settings.encoder.block == "gru":
        raise SettingsError("encoder.block gru sees only what was before; masked_item needs transformer or ligr")
    config = settings.encoder.model_dump() | {
        "vocabulary_size": store.vocabulary.size,
        "item_features": find_features(store, settings.encoder.item_features),
        "num_actions": len(store.actions) + FIRST_INDEX,
        "attention": "bidirectional" if masked else "causal",
        "inputs": with_kinds(settings.encoder.inputs, store.event_columns),
    }
    make_backbone(ClickformerConfig(**config))  # what cannot be built is told here, before any worker starts
    mixes = settings.encoder.repeats or settings.encoder.neighbours > 0
    _check_softmax(settings.pretrain.softmax, store, mixes=mixes)
    config["asked_action"] = _asked_action(config, store, settings.target_actions)
    return ItemLearning(
        store=store.with_columns(columns_among(config["inputs"])),
        split=split,
        softmax=settings.pretrain.softmax,
        windows_per_user=settings.pretrain.windows_per_user,
        objective=settings.pretrain.objective,
        encoder_config=config,
        target_actions=settings.target_actions,
        exclude_seen=settings.evaluation.exclude_seen,
        pretrained_url=None,
        trainable=FullEncoder(),
        auxiliary=settings.pretrain.auxiliary,
        augmentation=settings.pretrain.augmentation,
        adversarial=settings.pretrain.adversarial,
    )


def finetuning(settings: Settings, store: SequenceStore, split: Split) -> Learning:
    """What `finetune` learns.

    Raises:
        SettingsError: the task does not suit the encoder or the log.
        CheckpointError: there is no pretrained encoder, or it was trained on another vocabulary.
    """
    url = settings.model_url(settings.finetune.encoder)
    saved = load_model(url)
    if saved.manifest["kind"] in ("outcome", "response"):
        kind = "an outcome" if saved.manifest["kind"] == "outcome" else "responses"
        raise SettingsError(f"finetune.encoder {settings.finetune.encoder} predicts {kind}; name an encoder")
    check_vocabulary(saved.manifest, store, url)
    store = store.seen_by(saved.encoder.config.vocabulary_size, saved.encoder.config.num_actions)
    store = store.with_columns(columns_among(saved.encoder.config.inputs))
    trainable = settings.finetune.trainable
    trainable = TopLayers() if isinstance(trainable, AutoTrainable) else trainable
    free_parameters(saved.encoder, trainable)
    config = saved.encoder.config.to_dict()
    kept = {name: config[name] for name in ("vocabulary_size", "num_actions", "attention", *_encoder_fields())}
    kept["asked_action"] = _asked_action(config, store, settings.target_actions)
    match settings.finetune.task:
        case NextItemTask(softmax=softmax, windows_per_user=windows_per_user, rewards=rewards):
            if config["attention"] != "causal":
                raise SettingsError(
                    "finetune.task next_item needs a causal encoder, and this one was pretrained with masked_item"
                )
            _check_softmax(softmax, store, mixes=saved.encoder.mixes)
            if rewards is not None:
                _check_rewards(rewards, softmax, store)
            return ItemLearning(
                store=store,
                split=split,
                softmax=softmax,
                windows_per_user=windows_per_user,
                objective=NextItem(),
                encoder_config=kept,
                target_actions=settings.target_actions,
                exclude_seen=settings.evaluation.exclude_seen,
                pretrained_url=url,
                trainable=trainable,
                rewards=rewards,
            )
        case (OutcomeTask() | QuestionsTask()) as task:
            assert isinstance(split, Cutoffs), "Settings refuses outcomes under leave_one_out"
            questions = [find_question(name, asked, store) for name, asked in task.questions.items()]
            return OutcomeLearning(
                store=with_numbers_for(store, questions),
                split=split,
                task=task,
                questions=questions,
                trainable=settings.finetune.trainable,
                encoder_config=kept,
                pretrained_url=url,
            )
        case ResponseTask() as task:
            assert isinstance(split, Cutoffs), "Settings refuses responses under leave_one_out"
            shown_items(task, store)  # an action that the log has not is told here
            return ResponseLearning(
                store=store,
                split=split,
                task=task,
                trainable=settings.finetune.trainable,
                encoder_config=kept,
                pretrained_url=url,
            )


def _check_rewards(rewards: RewardSettings, softmax: SoftmaxSettings, store: SequenceStore) -> None:
    """Refuse what has no log-probability, or an action that the log has not."""
    store.action_indices(list(rewards.actions))
    if not isinstance(softmax_for(softmax, store.vocabulary.size), FullSoftmax):
        raise SettingsError(
            f"finetune.task.rewards weighs items by their probability, for which softmax kind {softmax.kind} is not "
            f"enough with {store.vocabulary.size:,} items; set finetune.task.softmax.kind to full"
        )


def _asked_action(config: dict[str, Any], store: SequenceStore, target_actions: list[str] | None) -> int:
    """Index of the action that a trained network is asked for: the one that is to be predicted, or 0 for any.

    Raises:
        SettingsError: the log has no such action.
    """
    indices = store.action_indices(target_actions)
    if OwnInput.ASKED_ACTION not in config["inputs"] or indices is None or len(indices) != 1:
        return PADDING_INDEX
    return int(indices[0]) if indices[0] < config["num_actions"] else PADDING_INDEX


def _encoder_fields() -> tuple[str, ...]:
    return tuple(EncoderSettings.model_fields)


def _check_softmax(softmax: SoftmaxSettings, store: SequenceStore, *, mixes: bool) -> None:
    if softmax.kind in ("sampled", "gbce") and store.vocabulary.size <= FIRST_INDEX + 1:
        raise SettingsError(f"softmax kind {softmax.kind} needs at least two items in the vocabulary; use kind full")
    check_choices(softmax, mixes=mixes)
