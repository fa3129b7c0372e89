"""Learning from what was shown: a generated bandit end to end, and the Open Bandit Data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_io import storage
from data_io.config import SettingsError
from data_io.impressions import ImpressionColumns, read_impressions
from model.click_head import ClickShape, click_probabilities, fit_click_head, item_probabilities
from ray_jobs import off_policy
from ray_jobs.config import Settings, read_settings

NUM_ITEMS, SIZE = 5, 12_000
GOOD_POLICY = np.array([0.05, 0.05, 0.1, 0.2, 0.6])


def write_bandit(url: Path) -> dict[str, float]:
    """Two policies; phones click on item 4 only, others on item 0, items at the first place twice as often."""
    rng = np.random.default_rng(0)
    policy = rng.integers(0, 2, SIZE)
    phone, position = rng.random(SIZE) < 0.7, rng.integers(1, 3, SIZE)
    chances = np.stack([np.full(NUM_ITEMS, 1 / NUM_ITEMS), GOOD_POLICY])[policy]
    item = (chances.cumsum(axis=1) > rng.random(SIZE)[:, None]).argmax(axis=1)
    liked = np.where(phone, item == 4, item == 0)
    reward = rng.random(SIZE) < np.where(liked, 0.3, 0.05) / position
    table = {
        "item_id": item,
        "click": reward.astype(np.int64),
        "propensity": chances[np.arange(SIZE), item],
        "policy": np.array(["uniform", "good"])[policy],
        "position": position,
        "device": np.where(phone, "phone", "desk"),
    }
    pq.write_table(pa.table(table), url)
    return {name: float(reward[policy == place].mean()) for place, name in enumerate(("uniform", "good"))}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    columns = {"policy": "policy", "position": "position", "context": ["device"]}
    feedback = {"path": str(tmp_path / "log.parquet"), "columns": columns, "penalties": [1.0, 10.0], "num_folds": 3}
    return Settings.model_validate({"run_dir": str(tmp_path / "run"), "feedback": feedback})


def test_a_bandit_is_seen_through(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    means = write_bandit(tmp_path / "log.parquet")
    url = off_policy.run(settings)
    report = storage.read_json(f"{url}/report.json")
    assert report["clicks"]["gain_over"]["the mean rate"]["low"] > 0
    assert report["clicks"]["gain_over"]["the rate of each item"]["low"] > 0
    assert report["clicks"]["calibration_error"] < 0.02
    found = {(of["log"], of["policy"]): of for of in report["policies"]}
    for log, policy in (("uniform", "good"), ("good", "uniform")):
        for name in ("SNIPS", "DR"):
            estimate = found[log, policy]["estimates"][name]
            assert estimate["low"] <= means[policy] <= estimate["high"]
        assert found[log, policy]["on_policy"]["value"] == pytest.approx(means[policy])
    own = found["uniform", "click head"]["estimates"]["DR"]
    assert own["low"] > means["good"], "which knows what phones like, and nothing of other devices"
    page = storage.read_bytes(f"{url}/index.html").decode()
    assert "Learning from what was shown" in page
    said = capsys.readouterr().out
    assert "12,000 rows = 12,000 kept + 0 left out" in said
    assert "click head beats the mean rate in log loss" in said


@pytest.mark.parametrize("interaction", ["inner_product", "bilinear"])
def test_a_head_tells_contexts_apart_and_starts_at_the_mean_rate(tmp_path: Path, interaction: str) -> None:
    write_bandit(tmp_path / "log.parquet")
    columns = ImpressionColumns(
        item_id="item_id",
        reward="click",
        propensity="propensity",
        policy=None,
        position="position",
        time=None,
        history=None,
        context=("device",),
    )
    impressions = read_impressions(str(tmp_path / "log.parquet"), columns)
    shape = ClickShape(num_items=NUM_ITEMS, num_positions=2, num_context=1, width=4, interaction=interaction)  # pyright: ignore
    head = fit_click_head(shape, impressions, 3.0, seed=0)
    clicks = item_probabilities(head, impressions)
    phone = impressions.context[:, 0] == impressions.context[impressions.item == 4][0, 0]
    best = {device: np.bincount(clicks[rows].argmax(axis=1)).argmax() for device, rows in ((1, phone), (0, ~phone))}
    assert set(best.values()) == {0, 4}
    shown = clicks[np.arange(len(impressions)), impressions.item]
    np.testing.assert_allclose(click_probabilities(head, impressions), shown, atol=1e-6)
    assert abs(shown.mean() - impressions.reward.mean()) < 0.005
    shrunk = fit_click_head(shape, impressions, 1e9, seed=0)
    assert torch.sigmoid(shrunk.mean).item() == pytest.approx(impressions.reward.mean(), rel=0.01)


def test_a_table_is_needed(settings: Settings) -> None:
    without = settings.model_copy(update={"feedback": settings.feedback.model_copy(update={"path": None})})
    with pytest.raises(SettingsError, match=r"feedback\.path is not set"):
        off_policy.run(without)


def test_open_bandit_data(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    settings = read_settings("ray_jobs/configs/obd.yaml")
    path = str(shared_data("obd") / "impressions.parquet")
    feedback = settings.feedback.model_copy(update={"path": path, "penalties": (300.0,)})
    url = off_policy.run(settings.model_copy(update={"run_dir": str(tmp_path), "feedback": feedback}))
    report = storage.read_json(f"{url}/report.json")
    found = {(of["log"], of["policy"]): of for of in report["policies"]}
    bts = found["random", "bts"]
    assert bts["on_policy"]["value"] == pytest.approx(157 / 30_000)
    for name in ("SNIPS", "DR"):
        assert bts["estimates"][name]["low"] <= bts["on_policy"]["value"] <= bts["estimates"][name]["high"]
