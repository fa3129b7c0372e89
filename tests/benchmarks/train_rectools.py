"""The other side of `train_step`: SASRec of RecTools, in an environment of its own, knowing nothing of ours.

Reads a plan as JSON (see `train_sides.Plan`), says before each epoch that it is ready and waits for a line on stdin,
prints a line of JSON after it, and in the end writes the ten best unseen items of each user. Everything not in the plan
is RecTools' default.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

_ORDER_EPOCH = pd.Timestamp("2000-01-01")


class Turns(lightning.Callback):
    """Waits for its turn before each epoch and says afterwards what it took."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.tokens = self.positions = 0
        print("ready", flush=True)
        if not sys.stdin.readline():
            sys.exit("the benchmark has ended")
        self.began = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.tokens += int((batch["y"] > 0).sum())
        self.positions += batch["y"].numel()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        seconds = time.perf_counter() - self.began
        print(json.dumps({"seconds": seconds, "tokens": self.tokens, "positions": self.positions}), flush=True)


def main(plan: dict[str, Any]) -> None:
    torch.set_num_threads(plan["num_threads"])
    lightning.seed_everything(plan["seed"])
    events = np.load(Path(plan["folder"]) / "events.npz")
    frame = pd.DataFrame({Columns.User: events["user"], Columns.Item: events["item"], Columns.Weight: 1.0})
    frame[Columns.Datetime] = _ORDER_EPOCH + pd.to_timedelta(np.arange(len(frame)), unit="s")
    from_last = frame.groupby(Columns.User).cumcount(ascending=False)
    model = build(plan)
    model.fit(Dataset.construct(frame[from_last >= 2]))
    sys.stdin.read()  # until all sides have trained: ranking would take cores from those that have not
    history = Dataset.construct(frame[from_last >= 1])
    users = np.unique(events["user"])
    found = model.recommend(users=users, dataset=history, k=10, filter_viewed=True)
    best = np.full((len(users), 10), -1)
    best[np.searchsorted(users, found[Columns.User]), found[Columns.Rank] - 1] = found[Columns.Item]
    np.save(plan["output"], best)


def build(plan: dict[str, Any]) -> SASRecModel:
    """The model of the plan."""

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=plan["num_epochs"],
            min_epochs=plan["num_epochs"],
            callbacks=[Turns()],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            accelerator="cpu",
            devices=1,
        )

    return SASRecModel(
        n_blocks=plan["num_layers"],
        n_heads=plan["num_heads"],
        n_factors=plan["width"],
        dropout_rate=plan["dropout"],
        session_max_len=plan["length"],
        loss="softmax",
        batch_size=plan["batch_size"],
        epochs=plan["num_epochs"],
        get_trainer_func=trainer,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
