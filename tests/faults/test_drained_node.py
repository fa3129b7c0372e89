"""A machine that is announced to go (T4): a checkpoint is written in time, and training goes on without the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.drained_node import DEADLINE_S
from tests.trainings import check_each_user_once_an_epoch


@pytest.mark.faults
def test_a_node_that_is_drained_costs_no_work_and_counts_as_no_failure(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.faults.drained_node", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4_000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert not seen["drain"]
    assert seen["saved_after_s"] < DEADLINE_S
    assert seen["position"][1] > 0, "in the middle of an epoch"
    assert "a machine is about to be taken away: saving after step" in said
    assert "Training was interrupted by node preemption" in said
    assert f"resuming in epoch {seen['position'][0] + 1} after step {seen['position'][1]}" in said
    check_each_user_once_an_epoch(tmp_path / "ledger", seen["num_examples"], seen["num_epochs"])
