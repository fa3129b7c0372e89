"""Figures of a run, by a clock of the test's own."""

import pytest

from model.engine import StepResult
from model.flops import StepSize, TrainingCost
from ray_jobs.telemetry import StepMeter

COST = TrainingCost(per_token=10.0, per_pair=1.0, per_target=100.0)
SIZE = StepSize(num_tokens=80, num_positions=100, sum_of_squares=1000, num_targets=5)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def take_steps(meter: StepMeter, clock: Clock, number: int, *, skipped: bool = False) -> None:
    for _ in range(number):
        clock.now += 2
        meter.count(StepResult(3.0, 1.5, skipped), SIZE, seconds=2.0, wait_s=0.5)


def test_figures_are_of_the_steps_since_they_were_last_taken() -> None:
    clock = Clock()
    meter = StepMeter(COST, peak=1000.0, now=clock)
    take_steps(meter, clock, 3)
    figures = meter.figures(steps_left=7)
    assert figures["tokens_per_s"] == 40
    assert figures["padding_share"] == pytest.approx(0.2)
    assert figures["input_wait_share"] == 0.25
    assert figures["flop_share"] == pytest.approx((800 + 1000 + 500) / 2 / 1000)
    assert (figures["step_s"], figures["eta_s"], figures["loss"], figures["gradient_norm"]) == (2, 14, 3, 1.5)
    assert figures["goodput"] == 1
    assert not meter.has_steps


def test_skipped_steps_pauses_and_lost_work_lower_goodput() -> None:
    clock = Clock()
    meter = StepMeter(COST, 1000.0, clock)
    take_steps(meter, clock, 5)
    saved = meter.state()
    take_steps(meter, clock, 4)  # lost with a worker
    clock.now += 12  # until another one has started
    resumed = StepMeter(COST, 1000.0, clock)
    resumed.load(saved)
    take_steps(resumed, clock, 4)
    take_steps(resumed, clock, 1, skipped=True)
    figures = resumed.figures(0)
    assert figures["goodput"] == pytest.approx((5 + 4) * 2 / (5 * 2 + 4 * 2 + 12 + 5 * 2))
    assert figures["loss"] == 3
