"""Trackers: figures arrive, and whatever goes wrong ends there."""

import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_io import storage
from data_io.config import SettingsError
from ray_jobs.trackers import Tracker, Trackers, check_trackers, make_trackers
from ray_jobs.tracking_config import MlflowSettings, TrackingSettings, WandbSettings


class Recorded:
    """Keeps what it is told; fails, or hangs, at set points."""

    def __init__(self, fails: int = 0, hangs: threading.Event | None = None) -> None:
        self.points: list[tuple[dict[str, float], int]] = []
        self.fails, self.hangs, self.closed = fails, hangs, threading.Event()

    def log(self, figures: dict[str, float], step: int) -> None:
        if self.hangs is not None:
            self.hangs.wait()
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route to the tracker\nand more")
        self.points.append((figures, step))

    def close(self) -> None:
        self.closed.set()


def make(**trackers: Tracker) -> Trackers:
    return Trackers({name: (lambda tracker=tracker: tracker) for name, tracker in trackers.items()})


def test_every_tracker_gets_every_point_in_order() -> None:
    first, second = Recorded(), Recorded()
    trackers = make(first=first, second=second)
    for step in range(50):
        trackers.log({"loss": 1.0 / (step + 1)}, step)
    trackers.close()
    assert first.points == second.points
    assert [step for _, step in first.points] == list(range(50))
    assert first.closed.is_set()


def test_a_tracker_that_fails_loses_its_own_points_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = Recorded(fails=100), Recorded()
    trackers = make(bad=bad, good=good)
    for step in range(10):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    assert len(good.points) == 10
    assert bad.fails == 97, "tried three times and given up"
    said = capsys.readouterr().out
    assert "bad failed, and is given up (ConnectionError: ['no route to the tracker'])" in said
    assert "10 points were lost" in said


def test_a_tracker_that_recovers_is_kept() -> None:
    flaky = Recorded(fails=2)
    trackers = make(flaky=flaky)
    for step in range(5):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    assert [step for _, step in flaky.points] == [2, 3, 4]


def test_a_tracker_that_cannot_be_made_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Tracker:
        raise RuntimeError("bad key")

    trackers = Trackers({"refused": refuse})
    trackers.log({"loss": 1.0}, 0)
    trackers.close()
    assert "refused failed (RuntimeError: ['bad key'])" in capsys.readouterr().out


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_tracker_that_hangs_is_left_behind_with_all_that_does_not_fit(
    never: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = make(hung=Recorded(hangs=never))
    for step in range(1_500):
        trackers.log({"loss": 1.0}, step)
    trackers.close(timeout_s=0.1)
    said = capsys.readouterr().out
    assert "does not answer and is left behind" in said
    assert "1500 points were lost" in said or "1499 points were lost" in said


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_files_go_on_where_a_run_is_resumed(tmp_path: Path) -> None:
    for step in (1, 2):
        trackers = make_trackers(TrackingSettings(), str(tmp_path / "encoder.work"), "id", {})
        trackers.log({"train/loss": float(step)}, step)
        trackers.close()
    assert scalars(tmp_path / "encoder.work/tensorboard") == {"train/loss": [(1, 1.0), (2, 2.0)]}


def test_tensorboard_files_reach_an_object_store(s3_endpoint: str, tmp_path: Path) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("tracked")
    trackers = make_trackers(TrackingSettings(), "s3://tracked/encoder.work", "id", {})
    trackers.log({"train/loss": 0.5}, 7)
    trackers.close()
    storage.download_folder("s3://tracked/encoder.work/tensorboard", tmp_path)
    assert scalars(tmp_path) == {"train/loss": [(7, 0.5)]}


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra clickformer[mlflow] is not installed")
def test_mlflow_goes_on_with_the_same_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"file://{tmp_path}/mlruns"
    settings = TrackingSettings(tensorboard=False, mlflow=MlflowSettings(tracking_uri=uri, experiment="shop"))
    with patch.dict("os.environ", {"MLFLOW_ALLOW_FILE_STORE": "true"}):
        for step in (1, 2):
            trackers = make_trackers(settings, str(tmp_path / "encoder.work"), "id", {"seed": 1})
            trackers.log({"train/loss": float(step)}, step)
            trackers.close()
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("shop")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, "train.loss")
        assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra clickformer[wandb] is not installed")
def test_wandb_offline_writes_below_the_run(tmp_path: Path) -> None:
    settings = TrackingSettings(tensorboard=False, wandb=WandbSettings(project="shop", mode="offline"))
    trackers = make_trackers(settings, str(tmp_path), "id", {"seed": 1})
    trackers.log({"train/loss": 1.0}, 1)
    trackers.close()
    assert list((tmp_path / "wandb").glob("offline-run-*-id"))


def test_a_missing_package_is_told_before_work_starts() -> None:
    with (
        patch("ray_jobs.trackers.find_spec", return_value=None),
        pytest.raises(SettingsError, match=r"pip install 'clickformer\[wandb\]'"),
    ):
        check_trackers(TrackingSettings(wandb=WandbSettings(project="shop")))
