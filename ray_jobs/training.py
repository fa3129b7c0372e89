"""How the driver runs a training: count the store with Ray Data, train with Ray Train, publish the best model."""

import os
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.config import ClusterSettings
from cluster.session import check_workers_fit, ray_session, uses_gpu
from data_io import storage
from data_io.buckets import fingerprint, is_published
from data_io.config import SettingsError
from data_io.splits import Split, resolve_split
from data_io.store import SequenceStore
from model.checkpoint import load_model, save_model
from model.config import FinetuneSettings, PretrainSettings
from model.engine import accumulation_steps
from ray_jobs.bucket_map import map_buckets
from ray_jobs.config import Settings
from ray_jobs.learning import Learning, StoreIndex
from ray_jobs.progress import Progress, say
from ray_jobs.train_loop import BEST, TrainRun, train_loop


def open_store(settings: Settings) -> tuple[SequenceStore, Split]:
    """The store of a run and its split."""
    store = SequenceStore.open(storage.absolute(settings.store_url))
    actions = store.action_indices(settings.target_actions)
    return store, resolve_split(settings.split, *store.read_time_histogram(), actions)


def train(
    name: str,
    settings: Settings,
    section: PretrainSettings | FinetuneSettings,
    learning: Learning,
    output_url: str,
    inputs: dict[str, Any],
    prepare: Callable[[StoreIndex], StoreIndex] = lambda index: index,
) -> None:
    """Train a task and publish it at `output_url`; a run that was cut off goes on where it was.

    Args:
        name: of the job, for its output.
        settings: of the run.
        section: the job's own settings.
        learning: what is learned.
        output_url: folder of the model.
        inputs: fingerprints of what the model is made from.
        prepare: adds to what is counted over the store before training starts.

    Raises:
        SettingsError: the batch does not divide among the workers, or no user has enough history to train on.
    """
    accumulation_steps(section.training, settings.cluster.num_workers)
    used = {"seed": settings.seed, "target_actions": settings.target_actions, "split": settings.split.model_dump()}
    used |= {"exclude_seen": settings.evaluation.exclude_seen}  # which targets are trained on and validated
    # what a model is called says nothing of what it learned, and the encoder it starts from is one of the inputs
    used |= {"section": section.model_dump(exclude={"name", "encoder"}), "inputs": inputs}
    mark = fingerprint(used)
    if is_published(output_url, mark):
        say(f"{name}: {output_url} is already trained")
        return
    store = learning.store
    work_url = f"{output_url}.work"
    with ray_session(settings.cluster):
        check_workers_fit(settings.cluster)
        index = count_store(learning)
        num_examples = int(index.num_examples.sum())
        if not num_examples:
            raise SettingsError(f"{name}: no user has two events before the validation cutoff; see split")
        say(f"{name}: {num_examples:,} training examples of {store.num_users:,} users, {_describe(settings.cluster)}")
        run = TrainRun(
            name=name,
            learning=learning,
            index=prepare(index),
            training=section.training,
            optimizer=section.optimizer,
            seed=settings.seed,
            work_url=work_url,
            fingerprint=mark,
            manifest=learning.describe()
            | {
                "fingerprint": mark,
                "store_fingerprint": store.fingerprint,
                "actions": store.actions,
                "settings": settings.model_dump(mode="json"),
            },
        )
        _run_workers(run, settings.cluster)
    best = load_model(storage.join(work_url, BEST))
    save_model(best.model, best.vocabulary, output_url, {k: v for k, v in best.manifest.items() if k != "files"})
    storage.delete_folder(storage.join(work_url, "checkpoints"))
    storage.delete_folder(storage.join(work_url, BEST))


def _describe(cluster: ClusterSettings) -> str:
    """What trains; a GPU that lies idle because there is not one for every worker is named."""
    if uses_gpu(cluster):
        return f"{cluster.num_workers} workers with a GPU each"
    idle = int(ray.cluster_resources().get("GPU", 0))
    hint = f" (the cluster has {idle} GPU: --cluster.num-workers {idle} would use it)" if idle else ""
    return f"{cluster.num_workers} workers on CPU{hint}"


def count_store(learning: Learning) -> StoreIndex:
    """Training examples of each bucket and totals over all of them, counted by Ray Data."""

    store = learning.store.with_columns({})

    def count(bucket: int) -> tuple[int, Any]:
        sequences = store.read_sequences(bucket)
        return bucket, learning.count(sequences, learning.make_examples(sequences))

    num_buckets = learning.store.num_buckets
    num_examples = np.zeros(num_buckets, np.int64)
    items: np.ndarray | int = 0
    events: np.ndarray | int = 0
    features: np.ndarray | int = 0
    num_events = 0
    progress = Progress("counting examples", num_buckets, "buckets")
    for bucket, part in map_buckets(count, range(num_buckets)):
        num_examples[bucket] = part.num_examples[0]
        items, features = items + part.item_counts, features + part.feature_sums
        num_events += part.num_events
        events = events + part.item_events
        progress.advance()
    return StoreIndex(
        num_examples=num_examples,
        item_counts=np.asarray(items),
        num_events=num_events,
        item_events=np.asarray(events),
        feature_sums=np.asarray(features),
    )


def _run_workers(run: TrainRun, cluster: ClusterSettings) -> None:
    use_gpu = uses_gpu(cluster)
    run_ref = ray.put(run)

    def worker(_: dict[str, Any]) -> None:
        train_loop(ray.get(run_ref), get_device())

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.worker_timeout_s)
    filesystem, path = storage.locate(storage.join(run.work_url, "ray_train"))
    filesystem.create_dir(path, recursive=True)
    trainer = TorchTrainer(
        worker,
        train_loop_config={},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    trainer.fit()
    storage.delete_folder(storage.join(run.work_url, "ray_train"))
