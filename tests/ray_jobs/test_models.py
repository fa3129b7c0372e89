"""Which models are taken, of the run and of others: what does not suit is refused before any work."""

from pathlib import Path
from typing import Any

import pytest

from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.snapshots import publish_manifest
from data_io.splits import Cutoffs
from data_io.store import SequenceStore
from ray_jobs.config import Settings
from ray_jobs.learning import check_split
from ray_jobs.models import find_recommender, find_rivals
from ray_jobs.tasks import pretraining
from ray_jobs.training import train
from tests.ray_jobs.conftest import SPLIT, MakeSettings, MakeStore

DAY_US = 86_400_000_000


@pytest.fixture
def rival_of(tmp_path: Path, store: SequenceStore, make_settings: MakeSettings) -> Any:
    """Publishes the manifest of a model of another run; returns settings that name it as a rival."""

    def publish(known: SequenceStore = store, **facts: Any) -> Settings:
        url = str(tmp_path / "other/encoder")
        identity = {"vocabulary_sha256": known.vocabulary.digest(), "vocabulary_size": known.vocabulary.size}
        publish_manifest(url, identity | {"kind": "next_item", "actions": known.actions} | facts, after=None)
        return make_settings(evaluation={"rivals": {"last_month": url}})

    return publish


def test_a_rival_on_the_same_log_is_found_under_its_name(store: SequenceStore, rival_of: Any) -> None:
    found = find_rivals(rival_of(), store)
    assert [(name, folder.is_outcome) for name, folder in found.items()] == [("last_month", False)]
    assert found["last_month"].url.endswith("/other/encoder")


def test_a_rival_may_know_fewer_of_the_newest_items_and_actions(
    store: SequenceStore, make_store: MakeStore, rival_of: Any
) -> None:
    assert find_rivals(rival_of(make_store(num_items=3), actions=["view"]), store)


def test_a_run_without_rivals_has_none(store: SequenceStore, make_settings: MakeSettings) -> None:
    assert find_rivals(make_settings(), store) == {}


def test_a_folder_without_a_model_is_refused(store: SequenceStore, make_settings: MakeSettings) -> None:
    settings = make_settings(evaluation={"rivals": {"last_month": "nowhere/encoder"}})
    with pytest.raises(DataContractError, match=r"nowhere/encoder: nothing is published here yet .* in that run"):
        find_rivals(settings, store)
    settings = make_settings(evaluation={"rivals": {"last_month": store.url}})
    with pytest.raises(SettingsError, match=r"evaluation\.rivals last_month: \S+/store is no model that ranks items"):
        find_rivals(settings, store)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kind": "outcome"}, "is no model that ranks items; give such a model's folder"),
        ({"vocabulary_sha256": "0" * 64}, "was trained on vocabulary 000000000000, the store .* of the same log"),
        ({"vocabulary_size": 99}, "was trained on vocabulary .*: train it again, on a store of the same log"),
        ({"actions": ["buy", "view"]}, "was trained on actions buy, view, the store .* has view, buy: train it again"),
        ({"actions": ["view", "buy", "rate"]}, "was trained on actions view, buy, rate, the store .* has view, buy"),
    ],
    ids=["an outcome", "other items", "more items", "another order of actions", "more actions"],
)
def test_a_rival_that_means_something_else_is_refused(
    store: SequenceStore, rival_of: Any, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=rf"^evaluation\.rivals last_month: .*{message}"):
        find_rivals(rival_of(**facts), store)


def test_a_model_of_the_run_that_is_not_trained_says_how_it_is(
    store: SequenceStore, make_settings: MakeSettings
) -> None:
    with pytest.raises(DataContractError, match=r"tasks/gru: .* finetune \(or pretrain --pretrain\.name gru\) first"):
        find_recommender(make_settings(), store, "gru")


def test_an_encoder_does_not_take_the_folder_of_a_task(store: SequenceStore, make_settings: MakeSettings) -> None:
    settings = make_settings(pretrain={"name": "churn"}, cluster={"num_workers": 1})
    url = settings.model_url("churn")
    publish_manifest(url, {"kind": "outcome", "fingerprint": "of a task"}, after=None)
    with pytest.raises(DataContractError, match="tasks/churn holds output of other settings or input"):
        train("pretrain", settings, settings.pretrain, pretraining(settings, store, SPLIT), url, {})


@pytest.mark.parametrize("days", [0, 1])
def test_a_model_chosen_by_events_up_to_the_test_cutoff_is_taken(days: int) -> None:
    check_split({"split": moved(-days).describe()}, SPLIT, "run/encoder")
    check_split({"split": None}, None, "run/encoder")
    check_split({}, SPLIT, "of an earlier version, which did not say it")


def test_a_model_that_may_have_seen_test_events_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"up to 1970-01-10\S+, past the test cutoff 1970-01-09\S+: train it again"):
        check_split({"split": moved(1).describe()}, SPLIT, "run/encoder")
    for trained, split in ((None, SPLIT), (SPLIT.describe(), None)):
        with pytest.raises(SettingsError, match="run/encoder was trained by another kind of split"):
            check_split({"split": trained}, split, "run/encoder")


def moved(days: int) -> Cutoffs:
    shift = days * DAY_US
    return Cutoffs(validation=SPLIT.validation + shift, test=SPLIT.test + shift, end=SPLIT.end + shift)
