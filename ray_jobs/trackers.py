"""Where the figures of a training are recorded: TensorBoard, MLflow, Weights & Biases, and Ray's metrics.

Invariant: a tracker that fails or hangs neither stops nor slows training. Points wait in a short queue that one thread
serves; what does not fit, or fails again and again, is counted and said.
"""

import queue
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from data_io import storage
from data_io.config import SettingsError
from ray_jobs.progress import say
from ray_jobs.tracking_config import MlflowSettings, TrackingSettings, WandbSettings

_QUEUED_POINTS = 1_000
_MAX_FAILURES = 3
_CLOSE_TIMEOUT_S = 30.0
_UPLOAD_EVERY_S = 60.0


class Tracker(Protocol):
    """Records points; may raise whatever it likes."""

    def log(self, figures: dict[str, float], step: int) -> None:
        """Record figures of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_trackers(settings: TrackingSettings) -> None:
    """Fail before work starts where a tracker's package is missing.

    Raises:
        SettingsError: it is.
    """
    chosen = {"mlflow": settings.mlflow.tracking_uri, "wandb": settings.wandb.project}
    for name, place in chosen.items():
        if place is not None and find_spec(name) is None:
            raise SettingsError(f"tracking.{name} needs its package: pip install 'clickformer[{name}]'")


def make_trackers(settings: TrackingSettings, work_url: str, run_id: str, config: dict[str, Any]) -> "Trackers":
    """The trackers that the settings name, and Ray's metrics.

    Args:
        settings: which.
        work_url: of the run.
        run_id: the same for a run that is resumed, so that it goes on in the same place.
        config: settings of the run, for trackers that show them.
    """
    name = work_url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".work")
    makers: dict[str, Callable[[], Tracker]] = {"ray": lambda: RayMetrics(name)}
    if settings.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(storage.join(work_url, "tensorboard"))
    if settings.mlflow.tracking_uri is not None:
        makers["mlflow"] = lambda: Mlflow(settings.mlflow, name, run_id, config)
    if settings.wandb.project is not None:
        makers["wandb"] = lambda: Wandb(settings.wandb, name, run_id, config, work_url)
    return Trackers(makers)


class Trackers:
    """Several trackers behind one queue."""

    def __init__(self, makers: dict[str, Callable[[], Tracker]]) -> None:
        self._makers = makers
        self._queue: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(_QUEUED_POINTS)
        self._num_lost = 0
        self._thread = threading.Thread(target=self._serve, daemon=True, name="trackers")
        self._thread.start()

    def log(self, figures: dict[str, float], step: int) -> None:
        """Record figures of a step, some time soon."""
        try:
            self._queue.put_nowait((figures, step))
        except queue.Full:
            self._num_lost += 1

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write what is left, for at most so long, and say what was lost."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            self._num_lost += self._queue.qsize()
        else:
            self._thread.join(timeout_s)
            self._num_lost += self._queue.qsize()
        if self._thread.is_alive():
            say("tracking: a tracker does not answer and is left behind")
        if self._num_lost:
            say(f"tracking: {self._num_lost} points were lost")

    def _serve(self) -> None:
        trackers = {name: _Guarded(name, make) for name, make in self._makers.items()}
        while (point := self._queue.get()) is not None:
            for tracker in trackers.values():
                self._num_lost += not tracker.log(*point)
        for tracker in trackers.values():
            tracker.close()


class _Guarded:
    """A tracker whose failures end here."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._make = make
        self._tracker: Tracker | None = None
        self._num_failures = 0

    def log(self, figures: dict[str, float], step: int) -> bool:
        """Whether the figures were recorded."""
        if self._num_failures >= _MAX_FAILURES:
            return False
        return self._try(lambda tracker: tracker.log(figures, step))

    def close(self) -> None:
        """Write what is left."""
        if self._tracker is not None and self._num_failures < _MAX_FAILURES:
            self._try(lambda tracker: tracker.close())

    def _try(self, use: Callable[[Tracker], None]) -> bool:
        try:
            if self._tracker is None:
                self._tracker = self._make()
            use(self._tracker)
        except Exception as error:  # whatever a library of others raises must not reach training
            self._num_failures += 1
            given_up = ", and is given up" if self._num_failures >= _MAX_FAILURES else ""
            say(f"tracking: {self._name} failed{given_up} ({type(error).__name__}: {str(error).splitlines()[:1]})")
            return False
        self._num_failures = 0
        return True


class TensorBoard:
    """Event files in a folder; of an object store, which cannot append, a copy is sent now and then."""

    def __init__(self, url: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._url = url
        self._local = tempfile.TemporaryDirectory() if storage.is_remote(url) else None
        self._writer = SummaryWriter(self._local.name if self._local else url)
        self._sent_at = time.monotonic()

    def log(self, figures: dict[str, float], step: int) -> None:
        """Add the figures to the file."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if self._local and time.monotonic() - self._sent_at > _UPLOAD_EVERY_S:
            self._send()

    def close(self) -> None:
        """Write the rest of the file."""
        self._writer.close()
        if self._local:
            self._send()
            self._local.cleanup()

    def _send(self) -> None:
        assert self._local is not None
        self._writer.flush()
        storage.upload_folder(Path(self._local.name), self._url)
        self._sent_at = time.monotonic()


class Mlflow:
    """A run of an MLflow experiment."""

    def __init__(self, settings: MlflowSettings, name: str, run_id: str, config: dict[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=settings.tracking_uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        found = experiment.experiment_id if experiment else self._client.create_experiment(settings.experiment)
        earlier = self._client.search_runs([found], f"tags.clickformer_run = '{run_id}'")
        if earlier:
            self._run_id = earlier[0].info.run_id
        else:
            run = self._client.create_run(found, run_name=name, tags={"clickformer_run": run_id})
            self._run_id = run.info.run_id
            self._client.log_dict(self._run_id, config, "settings.json")

    def log(self, figures: dict[str, float], step: int) -> None:
        """Add the figures to the run."""
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name.replace("/", "."), value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run_id)


class Wandb:
    """A run of a Weights & Biases project."""

    def __init__(self, settings: WandbSettings, name: str, run_id: str, config: dict[str, Any], work_url: str) -> None:
        import wandb

        folder = tempfile.gettempdir() if storage.is_remote(work_url) else work_url
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=name,
            id=run_id,
            resume="allow",
            config=config,
            dir=folder,
            settings=wandb.Settings(silent=True),
        )

    def log(self, figures: dict[str, float], step: int) -> None:
        """Add the figures to the run."""
        self._run.log(figures, step=step)

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()


class RayMetrics:
    """Gauges that Ray exports to Prometheus, as ray_clickformer_train_NAME with a tag `run`."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def log(self, figures: dict[str, float], step: int) -> None:
        """Set the gauges."""
        from ray.util.metrics import Gauge

        for name, value in (figures | {"step": float(step)}).items():
            known = f"clickformer_train_{name.replace('/', '_')}"
            if known not in self._gauges:
                self._gauges[known] = Gauge(known, description=f"{name} of a training run", tag_keys=("run",))
            self._gauges[known].set(value, tags={"run": self._run})

    def close(self) -> None:
        """Nothing is left to write."""
