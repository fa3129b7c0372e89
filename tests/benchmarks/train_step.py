"""Training: ours against SASRec of RecTools on MovieLens-1M, in real tokens a second and in quality after equal epochs.

A real token is an event with a target; padding does not count. Both have width 64, two blocks, two heads, length 200,
128 users a step, dropout 0.2 and the softmax over the whole catalogue; both train in every epoch on the newest 200
inputs of each user, without the last two events, with all cores, epoch after epoch in turn. NDCG@10 is of the last
event among all items a user did not have, from the ten best that each side names, by the same code. RecTools learns
with its default, 0.001 of Adam; ours with 0.003 of AdamW, 20 steps of warm-up and cosine decay. A third side is ours
with sampled negatives. RecTools 0.19.0 runs under Python 3.11 with torch 2.13, with no pin to work around.
Usage: python -m tests.benchmarks.train_step [--quick] [--epochs N] [--rounds N] [--data DIR] [--environment DIR]
DIR of --data has the SASRec file of MovieLens-1M (default: ml1m in CLICKFORMER_DATA); --environment keeps RecTools'
virtual environment. Each round is another seed.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from data_io.sources.movielens import read_events
from model.metrics import bootstrap_mean, ndcg_at
from tests.benchmarks.harness import finish
from tests.benchmarks.train_arithmetic import matmul_peak, mean_length_of_events, training_flops
from tests.benchmarks.train_sides import Plan, Side, install_rectools, our_side, their_side
from tests.conftest import SHARED_DATA

_SASREC_FILE = "sasrec_ml-1m.txt.gz"
_BAR, _AIM = 5.0, 10.0
_QUICK_USERS, _QUICK_EPOCHS = 1_024, 3
_SAMPLED_NEGATIVES = 1_024
_K = 10


@dataclass
class Outcome:
    """What the rounds of one side found."""

    rates: list[float] = field(default_factory=list)
    """Real tokens a second of each epoch but the first."""
    paddings: list[float] = field(default_factory=list)
    """Share of positions that are padding, of each epoch."""
    gains: list[np.ndarray] = field(default_factory=list)
    """NDCG of each user, of each round."""

    def add(self, side: Side, targets: np.ndarray) -> None:
        """Take in a round that is over."""
        timed = side.epochs[1:] or side.epochs  # the first is a warm-up
        self.rates += [epoch.tokens / epoch.seconds for epoch in timed]
        self.paddings += [1 - epoch.tokens / epoch.positions for epoch in side.epochs]
        self.gains.append(ndcg_at(ranks_in(side.best_items(), targets), _K))

    @property
    def rate(self) -> float:
        """Median real tokens a second."""
        return statistics.median(self.rates)

    @property
    def ndcg(self) -> np.ndarray:
        """[U] NDCG of each user, the mean over rounds."""
        return np.mean(self.gains, axis=0)


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="clickformer-bench-") as name:
        folder = Path(name)
        environment = options.environment or folder / "rectools"
        install_rectools(environment)
        events = read_file(options.data / _SASREC_FILE)
        if options.quick:
            events = events.filter(pl.col("user_id") <= _QUICK_USERS)
        np.savez(folder / "events.npz", user=events["user_id"].to_numpy(), item=events["item_id"].to_numpy())
        targets = events.group_by("user_id").agg(pl.col("item_id").last()).sort("user_id")["item_id"].to_numpy()
        outcomes = {name: Outcome() for name in ("rectools", "clickformer", "sampled")}
        for seed in range(options.rounds):
            train_round(sides_of(options, folder, environment, seed), outcomes, targets)
    report(outcomes, events, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a thousand users, without a judgement of quality")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each side")
    parser.add_argument("--rounds", type=int, default=1, help="seeds")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "ml1m", help=f"folder of {_SASREC_FILE}")
    parser.add_argument("--environment", type=Path, help="virtual environment of RecTools, made if it is not there")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores of each side")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of ours")
    parser.add_argument("--micro-batch", type=int, default=128, help="of ours")
    return parser.parse_args()


def read_file(file: Path) -> pl.DataFrame:
    """user_id and item_id of every event, those of a user in order."""
    frame = pl.concat(pl.DataFrame(table) for table in read_events(file))
    return frame.sort("user_id", "event_time", maintain_order=True).select("user_id", "item_id")


def sides_of(options: argparse.Namespace, folder: Path, environment: Path, seed: int) -> dict[str, Callable[[], Side]]:
    """What starts each side of a round."""
    plan = Plan(
        folder=str(folder),
        output="",
        num_epochs=_QUICK_EPOCHS if options.quick else options.epochs,
        seed=seed,
        num_threads=options.threads,
        learning_rate=options.learning_rate,
        micro_batch_size=options.micro_batch,
    )
    plans = {name: replace(plan, output=str(folder / f"{name}-{seed}.npy")) for name in ("rectools", "clickformer")}
    sampled = replace(plan, output=str(folder / f"sampled-{seed}.npy"), softmax="sampled")
    return {
        "rectools": partial(their_side, plans["rectools"], environment),
        "clickformer": partial(our_side, plans["clickformer"]),
        "sampled": partial(our_side, sampled),
    }


def train_round(starters: dict[str, Callable[[], Side]], outcomes: dict[str, Outcome], targets: np.ndarray) -> None:
    """One seed: every epoch of all sides in turn, then what they recommend."""
    sides: dict[str, Side] = {}
    try:
        for name, start in starters.items():
            sides[name] = start()
        for epoch in range(next(iter(sides.values())).plan.num_epochs):
            for name, side in sides.items():
                side.train_epoch()
                done = side.epochs[-1]
                print(f"epoch {epoch + 1}: {name} {done.tokens / done.seconds:,.0f} tokens/s", flush=True)
        for name, side in sides.items():
            outcomes[name].add(side, targets)
    finally:
        for side in sides.values():
            side.stop()


def ranks_in(best: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[U] rank (from 1) of each target [U] among the best items [U, K]; K + 1 where it is not there."""
    found = best == targets[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, best.shape[1] + 1)


def report(outcomes: dict[str, Outcome], events: pl.DataFrame, options: argparse.Namespace) -> None:
    """The table and the last line."""
    lengths = torch.from_numpy(events.group_by("user_id").len()["len"].to_numpy().astype(np.int64) - 3).clamp(max=200)
    mean_length = mean_length_of_events(lengths)
    peak = matmul_peak(options.threads)
    num_items = events["item_id"].n_unique()
    print(f"{'side':<12} {'tokens/s':>9} {'times':>6} {'padding':>8} {'NDCG@10':>8} {'GFLOP/s':>8} {'of peak':>8}")
    for name, outcome in outcomes.items():
        scored = (_SAMPLED_NEGATIVES, 4) if name == "sampled" else (num_items, 3)
        speed = outcome.rate * training_flops(Plan.width, Plan.num_layers, mean_length, *scored)
        times = outcome.rate / outcomes["rectools"].rate
        computed = "" if name == "rectools" else f"{speed / 1e9:>8.1f} {speed / peak:>7.1%}"  # the formula is ours
        print(
            f"{name:<12} {outcome.rate:>9,.0f} {times:>6.2f} {np.mean(outcome.paddings):>7.1%} "
            f"{outcome.ndcg.mean():>8.4f} {computed}"
        )
    flops = training_flops(Plan.width, Plan.num_layers, mean_length, num_items, 3)
    print(f"{flops / 1e6:.2f} MFLOP a real token by arithmetic of ours; peak of a matmul {peak / 1e9:.0f} GFLOP/s")
    judge(outcomes, quick=options.quick)


def judge(outcomes: dict[str, Outcome], *, quick: bool) -> None:
    """The last line: fast enough, at a quality that is not lower than theirs minus noise over users."""
    ours, theirs = outcomes["clickformer"], outcomes["rectools"]
    low, high = bootstrap_mean(ours.ndcg - theirs.ndcg, seed=0)
    print(f"NDCG@10 of ours minus theirs: {low:+.4f} to {high:+.4f} (95 % over users); {_AIM:.0f} times is the aim")
    figures = {"speed": ours.rate / theirs.rate, "ndcg": ours.ndcg.mean(), "theirs": theirs.ndcg.mean()}
    finish("train_step", figures, _BAR, ok=figures["speed"] >= _BAR and (quick or high >= 0))


if __name__ == "__main__":
    main()
