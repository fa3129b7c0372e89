"""DeepSpeed ZeRO 0 to 3 on two gloo workers against plain PyTorch, step by step."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

from data_io.batch import ACTION_INDEX, COLUMN, ELAPSED, GAP, ITEM_INDEX, MOMENT, PADDING_MASK, TARGET_ITEM_INDEX, Batch
from data_io.side.features import ItemFeatures
from model.checkpoint import CheckpointError
from model.checkpoint_form import RunIdentity, TrainPosition
from model.checkpoint_writer import CheckpointWriter
from model.encoder import ClickformerConfig, ClickformerEncoder
from model.engine import TrainEngine, deepspeed_config, learning_rate_at, parameter_groups, to_tensors
from model.item_features import FeaturedItemTable
from model.loss_config import BinaryLoss, FullSoftmax
from model.objectives import ItemLoss, NextItemObjective
from model.resuming import resume
from model.training_config import OptimizerSettings, TrainingSettings
from tests.processes import run_workers

NUM_STEPS, WORLD_SIZE, MICRO, LENGTH, ITEMS = 10, 2, 4, 6, 30
OPTIMIZER = OptimizerSettings(learning_rate=0.01, warmup_steps=3, max_gradient_norm=0.5, average_decay=0.7)
CPU = torch.device("cpu")
Weights = dict[str, np.ndarray]
NETWORKS: dict[str, dict[str, Any]] = {
    "ligr": {"block": "ligr", "positions": "learned"},
    "hstu": {"block": "hstu"},
    "gru": {"block": "gru"},
    "gbce": {"repeats": False},
    "inputs": {"inputs": {"gap": "own", "calendar": "own", "query": "text", "price": "numeric"}},
    "features": {
        "item_features": [
            {"name": "words", "form": "text", "width": 3, "num_rows": 9},
            {"name": "picture", "form": "vector", "width": 2, "num_rows": 0},
        ]
    },
    "llama": {"backbone": {"kind": "hugging_face", "model_type": "llama"}},
}
"""Besides the one that goes through every stage; without repeats the loss is binary, against drawn negatives."""


def make_objective(**network: Any) -> NextItemObjective:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "sequence_length": LENGTH, "dropout": 0.0}
    encoder = ClickformerEncoder(ClickformerConfig(vocabulary_size=ITEMS, num_actions=4, **shape | network))
    if isinstance(encoder.item_table, FeaturedItemTable):
        drawn = np.random.default_rng(0)
        known = {"words": drawn.integers(0, 9, (ITEMS, 3), np.int32), "picture": drawn.random((ITEMS, 2), np.float32)}
        encoder.item_table.set_items(ItemFeatures(num_rows=ITEMS, values=known), drawn.integers(0, 3, ITEMS))
    softmax = FullSoftmax() if network.get("repeats", True) else BinaryLoss(num_negatives=8)
    return NextItemObjective(encoder, ItemLoss(softmax, torch.ones(ITEMS)))


def make_batch(seed: int, num_examples: int) -> Batch:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, LENGTH + 1, num_examples)
    real = np.arange(LENGTH) < lengths[:, None]
    draw = {ITEM_INDEX: ITEMS, ACTION_INDEX: 4, GAP: 60, ELAPSED: 60, TARGET_ITEM_INDEX: ITEMS}
    batch = {name: np.where(real, generator.integers(2, top, real.shape), 0) for name, top in draw.items()}
    moment = np.where(real, generator.integers(0, 10**12, real.shape).cumsum(axis=1), 0)
    columns = {f"{COLUMN}price": generator.integers(0, 160, real.shape) * real}
    texts = generator.random(real.shape) < 0.3  # of some micro-batches no event has a text
    columns[f"{COLUMN}query"] = generator.integers(0, 8_000, (*real.shape, 3)) * (real & texts)[..., None]
    return batch | columns | {MOMENT: moment, PADDING_MASK: real}


def step_batches(step: int, rank: int, accumulation: int) -> list[Batch]:
    """A rank's share of the global batch; in step 4 rank 1 has nothing but padding."""
    whole = make_batch(step, MICRO * WORLD_SIZE)
    part = {name: array[rank * MICRO : (rank + 1) * MICRO] for name, array in whole.items()}
    if step == 4 and rank == 1:
        part = {name: np.zeros_like(array) for name, array in part.items()}
    size = MICRO // accumulation
    return [{name: array[i * size : (i + 1) * size] for name, array in part.items()} for i in range(accumulation)]


def plain_losses(**network: Any) -> list[float]:
    """The same steps in one process without DeepSpeed."""
    return plain_run(**network)[0]


def plain_run(**network: Any) -> tuple[list[float], Weights]:
    """Losses of these steps, and the mean weights after them."""
    objective = make_objective(**network)
    optimizer = torch.optim.AdamW(parameter_groups(objective, OPTIMIZER.weight_decay), lr=1.0)
    losses, means = [], weights_of(objective)
    for step in range(NUM_STEPS):
        parts = [step_batches(step, rank, 1)[0] for rank in range(WORLD_SIZE)]
        num_targets = sum(int((part[TARGET_ITEM_INDEX] > 0).sum()) for part in parts)
        summed = [objective(to_tensors(part, CPU), seed=step + rank) for rank, part in enumerate(parts)]
        loss = sum(summed) / num_targets
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), OPTIMIZER.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(OPTIMIZER, step, NUM_STEPS)
        optimizer.step()
        losses.append(float(loss.detach()))
        decay = min(OPTIMIZER.average_decay, (1 + step) / (10 + step))
        means = {name: decay * means[name] + (1 - decay) * now for name, now in weights_of(objective).items()}
    return losses, means


def weights_of(objective: nn.Module) -> Weights:
    return {name: parameter.detach().clone().numpy() for name, parameter in objective.named_parameters()}


def published_weights(engine: TrainEngine) -> Weights:
    with engine.gathered_parameters():
        return weights_of(engine.module)


def make_engine(stage: int, accumulation: int = 1, *, recomputes: bool = False, **network: Any) -> TrainEngine:
    training = TrainingSettings(
        global_batch_size=MICRO * WORLD_SIZE,
        micro_batch_size=MICRO // accumulation,
        zero_stage=stage,
        activation_checkpointing=recomputes,
    )
    return TrainEngine(make_objective(**network), training, OPTIMIZER, CPU)


def run_steps(engine: TrainEngine, steps: range, accumulation: int = 1) -> list[float]:
    losses = []
    for step in steps:
        batches = step_batches(step, dist.get_rank(), accumulation)
        weight = sum(int((batch[TARGET_ITEM_INDEX] > 0).sum()) for batch in batches)
        losses.append(engine.step(batches, weight, step, step, NUM_STEPS).loss)
    return losses


def identity(name: str) -> RunIdentity:
    return RunIdentity(fingerprint=name, settings={"section": {"learning_rate": name}})


def failure_of(engine: TrainEngine, url: str, name: str) -> str:
    try:
        resume(engine, url, identity(name))
    except CheckpointError as error:
        return str(error)
    return ""


def resumed_losses(stage: int, url: str) -> dict[str, Any]:
    """Five steps, a checkpoint, then the rest in a fresh engine; a torn newer checkpoint must not be used."""
    first, warnings = make_engine(stage), []
    writer = CheckpointWriter(url, identity("a"), keep=3)
    run_steps(first, range(5))
    writer.save(first, TrainPosition(epoch=0, step=5), {"seen": "before"})
    run_steps(first, range(5, 6))
    writer.save(first, TrainPosition(epoch=0, step=6), {})
    writer.wait()
    dist.barrier()
    if dist.get_rank() == 0:
        newest = sorted(Path(url).iterdir())[-1]
        largest = max(newest.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-100])
    dist.barrier()
    second = make_engine(stage)
    resumed = resume(second, url, identity("a"), warnings.append)
    return {
        "step": resumed.position.step,
        "notes": resumed.notes,
        "warnings": warnings,
        "losses": run_steps(second, range(resumed.position.step, NUM_STEPS)),
        "published": published_weights(second),
        "other_settings": failure_of(second, url, "b"),
    }


def trained_weights(stage: int) -> tuple[Weights, float]:
    """What would be published after all steps, and the loss of the step after that, which is of the weights again."""
    engine = make_engine(stage)
    run_steps(engine, range(NUM_STEPS))
    return published_weights(engine), run_steps(engine, range(NUM_STEPS, NUM_STEPS + 1))[0]


def sharding_all(*arguments: Any) -> dict[str, Any]:
    """DeepSpeed's configuration, but not even small parameters are whole on each rank between their uses."""
    config = deepspeed_config(*arguments)
    return config | {"zero_optimization": config["zero_optimization"] | {"stage3_param_persistence_threshold": 0}}


def work(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {f"stage {stage}": run_steps(make_engine(stage), range(NUM_STEPS)) for stage in range(4)}
    found |= {f"published {stage}": trained_weights(stage) for stage in range(4)}
    with patch("model.engine.deepspeed_config", sharding_all):
        found["published by parts"] = trained_weights(3)
    found["accumulated"] = run_steps(make_engine(1, accumulation=2), range(NUM_STEPS), accumulation=2)
    for stage in (1, 3):
        dropping = {"dropout": 0.3, "recomputes": False}, {"dropout": 0.3, "recomputes": True}
        found[f"recomputed {stage}"] = [run_steps(make_engine(stage, **network), range(5)) for network in dropping]
    dropping = {"dropout": 0.3, "recomputes": True} | NETWORKS["llama"]
    found["recomputed llama"] = [run_steps(make_engine(3, **dropping | {"recomputes": on}), range(5)) for on in (0, 1)]
    for name, network in NETWORKS.items():
        found[name] = run_steps(make_engine(3, **network), range(NUM_STEPS))
    for stage in (0, 1, 2, 3):
        found[f"resumed {stage}"] = resumed_losses(stage, f"{folder}/stage-{stage}")
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Losses of every stage, run one after the other by the same two workers to save their start-up."""
    return run_workers(work, WORLD_SIZE, tmp_path_factory.mktemp("zero"))[0]


@pytest.mark.parametrize("stage", range(4))
def test_stage_gives_the_losses_of_plain_pytorch(found: dict[str, Any], stage: int) -> None:
    np.testing.assert_allclose(found[f"stage {stage}"], plain_losses(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_stage_3_gathers_every_weight_of_other_networks(found: dict[str, Any], name: str) -> None:
    # Adam makes steps of full size of gradients that are next to nothing, such as those of biases few events touch, and
    # those differ by rounding: a weight that was not gathered would be off from the first step on.
    np.testing.assert_allclose(found[name], plain_losses(**NETWORKS[name]), atol=1e-3, rtol=0)
    np.testing.assert_allclose(found[name][:4], plain_losses(**NETWORKS[name])[:4], atol=1e-5, rtol=0)


def test_accumulated_gradients_give_the_same_losses(found: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["accumulated"], found["stage 1"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [1, 3, "llama"])
def test_activations_that_are_computed_again_give_the_same_losses(found: dict[str, Any], kind: object) -> None:
    kept, recomputed = found[f"recomputed {kind}"]
    assert recomputed == kept, "dropout falls on the same places"


@pytest.mark.parametrize("stage", range(4))
def test_resumed_run_equals_the_undisturbed_one_and_skips_a_torn_checkpoint(found: dict[str, Any], stage: int) -> None:
    resumed = found[f"resumed {stage}"]
    assert resumed["step"] == 5
    assert resumed["notes"] == {"seen": "before"}
    assert "differs from what was written; an older checkpoint is taken" in resumed["warnings"][0]
    assert resumed["losses"] == found[f"stage {stage}"][5:], "bit-equal on the same number of workers"


@pytest.mark.parametrize("stage", range(4))
def test_a_resumed_run_publishes_what_the_undisturbed_one_does(found: dict[str, Any], stage: int) -> None:
    undisturbed = found[f"published {stage}"][0]
    for name, weights in found[f"resumed {stage}"]["published"].items():
        np.testing.assert_array_equal(weights, undisturbed[name], err_msg=name)


@pytest.mark.parametrize("kind", ["0", "1", "2", "3", "by parts"])
def test_what_is_published_is_the_mean_of_the_weights_of_all_steps(found: dict[str, Any], kind: str) -> None:
    published, loss_after = found[f"published {kind}"]
    _, means = plain_run()
    assert published.keys() == means.keys()
    for name, mean in means.items():
        np.testing.assert_allclose(published[name], mean, atol=1e-3, rtol=0, err_msg=name)
    assert loss_after == pytest.approx(found["published 0"][1], abs=1e-4), "the weights are there again"


def test_checkpoint_of_other_settings_is_refused(found: dict[str, Any]) -> None:
    message = found["resumed 1"]["other_settings"]
    assert "(section.learning_rate 'a' then, 'b' now)" in message
