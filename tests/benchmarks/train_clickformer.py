"""Our side of `train_step`: the encoder, its objective, batches and engine as `pretrain` uses them, without Ray.

Reads a plan as JSON (see `train_sides.Plan`), says before each epoch that it is ready and waits for a line on stdin,
prints a line of JSON after it, and in the end writes the ten best unseen items of each user. An epoch is the newest
window of every user, as it is for the other side.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import distributed as dist

from data_io.batch import PADDING_MASK
from data_io.buckets import BucketWriter
from data_io.examples import next_item_examples
from data_io.loader import BatchLoader, RankPlace
from data_io.order import EpochOrder
from data_io.schema import FIRST_INDEX, PADDING_INDEX, store_schema
from data_io.scores import seen_pairs
from data_io.sources import time_from_order
from data_io.store import SequenceStore
from data_io.vocabulary import build_vocabulary, write_vocabulary
from model.config import NextItem
from model.encoder import ClickformerEncoder
from model.engine import TrainEngine
from model.loss_config import FullSoftmax, SampledSoftmax
from model.scoring import iter_batches, rank_items
from model.task_config import FullEncoder
from model.topk import exclude_items, top_k
from model.training_config import OptimizerSettings, TrainingSettings
from ray_jobs.item_learning import ItemLearning
from tests.benchmarks.train_sides import READY, Plan

_SCORED_AT_ONCE = 256
_WARMUP_STEPS = 20


class Training:
    """Epochs on one worker."""

    def __init__(self, plan: Plan) -> None:
        torch.set_num_threads(plan.num_threads)
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.learning = make_learning(plan, write_store(plan))
        self.sequences = self.learning.store.read_sequences(0)
        index = self.learning.count(self.sequences, self.learning.make_examples(self.sequences))
        self.counts = index.num_examples
        self.loader = BatchLoader(
            self.learning.store,
            self.learning.make_examples,
            self.learning.make_batch,
            self.learning.empty_batch(),
        )
        training = TrainingSettings(
            num_epochs=plan.num_epochs,
            global_batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            zero_stage=0,
        )
        optimizer = OptimizerSettings(learning_rate=plan.learning_rate, warmup_steps=_WARMUP_STEPS)
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", init_method=f"file://{plan.output}.init", rank=0, world_size=1)
        self.engine = TrainEngine(self.learning.build(index), training, optimizer, torch.device("cpu"))

    @property
    def encoder(self) -> ClickformerEncoder:
        """The network that learns."""
        return self.learning.model_of(self.engine.module)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train one; seconds, real events with a target, and positions with their padding."""
        began, tokens, positions = time.perf_counter(), 0, 0
        plan, learning = self.plan, self.learning
        num = -(-plan.batch_size // plan.micro_batch_size)
        order = EpochOrder(self.counts, plan.seed, epoch, plan.batch_size, num)
        place = RankPlace(rank=0, world_size=1, num_micro_batches=num)
        for step, loaded in enumerate(self.loader.steps(order, place, 0), start=epoch * order.num_steps):
            batches = loaded.batches
            weight = sum(learning.num_targets(batch) for batch in batches)
            self.engine.step(batches, weight, step * num, step, order.num_steps * plan.num_epochs)
            tokens += weight
            positions += sum(batch[PADDING_MASK].size for batch in batches)
        return {"seconds": time.perf_counter() - began, "tokens": tokens, "positions": positions}

    def best_items(self) -> np.ndarray:
        """[U, 10] the best item ids that a user did not have before the last event, users by id."""
        encoder = self.encoder.eval()
        examples = next_item_examples(self.sequences, None, "test", self.plan.length, None)
        parts: list[np.ndarray] = []
        for part, batch in iter_batches(self.sequences, examples, _SCORED_AT_ONCE):
            scores = rank_items(encoder, batch)[1]
            exclude_items(scores, *seen_pairs(self.sequences, part))
            indices = top_k(scores, 10)[1].numpy()
            parts.append(self.learning.store.vocabulary.item_ids.to_numpy()[indices - FIRST_INDEX])
        return np.concatenate(parts)


def make_learning(plan: Plan, store: SequenceStore) -> ItemLearning:
    """The task: the next item under the plan's loss."""
    config = {
        "vocabulary_size": store.vocabulary.size,
        "num_actions": len(store.actions) + FIRST_INDEX,
        "hidden_size": plan.width,
        "num_layers": plan.num_layers,
        "num_heads": plan.num_heads,
        "sequence_length": plan.length,
        "dropout": plan.dropout,
        "inputs": {},
        "asked_action": PADDING_INDEX,
        "item_features": (),
        "repeats": False,
    }
    return ItemLearning(
        store=store,
        split=None,
        softmax=SampledSoftmax() if plan.softmax == "sampled" else FullSoftmax(),
        objective=NextItem(),
        encoder_config=config,
        windows_per_user=1,
        target_actions=None,
        exclude_seen=True,
        pretrained_url=None,
        trainable=FullEncoder(),
    )


def write_store(plan: Plan) -> SequenceStore:
    """A store of one bucket with the events of the plan, a second from one to the next."""
    found = np.load(Path(plan.folder) / "events.npz")
    events = pl.DataFrame({"user_id": found["user"], "item_id": found["item"]})
    url = str(Path(plan.output).with_suffix(".store"))
    items = build_vocabulary(events["item_id"].value_counts(name="count"), 1)
    write_vocabulary(url, items)
    indexed = events.join(items, on="item_id", how="left", maintain_order="left").with_columns(
        action_index=FIRST_INDEX, event_time=time_from_order(pl.int_range(pl.len()).over("user_id"))
    )
    columns = ["item_index", "action_index", "event_time"]
    rows = indexed.group_by("user_id", maintain_order=True).agg(columns).sort("user_id")
    schema = store_schema("int", {})
    wanted = pa.schema([schema.field(name) for name in ("user_id", *columns)])
    writer = BucketWriter(url=url, fingerprint="train_step")
    facts = {"num_buckets": 1, "num_users": len(rows), "actions": ["rate"], "last_minute": 0}
    writer.publish([writer.commit(0, 1, rows.to_arrow().cast(wanted), {})], facts)
    return SequenceStore.open(url)


def turns(num_epochs: int) -> Iterator[int]:
    """Epochs, each when a line on stdin says so."""
    for epoch in range(num_epochs):
        print(READY, flush=True)
        if not sys.stdin.readline():
            sys.exit("the benchmark has ended")
        yield epoch


def main(plan: Plan) -> None:
    training = Training(plan)
    for epoch in turns(plan.num_epochs):
        print(json.dumps(training.epoch(epoch)), flush=True)
    sys.stdin.read()  # until all sides have trained: ranking would take cores from those that have not
    np.save(plan.output, training.best_items())
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
