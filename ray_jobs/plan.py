"""The job that says what a training will take before it starts: parameters, memory, checkpoints, steps and time."""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("plan")

from dataclasses import dataclass, replace

import ray

from cluster.config import ClusterSettings
from cluster.session import ray_session, uses_gpu
from data_io import storage
from data_io.config import SettingsError
from data_io.lease import write_lease
from model.config import PretrainSettings
from model.engine import accumulation_steps
from model.loss_config import FullSoftmax
from model.memory import NetworkSize, checkpoint_bytes, stored_bytes
from model.task_config import FinetuneSettings
from ray_jobs.config import PlanSettings, Settings
from ray_jobs.dry_run import DryRun, dry_loop
from ray_jobs.learning import Learning
from ray_jobs.progress import describe_seconds, say
from ray_jobs.tasks import finetuning, pretraining
from ray_jobs.tracking_config import TrackingSettings
from ray_jobs.training import check_enough_work, count_store, identity_of, make_run, open_store, run_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a training will take."""

    num_workers: int
    num_examples: int
    steps_per_epoch: int
    num_epochs: int
    parameters: int
    """In the network, all of its tables whole."""
    memory: dict[str, int]
    """Bytes on the device of a worker, by part."""
    checkpoint_bytes: int
    """Of all workers together."""
    step_s: float
    """Seconds of a step on the dry run's workers, drawn out to as many micro-batches as these workers have."""
    dry_run: DryRun
    predicted_bytes: int
    """Memory of a worker of the dry run, to be held against what it measured."""

    @property
    def memory_bytes(self) -> int:
        """On the device of a worker."""
        return sum(self.memory.values())

    @property
    def run_s(self) -> float:
        """Seconds of all epochs, validation aside."""
        return self.step_s * self.steps_per_epoch * self.num_epochs


def run(settings: Settings) -> Plan:
    """Plan the training of a run, and tell it."""
    settings = settings.model_copy(update={"run_dir": storage.absolute(settings.run_dir)})
    store, split = open_store(settings)
    wanted = settings.plan
    section: PretrainSettings | FinetuneSettings = settings.pretrain if wanted.job == "pretrain" else settings.finetune
    learning = (pretraining if wanted.job == "pretrain" else finetuning)(settings, store, split)
    check_enough_work(section.training, settings.cluster)
    work_url = f"{settings.model_url(section.name)}.plan"
    with ray_session(settings.cluster), write_lease(work_url, "plan"):
        plan = _plan(settings, section, learning, work_url)
        storage.delete_folder(work_url)
    for line in describe(wanted.job, plan, section):
        say(line)
    return plan


def _plan(settings: Settings, section: PretrainSettings | FinetuneSettings, learning: Learning, work_url: str) -> Plan:
    training, wanted = section.training, settings.plan
    index = count_store(learning)
    num_examples = wanted.num_examples or int(index.num_examples.sum())
    if not index.num_examples.sum():
        raise SettingsError(f"plan: no user has history to {wanted.job} on before the validation cutoff; see split")
    run = make_run("plan", settings, section, learning, index, work_url, identity_of(settings, section, {}))
    run = replace(run, tracking=TrackingSettings(tensorboard=False))
    run_workers(run, _as_many_as_fit(settings.cluster), dry_loop)
    dry = DryRun.read(work_url)
    size = dry.size if wanted.num_items is None else _with_items(dry, learning, wanted, training.shard_items_from)
    num_workers = settings.cluster.most_workers
    stored, measured_ones = (
        stored_bytes(numbers, training, section.optimizer, workers)
        for numbers, workers in ((size, num_workers), (dry.size, dry.num_workers))
    )
    more_work = accumulation_steps(training, num_workers) / accumulation_steps(training, dry.num_workers)
    return Plan(
        num_workers=num_workers,
        num_examples=num_examples,
        steps_per_epoch=-(-num_examples // training.global_batch_size),
        num_epochs=training.num_epochs,
        parameters=size.learning + size.frozen + size.rows,
        memory=stored | {"forward and backward pass": dry.pass_bytes},
        checkpoint_bytes=checkpoint_bytes(size, section.optimizer),
        step_s=dry.step_s * more_work,
        dry_run=dry,
        predicted_bytes=sum(measured_ones.values()) + dry.pass_bytes,
    )


def _as_many_as_fit(cluster: ClusterSettings) -> ClusterSettings:
    """The planned workers, or as many of them as the cluster has room for at present, but at least one."""
    kind, each = ("GPU", 1) if uses_gpu(cluster) else ("CPU", cluster.cpus_per_worker)
    room = int(ray.cluster_resources().get(kind, 0)) // each
    return cluster.model_copy(update={"num_workers": max(1, min(cluster.most_workers, room))})


def _with_items(dry: DryRun, learning: Learning, wanted: PlanSettings, shard_from: int) -> NetworkSize:
    """The size of the network with another catalogue.

    Raises:
        SettingsError: a pass over the catalogue grows with it, and was measured on that of the store.
    """
    if dry.loss == FullSoftmax().kind:
        raise SettingsError(
            "plan.num_items needs a loss that does not grow with the catalogue: set pretrain.softmax.kind to sampled"
        )
    width, known = learning.encoder_config["hidden_size"], learning.encoder_config["vocabulary_size"]
    return dry.size.with_items(known * width, int(wanted.num_items or 0) * width, shard_from * width)


def describe(job: str, plan: Plan, section: PretrainSettings | FinetuneSettings) -> list[str]:
    """Lines that tell a person of a plan."""
    dry = plan.dry_run
    window = f"{section.training.micro_batch_size} examples"
    lines = [
        f"plan of {job}: {plan.num_examples:,} examples, {plan.steps_per_epoch:,} steps an epoch, at most "
        f"{plan.num_epochs} epochs; {plan.num_workers} workers; {plan.parameters:,} parameters",
        f"memory of each worker, for micro-batches of {window}:",
        *(f"  {in_bytes(number):>10}  {part}" for part, number in plan.memory.items()),
        f"  {in_bytes(plan.memory_bytes):>10}  in all",
        f"dry run on {dry.num_workers} workers: tensors took {in_bytes(dry.peak_bytes)}, predicted "
        f"{in_bytes(plan.predicted_bytes)}, and a process {in_bytes(dry.resident_bytes)} of its host",
        f"a step of the largest micro-batches took {dry.largest_step_s:.3f} s, one of the first users {dry.step_s:.3f} "
        f"s ({dry.step_tokens / dry.step_s:,.0f} events/s)",
        f"checkpoint: {in_bytes(plan.checkpoint_bytes)} in all; in the dry run training stood still for "
        f"{dry.save_s:.2f} s, and {dry.write_s:.2f} s later it was written",
        f"time: an epoch {describe_seconds(plan.step_s * plan.steps_per_epoch)}, all {plan.num_epochs} epochs "
        f"{describe_seconds(plan.run_s)}, validation and exchange between more machines aside",
    ]
    if dry.device_bytes and plan.memory_bytes > dry.device_bytes:
        lines.append(
            f"it does not fit: a device has {in_bytes(dry.device_bytes)}; lower {job}.training.micro_batch_size, or "
            "set activation_checkpointing, a higher zero_stage, offload or more cluster.num_workers"
        )
    return lines


def in_bytes(number: float) -> str:
    """A number of bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
