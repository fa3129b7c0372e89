"""From the settings of a run to what its jobs learn."""

from data_io.config import SettingsError
from data_io.schema import FIRST_INDEX
from data_io.splits import Split
from data_io.store import SequenceStore
from model.checkpoint import load_model
from model.config import EncoderSettings, FullEncoder, MaskedItem, NextItem, NextItemTask, OutcomeTask, SoftmaxSettings
from model.encoder import ClickformerConfig, make_backbone
from model.heads import free_parameters
from model.objectives import check_repeats
from ray_jobs.config import Settings
from ray_jobs.item_learning import ItemLearning
from ray_jobs.learning import Learning, check_vocabulary
from ray_jobs.outcome_learning import OutcomeLearning


def pretraining(settings: Settings, store: SequenceStore, split: Split) -> ItemLearning:
    """What `pretrain` learns."""
    masked = isinstance(settings.pretrain.objective, MaskedItem)
    if masked and settings.encoder.block == "gru":
        raise SettingsError("encoder.block gru sees only what was before; masked_item needs transformer or ligr")
    config = settings.encoder.model_dump() | {
        "vocabulary_size": store.vocabulary.size,
        "num_actions": len(store.actions) + FIRST_INDEX,
        "attention": "bidirectional" if masked else "causal",
    }
    make_backbone(ClickformerConfig(**config))  # what cannot be built is told here, before any worker starts
    _check_softmax(settings.pretrain.softmax, store, settings.encoder.repeats)
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
    store = store.seen_by(saved.encoder.config.vocabulary_size, saved.encoder.config.num_actions)
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
            _check_softmax(softmax, store, saved.encoder.config.repeats)
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


def _encoder_fields() -> tuple[str, ...]:
    return tuple(EncoderSettings.model_fields)


def _check_softmax(softmax: SoftmaxSettings, store: SequenceStore, repeats: bool) -> None:
    if softmax.kind in ("sampled", "gbce") and store.vocabulary.size <= FIRST_INDEX + 1:
        raise SettingsError(f"softmax kind {softmax.kind} needs at least two items in the vocabulary; use kind full")
    check_repeats(softmax, repeats)
