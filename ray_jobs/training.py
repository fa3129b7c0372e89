"""How the driver runs a training: count the store with Ray Data, train with Ray Train, publish the best model."""

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.config import ClusterSettings
from cluster.session import check_workers_fit, ray_session, uses_gpu
from data_io import storage
from data_io.buckets import fingerprint, is_published
from data_io.config import SettingsError
from data_io.lease import write_lease
from data_io.splits import Split, resolve_split
from data_io.store import SequenceStore
from model.blend import Blend
from model.checkpoint import publish_model
from model.checkpoint_form import RunIdentity, newest_notes, newest_position
from model.config import PretrainSettings
from model.engine import num_micro_batches
from model.task_config import FinetuneSettings, LowRankAdapters
from model.training_config import EXECUTION_SETTINGS, TrainingSettings
from ray_jobs.bucket_map import map_buckets
from ray_jobs.config import Settings
from ray_jobs.failures import find_expected
from ray_jobs.learning import Learning, StoreIndex
from ray_jobs.progress import Progress, describe_seconds, say
from ray_jobs.run_status import run_status
from ray_jobs.trackers import check_trackers
from ray_jobs.train_loop import BEST, CHECKPOINTS, SPARE_MEMORY, TrainRun, train_loop
from ray_jobs.watch import Watch

_SIGNS_OF_MEMORY = ("running low on memory", "OutOfMemoryError", "out-of-memory", "OOM")
"""What Ray says of a worker that was killed to spare its machine."""
TrainLoop = Callable[[TrainRun, torch.device, Watch], None]


class WorkersLostError(Exception):
    """Workers are lost again and again before training gets any further; the message says by what."""


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
    complete: Callable[[str], dict[str, Blend]] | None = None,
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
        complete: what is published with the model at a URL besides its weights; None: nothing.

    Raises:
        SettingsError: there are more workers than micro-batches, or no user has enough history to train on.
        OutputLockedError: the same run is being trained already.
        WorkersLostError: workers are lost again and again without a new checkpoint in between.
    """
    check_enough_work(section.training, settings.cluster)
    check_trackers(settings.tracking)
    identity = identity_of(settings, section, inputs)
    if is_published(output_url, identity.fingerprint):
        say(f"{name}: {output_url} is already trained")
        return
    store = learning.store
    work_url = f"{output_url}.work"
    with ray_session(settings.cluster), write_lease(work_url, name), run_status(work_url):
        check_workers_fit(settings.cluster)
        index = count_store(learning)
        num_examples = int(index.num_examples.sum())
        if not num_examples:
            raise SettingsError(f"{name}: no user has two events before the validation cutoff; see split")
        say(f"{name}: {num_examples:,} training examples of {store.num_users:,} users, {_describe(settings.cluster)}")
        run_workers(make_run(name, settings, section, learning, prepare(index), work_url, identity), settings.cluster)
        trainable = section.trainable if isinstance(section, FinetuneSettings) else None
        merge = isinstance(trainable, LowRankAdapters) and trainable.merge
        best = storage.join(work_url, BEST)
        publish_model(best, output_url, merge=merge, blends=complete(best) if complete else None)
        storage.delete_folder(storage.join(work_url, CHECKPOINTS))
        storage.delete_folder(storage.join(work_url, BEST))


def identity_of(
    settings: Settings, section: PretrainSettings | FinetuneSettings, inputs: dict[str, Any]
) -> RunIdentity:
    """What decides which network comes out of a training."""
    used = {"seed": settings.seed, "target_actions": settings.target_actions, "split": settings.split.model_dump()}
    used |= {"exclude_seen": settings.evaluation.exclude_seen}  # which targets are trained on and validated
    # what a model is called says nothing of what it learned, and the encoder it starts from is one of the inputs
    learned = section.model_dump(exclude={"name", "encoder", "training"})
    learned["training"] = section.training.model_dump(exclude=set(EXECUTION_SETTINGS))
    used |= {"section": learned, "inputs": inputs}
    return RunIdentity(fingerprint=fingerprint(used), settings=used)


def make_run(
    name: str,
    settings: Settings,
    section: PretrainSettings | FinetuneSettings,
    learning: Learning,
    index: StoreIndex,
    work_url: str,
    identity: RunIdentity,
) -> TrainRun:
    """What the workers of a training are told."""
    facts = {"fingerprint": identity.fingerprint, "store_fingerprint": learning.store.fingerprint}
    facts |= {"actions": learning.store.actions, "settings": settings.model_dump(mode="json")}
    return TrainRun(
        name=name,
        learning=learning,
        index=index,
        training=section.training,
        optimizer=section.optimizer,
        seed=settings.seed,
        work_url=work_url,
        identity=identity,
        manifest=learning.describe() | facts,
        tracking=settings.tracking,
    )


def _describe(cluster: ClusterSettings) -> str:
    """What trains; a GPU that lies idle because there is not one for every worker is named."""
    if uses_gpu(cluster):
        return f"{_count(cluster)} workers with a GPU each"
    idle = int(ray.cluster_resources().get("GPU", 0))
    hint = f" (the cluster has {idle} GPU: --cluster.num-workers {idle} would use it)" if idle else ""
    return f"{_count(cluster)} workers on CPU{hint}"


def _count(cluster: ClusterSettings) -> str:
    least, most = cluster.least_workers, cluster.most_workers
    return str(least) if least == most else f"{least} to {most}"


def check_enough_work(training: TrainingSettings, cluster: ClusterSettings) -> None:
    """Fail where some workers would have no micro-batch.

    Raises:
        SettingsError: there are more workers than micro-batches in a global batch.
    """
    num = num_micro_batches(training)
    if cluster.most_workers > num:
        raise SettingsError(
            f"global_batch_size {training.global_batch_size} makes {num} micro-batches of {training.micro_batch_size}, "
            f"too few for {cluster.most_workers} workers; lower micro_batch_size or cluster.num_workers"
        )


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
    labels: np.ndarray | int = 0
    num_events = 0
    progress = Progress("counting examples", num_buckets, "buckets")
    for bucket, part in map_buckets(count, range(num_buckets)):
        num_examples[bucket] = part.num_examples[0]
        items, features = items + part.item_counts, features + part.feature_sums
        labels = labels + part.label_sums
        num_events += part.num_events
        events = events + part.item_events
        progress.advance()
    return StoreIndex(
        num_examples=num_examples,
        item_counts=np.asarray(items),
        num_events=num_events,
        item_events=np.asarray(events),
        feature_sums=np.asarray(features),
        label_sums=np.asarray(labels),
    )


def run_workers(run: TrainRun, cluster: ClusterSettings, loop: TrainLoop = train_loop) -> None:
    """Train until it is done, restarting workers as long as each restart gets further than the one before.

    Args:
        run: what is trained.
        cluster: where.
        loop: what each worker runs.

    Raises:
        WorkersLostError: too many restarts in a row got no further.
        TrainingFailedError: around an error that another try would only meet again.
    """
    reached, num_restarts = newest_position(run.checkpoints_url), 0
    while True:
        try:
            _run_worker_group(run, cluster, loop)
        except TrainingFailedError as error:
            if find_expected(error) is not None:
                raise
            before, reached = reached, newest_position(run.checkpoints_url)
            notes = newest_notes(run.checkpoints_url)
            num_restarts = 1 if reached > before else num_restarts + 1
            if num_restarts > cluster.max_failures:
                raise WorkersLostError(
                    f"{run.name}: workers were lost {num_restarts} times without a new checkpoint in between, the last "
                    f"time by: {_reason(error)}; see pretrain.training.checkpoint_every_steps and cluster.max_failures"
                ) from error
            say(f"{run.name}: workers were lost ({_reason(error)}); going on from the newest checkpoint{_age(notes)}")
        else:
            return


def _age(notes: dict[str, Any]) -> str:
    """How old a checkpoint is, which is the work that is lost."""
    return f", written {describe_seconds(time.time() - notes['meter']['saved_at'])} ago" if "meter" in notes else ""


def _reason(error: BaseException) -> str:
    """The last line of what a lost worker said, or that its machine had no memory left."""
    failures = list(getattr(error, "worker_failures", {}).values())
    said = str(failures[0] if failures else error)
    if any(sign in said for sign in _SIGNS_OF_MEMORY):
        return f"a worker's machine ran out of memory; {SPARE_MEMORY}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _run_worker_group(run: TrainRun, cluster: ClusterSettings, loop: TrainLoop) -> None:
    use_gpu = uses_gpu(cluster)
    run_ref = ray.put(run)
    hang_timeout_s = cluster.hang_timeout_s

    def worker(_: dict[str, Any]) -> None:
        rank = get_context().get_world_rank()
        watch = Watch(hang_timeout_s, run_url, rank, lambda: get_preemption_info() is not None)
        loop(ray.get(run_ref), get_device(), watch)

    run_url = run.work_url
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.worker_timeout_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(hang_timeout_s)
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
            # A lost worker ends the group, and `run_workers` decides whether another one is worth while. A machine that
            # was announced to go is no failure: Ray itself starts the next group.
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()
    storage.delete_folder(storage.join(run.work_url, "ray_train"))
