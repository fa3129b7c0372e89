"""The protocol says what was done, as it was done under other settings."""

from typing import Any

from data_io.splits import Cutoffs
from ray_jobs.config import Settings
from ray_jobs.protocol import describe_protocol

DAY_US = 86_400_000_000
CUTOFFS = Cutoffs(validation=10 * DAY_US, test=20 * DAY_US, end=30 * DAY_US)


def describe(split: Cutoffs | None = CUTOFFS, without: str | None = None, **sections: Any) -> dict[str, Any]:
    return describe_protocol(Settings.model_validate(sections), split, without)


def test_a_split_by_time_tells_its_moments() -> None:
    found = describe()
    assert "trained on events before 1970-01-11T00:00:00+00:00" in found["split_in_words"]
    assert "histories end before the test cutoff 1970-01-21" in found["split_in_words"]
    assert "first event after the cutoff that has an item, seen items kept" in found["ranking"]
    assert "7 days before the test cutoff" in found["baselines"]["recent_popularity"]


def test_leave_one_out_tells_that_there_is_no_moment() -> None:
    found = describe(None)
    assert "no moment in time" in found["split_in_words"]
    assert "the last event of a user, if it has an item" in found["ranking"]
    assert "7 days before the end of the log" in found["baselines"]["recent_popularity"]
    assert "all but the last two" in found["slices"]


def test_settings_that_change_figures_are_told() -> None:
    knn = {"num_neighbours": 3, "num_events": 4, "decay": 0.5}
    evaluation = {"exclude_seen": True, "recent_days": 2, "rare_events": 9, "num_resamples": 77, "item_knn": knn}
    found = describe(evaluation=evaluation | {"ks": (3, 5)}, target_actions=["buy", "cart"], seed=6)
    assert "an action among buy, cart, seen items left out" in found["ranking"]
    assert "a user without such a target is not asked" in found["seen"]
    assert "last 2 days" in found["baselines"]["recent_popularity"]
    assert "3 nearest items of each of the user's newest 4 events" in found["baselines"]["item_knn"]
    assert "0.5 times as much" in found["baselines"]["item_knn"]
    assert "up to 9 rare" in found["slices"]
    assert found["lists"].startswith("First 3 items")
    assert "77 bootstrap resamples" in found["interval"]
    assert found["seed"] == 6


def test_a_baseline_that_is_left_out_says_why() -> None:
    assert describe(without="left out: too many")["baselines"]["item_knn"] == "left out: too many"
