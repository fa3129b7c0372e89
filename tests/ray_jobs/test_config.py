"""Settings of a run: what a file may say, how a wrong one is told, and which job reads what."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_io.config import LeaveOneOut, SettingsError, TimeSplit
from model.config import HuggingFaceBackbone
from model.task_config import NextItemTask
from ray_jobs.cli import JOBS
from ray_jobs.config import JOB_SECTIONS, RESERVED_NAMES, Settings, explain, job_settings_type, read_settings


def read_text(folder: Path, text: str) -> Settings:
    path = folder / "run.yaml"
    path.write_text(text)
    return read_settings(str(path))


def explain_content(**content: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(content)
    return explain(caught.value)


def test_no_file_gives_the_defaults() -> None:
    assert read_settings(None) == Settings()


def test_sections_a_file_does_not_name_keep_their_defaults(tmp_path: Path) -> None:
    settings = read_text(tmp_path, "encoder: {hidden_size: 32}\nscoring: {k: 5}")
    assert (settings.encoder.hidden_size, settings.encoder.num_layers, settings.scoring.k) == (32, 2, 5)
    assert settings.pretrain == Settings().pretrain


def test_a_variant_is_chosen_by_its_kind(tmp_path: Path) -> None:
    text = "split: {kind: leave_one_out}\nfinetune: {task: {kind: next_item, softmax: {kind: full}}}"
    settings = read_text(tmp_path, text)
    assert settings.split == LeaveOneOut()
    assert isinstance(settings.finetune.task, NextItemTask)


def test_a_backbone_is_chosen_by_its_kind(tmp_path: Path) -> None:
    text = "encoder: {backbone: {kind: hugging_face, model_type: llama, settings: {rope_parameters: {rope_theta: 9}}}}"
    settings = read_text(tmp_path, text)
    assert isinstance(settings.encoder.backbone, HuggingFaceBackbone)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.encoder.backbone.settings == {"rope_parameters": {"rope_theta": 9}}


@pytest.mark.parametrize("field", [{"block": "hstu"}, {"positions": "learned"}])
def test_another_backbone_takes_no_settings_of_our_blocks(field: dict[str, str]) -> None:
    message = explain_content(encoder=field | {"backbone": {"kind": "hugging_face", "model_type": "llama"}})
    assert message.startswith("encoder: block ")
    assert message.endswith("leave block and positions out")


def test_settings_survive_their_own_json() -> None:
    settings = Settings.model_validate({"run_dir": "s3://bucket/run", "split": {"kind": "time", "test_share": 0.3}})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("run_dir", ["s3://bucket/run", "s3://bucket/run/"])
def test_places_lie_below_the_run_folder(run_dir: str) -> None:
    settings = Settings(run_dir=run_dir)
    assert settings.place("a", "b") == "s3://bucket/run/a/b"
    assert settings.store_url == "s3://bucket/run/store"
    assert settings.model_url("encoder") == "s3://bucket/run/encoder"
    assert settings.model_url("purchase") == "s3://bucket/run/tasks/purchase"


def test_events_are_at_their_path_or_in_the_run_folder() -> None:
    assert Settings(run_dir="run").events_url == "run/events"
    assert Settings.model_validate({"events": {"path": "log/*.parquet"}}).events_url == "log/*.parquet"


def test_an_unknown_setting_gets_a_suggestion() -> None:
    assert explain_content(scorin={}) == "unknown setting scorin; did you mean scoring?"
    assert explain_content(encoder={"num_head": 2}) == "unknown setting encoder.num_head; did you mean num_heads?"
    deep = explain_content(pretrain={"training": {"zero_stag": 1}})
    assert deep == "unknown setting pretrain.training.zero_stag; did you mean zero_stage?"


def test_an_unknown_setting_unlike_any_other_is_answered_with_the_known_ones() -> None:
    assert (
        explain_content(store={"zzz": 1})
        == "unknown setting store.zzz; known here: num_buckets, max_events_per_user, rows_per_run, min_item_count, "
        "retain_hours"
    )


def test_an_unknown_setting_of_a_variant_gets_a_suggestion_too() -> None:
    message = explain_content(finetune={"task": {"kind": "outcome", "horizon_day": 3}})
    assert "did you mean horizon_days?" in message


def test_a_variant_without_its_kind_is_asked_for_it() -> None:
    message = explain_content(split={"validation_share": 0.2})
    assert "discriminator" not in message
    assert all(word in message for word in ("split", "kind", "time", "leave_one_out"))


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    message = explain_content(split={"kind": "tim"})
    assert message.startswith("split: ")
    assert all(word in message for word in ("'tim'", "'time'", "'leave_one_out'"))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"auxiliary": {"next_action": 0.1}}, "masked_item sees the next event"),
        ({"auxiliary": {"time_to_next": 0.1}}, "set them to 0, or use objective next_item"),
        ({"augmentation": {"crop": 0.1}}, "masked_item has a mask_share of its own"),
    ],
)
def test_masked_items_refuse_what_would_give_the_answer_away(section: dict[str, Any], words: str) -> None:
    assert words in explain_content(pretrain={"objective": {"kind": "masked_item"}} | section)


def test_masked_items_take_what_gives_nothing_away() -> None:
    section = {"objective": {"kind": "masked_item"}, "auxiliary": {"contrastive": 0.1}, "adversarial": 1.0}
    assert Settings.model_validate({"pretrain": section}).pretrain.adversarial == 1.0


def test_items_are_told_by_features_only_where_there_are_some() -> None:
    section = {"auxiliary": {"item_alignment": 0.1}}
    assert "name some in encoder.item_features" in explain_content(pretrain=section)
    named = Settings.model_validate({"pretrain": section, "encoder": {"item_features": ["brand"]}})
    assert not named.pretrain.auxiliary.is_off


def test_two_views_must_be_able_to_differ() -> None:
    message = explain_content(pretrain={"auxiliary": {"contrastive": 0.1, "contrastive_views": {}}})
    assert message.startswith("pretrain.auxiliary: contrastive compares two views: give contrastive_views a share")


def test_a_wrong_value_is_told_with_its_setting_and_rule() -> None:
    message = explain_content(encoder={"num_heads": 0})
    assert message == "encoder.num_heads: Input should be greater than or equal to 1 (found 0)"


def test_every_broken_rule_is_told() -> None:
    message = explain_content(seed=-1, encoder={"hidden_size": 10, "num_heads": 3}, nonsense=1)
    assert message.count("; ") >= 2
    assert "seed: " in message
    assert "encoder: num_heads 3 must divide hidden_size 10 into an even width per head" in message
    assert "unknown setting nonsense" in message


def test_outcomes_need_a_split_in_time() -> None:
    message = explain_content(split={"kind": "leave_one_out"})
    assert message.startswith("finetune.task outcome needs a moment in time, which split leave_one_out has not; use ")


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValidationError, match=r"validation_share \+ test_share must leave something to train on"):
        TimeSplit(validation_share=0.5, test_share=0.5)


def test_one_cutoff_wants_the_other() -> None:
    message = explain_content(split={"kind": "time", "test_cutoff_time": "2024-01-01"})
    assert "give both validation_cutoff_time and test_cutoff_time, or neither" in message


def test_validation_lies_before_test() -> None:
    cutoffs = {"validation_cutoff_time": "2024-02-01", "test_cutoff_time": "2024-01-01"}
    message = explain_content(split={"kind": "time", **cutoffs})
    assert "validation_cutoff_time 2024-02-01 00:00:00 must lie before test_cutoff_time 2024-01-01 00:00:00" in message


def test_a_cutoff_without_a_zone_is_compared_as_utc() -> None:
    cutoffs = {"validation_cutoff_time": "2024-02-01T00:00:00Z", "test_cutoff_time": "2024-01-01T00:00:00"}
    assert "must lie before" in explain_content(split={"kind": "time", **cutoffs})


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_a_task_may_not_take_a_name_that_means_something_else(name: str) -> None:
    """encoder is the pretrained model, next_item and lists are tables of the evaluation, the others are baselines."""
    assert "finetune.name" in explain_content(finetune={"name": name})


@pytest.mark.parametrize("name", ["Purchase", "a/b", "..", ""])
def test_a_task_name_is_a_plain_folder_name(name: str) -> None:
    assert explain_content(finetune={"name": name}).startswith("finetune.name: ")
    assert explain_content(pretrain={"name": name}).startswith("pretrain.name: ")
    assert explain_content(evaluation={"rivals": {name: "s3://b/encoder"}}).startswith(f"evaluation.rivals.{name}")


@pytest.mark.parametrize("name", [name for name in RESERVED_NAMES if name != "encoder"])
def test_no_other_model_may_take_such_a_name_either(name: str) -> None:
    assert explain_content(pretrain={"name": name}).startswith(f"pretrain.name {name} has a meaning of its own")
    assert "evaluation.rivals" in explain_content(evaluation={"rivals": {name: "runs/x/encoder"}})


def test_a_name_stands_for_one_model() -> None:
    message = explain_content(pretrain={"name": "gru"}, finetune={"name": "gru"})
    assert message == "pretrain.name and finetune.name are both gru; choose another name"
    message = explain_content(evaluation={"models": ["encoder", "gru"], "rivals": {"gru": "runs/x/encoder"}})
    assert message == "evaluation.rivals gru is one of evaluation.models too; choose another name"
    assert "evaluation.rivals encoder" in explain_content(evaluation={"rivals": {"encoder": "runs/x/encoder"}})


@pytest.mark.parametrize(
    "content",
    [
        {"target_actions": []},
        {"finetune": {"task": {"kind": "outcome", "actions": []}}},
        {"evaluation": {"ks": []}},
        {"evaluation": {"models": []}},
    ],
    ids=lambda content: next(iter(content)),
)
def test_a_list_that_would_ask_for_nothing_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(content)


@pytest.mark.parametrize("k", [0, -1])
def test_a_cutoff_of_a_ranking_is_at_least_one(k: int) -> None:
    assert explain_content(evaluation={"ks": [10, k]}).startswith("evaluation.ks")


def test_a_file_that_is_not_text_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"run\.yaml: not valid YAML"):
        read_settings(str(path))


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("- 1", "list"), ("hello", "str")])
def test_a_file_without_sections_is_told_what_it_holds(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(SettingsError, match=f"expected sections such as events: and encoder:, found {found}"):
        read_text(tmp_path, text)


def test_every_job_lists_sections_that_exist() -> None:
    assert set(JOB_SECTIONS) == set(JOBS)
    assert {name for names in JOB_SECTIONS.values() for name in names} == set(Settings.model_fields)


@pytest.mark.parametrize("job", JOB_SECTIONS)
def test_a_job_has_just_its_own_sections_with_the_run_s_defaults(job: str) -> None:
    sections = job_settings_type(job)
    assert tuple(sections.model_fields) == JOB_SECTIONS[job]
    assert sections().model_dump() == Settings().model_dump(include=set(JOB_SECTIONS[job]))


def test_a_frozen_encoder_has_nothing_to_learn_from_next_items() -> None:
    task = {"task": {"kind": "next_item"}, "trainable": {"kind": "frozen"}}
    with pytest.raises(ValidationError, match="leaves task next_item nothing to learn"):
        Settings.model_validate({"finetune": task})
