"""Two programs that train in turn: what each is told, the environment of the other one, and its process.

Invariant: while one side trains an epoch the other waits for its turn, so neither takes a core from the other.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.conftest import REPOSITORY

READY = "ready"
"""What a side prints when it waits for its turn."""
RECTOOLS = "rectools[torch]==0.19.0"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a side trains."""

    folder: str
    """Where events.npz is: user and item of every event, each user's in order."""
    output: str
    """Where the best items of each user go."""
    num_epochs: int
    seed: int
    num_threads: int
    softmax: str = "full"
    learning_rate: float = 3e-3
    """Ours; theirs is their default, 0.001 of Adam without a schedule."""
    micro_batch_size: int = 128
    """Ours: examples of one forward pass; gradients are summed to those of batch_size."""
    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    length: int = 200
    batch_size: int = 128
    dropout: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch of a side took."""

    seconds: float
    tokens: int
    """Events with a target."""
    positions: int
    """Events and padding that went through the network."""


class Side:
    """A process that trains an epoch whenever it is told to."""

    def __init__(self, command: Sequence[str], plan: Plan) -> None:
        self.plan = plan
        self._log = Path(plan.output).with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(plan))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=REPOSITORY,
            )
        self.epochs: list[Epoch] = []
        self._read(READY)

    def train_epoch(self) -> None:
        """Let it train one, and wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        self.epochs.append(Epoch(**json.loads(self._read("{"))))

    def best_items(self) -> np.ndarray:
        """[U, 10] what it recommends after the last epoch: it ranks now, and is waited for."""
        self._process.communicate()
        if self._process.returncode:
            raise self._failure()
        return np.load(self.plan.output)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _read(self, beginning: str) -> str:
        """The next line that begins so; others are a library's own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        raise self._failure()

    def _failure(self) -> RuntimeError:
        return RuntimeError(f"{self._log.stem} ended early:\n{self._log.read_text()[-4000:]}")


def our_side(plan: Plan) -> Side:
    """Clickformer, in this environment."""
    return Side([sys.executable, "-m", "tests.benchmarks.train_clickformer"], plan)


def their_side(plan: Plan, environment: Path) -> Side:
    """RecTools, in its own environment."""
    return Side([str(environment / "bin" / "python"), "tests/benchmarks/train_rectools.py"], plan)


def install_rectools(environment: Path) -> None:
    """Make a virtual environment with RecTools and our version of torch, unless it is there.

    Torch is held to the version that runs here by a constraints file: so both sides have the same kernels, and an open
    range would bring gigabytes of CUDA packages. RecTools brings numpy 1.26 and pandas 2, which is why it stands apart.
    """
    python = environment / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import rectools.models"], check=False).returncode:
        return
    print(f"installing {RECTOOLS} in {environment}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    constraints = environment / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').split('+')[0]}\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", str(constraints), RECTOOLS], check=True)
