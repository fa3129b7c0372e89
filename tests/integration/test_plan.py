"""The plan of a training, with its dry run on real workers."""

from pathlib import Path

import pytest

from ray_jobs import build_sequences, plan
from ray_jobs.config import Settings
from tests.trainings import make_settings, write_log


@pytest.fixture
def settings(ray_cluster: None, tmp_path: Path) -> Settings:
    write_log(tmp_path / "log")
    settings = make_settings(tmp_path)
    build_sequences.run(settings)
    return settings


def test_a_plan_says_what_training_will_take_and_leaves_nothing_behind(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = settings.model_copy(update={"plan": settings.plan.model_copy(update={"num_items": 2_000_000})})
    wanted = wanted.model_copy(update={"cluster": wanted.cluster.model_copy(update={"num_workers": 4})})
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    found = plan.run(wanted)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    assert found.predicted_bytes == pytest.approx(found.dry_run.peak_bytes, rel=0.15)
    assert found.dry_run.num_workers in (2, 4), "as many as the cluster has room for"
    assert found.memory["rows of items"] == 4 * 4 * 2_000_000 * 16 / 4, "weights, moments and mean, over 4 workers"
    assert found.memory["weights"] > 4 * 2_000_000, "how often each item is drawn"
    assert found.checkpoint_bytes > 4 * 4 * 2_000_000 * 16
    assert found.steps_per_epoch == -(-found.num_examples // 16)
    assert found.run_s > 0
    said = capsys.readouterr().out
    assert "plan of pretrain: " in said
    assert "rows of items" in said
    assert "time: an epoch" in said
