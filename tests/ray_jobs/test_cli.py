"""The command line: quick help that tells every setting, overrides, and failures in one message."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from data_io.config import SettingsError
from data_io.schema import DataContractError
from model.loss_config import AutoSoftmax
from ray_jobs.cli import CONFIGS, JOBS, main, parse_settings
from ray_jobs.config import JOB_SECTIONS, Settings, read_settings
from ray_jobs.failures import find_expected

HEAVY = ("torch", "ray", "pyarrow", "polars", "numpy", "transformers", "deepspeed", "matplotlib")

ASK_FOR_HELP = f"""
import contextlib, io, json, sys, time
from ray_jobs.cli import JOBS, main
pages = {{}}
for words in [["--help"], [], *([job, "--help"] for job in JOBS)]:
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        main(words)
    pages[" ".join(words)] = page.getvalue()
heavy = [name for name in {HEAVY} if name in sys.modules]
json.dump({{"pages": pages, "heavy": heavy, "seconds": time.process_time()}}, sys.stdout)
"""


class FakeTaskError(Exception):
    """What Ray raises where a task failed: the cause is an attribute."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a long traceback")
        self.cause = cause

    def as_instanceof_cause(self) -> BaseException:
        return self


class FakeTrainingFailedError(Exception):
    """What Ray Train raises: failures by worker."""

    def __init__(self, *failures: BaseException) -> None:
        super().__init__("a worker failed")
        self.worker_failures = dict(enumerate(failures))


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, str]]:
    """Every help page of the command line, asked for in one fresh process."""
    asked = subprocess.run([sys.executable, "-c", ASK_FOR_HELP], capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(f"run_dir: {tmp_path}/run\nencoder: {{hidden_size: 32}}\n")
    return str(path)


def squeeze(text: str) -> str:
    """The text without blanks, line breaks and boxes, so that wrapping does not matter."""
    return "".join(sign for sign in text if sign.isascii() and not sign.isspace())


def leaves(section: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    """Option and meaning of every setting of a section, as its values stand."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        place = f"{prefix}.{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, place)
        elif place not in ("scoring.exclude_seen", "scoring.rules"):  # lists of rules, which stand in the file
            yield f"--{place.replace('_', '-')}", str(field.description)


def fail_in(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy(answers: dict) -> None:
    assert answers["heavy"] == []
    assert answers["seconds"] < 5, "seconds of CPU for nine pages"


def test_overview_names_every_job_and_every_shipped_file(answers: dict) -> None:
    page = answers["pages"]["--help"]
    assert answers["pages"][""] == page
    assert all(f"{job} " in page and meaning in page for job, meaning in JOBS.items())
    assert all(str(path) in page for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("job", JOBS)
def test_help_of_a_job_tells_every_setting_with_its_meaning(answers: dict, job: str) -> None:
    page = squeeze(answers["pages"][f"{job} --help"])
    settings = read_settings(str(CONFIGS / "complete_journey.yaml")) if job == "demo" else Settings()
    for section in JOB_SECTIONS[job]:
        value = getattr(settings, section)
        if isinstance(value, BaseModel):
            told = list(leaves(value, section))
            assert [
                option for option, meaning in told if squeeze(option) not in page or squeeze(meaning) not in page
            ] == []
        else:
            assert f"--{section.replace('_', '-')}" in page
            assert squeeze(str(Settings.model_fields[section].description)) in page


def test_help_of_a_job_leaves_out_what_it_does_not_read(answers: dict) -> None:
    assert "--encoder" not in answers["pages"]["convert --help"]
    assert "--scoring" not in answers["pages"]["pretrain --help"]


def test_the_command_line_overrides_the_file(settings_file: str) -> None:
    settings = parse_settings("pretrain", [settings_file, "--encoder.num-heads", "4", "--cluster.num-workers", "3"])
    assert (settings.encoder.hidden_size, settings.encoder.num_heads, settings.cluster.num_workers) == (32, 4, 3)


def test_the_command_line_overrides_a_setting_of_a_variant(settings_file: str) -> None:
    settings = parse_settings("pretrain", [settings_file, "--pretrain.softmax.num-uniform", "7"])
    assert settings.pretrain.softmax == AutoSoftmax(num_uniform=7)


def test_lists_nothing_and_maps_can_be_given(settings_file: str) -> None:
    settings = parse_settings("evaluate", [settings_file, "--evaluation.ks", "1", "3", "--evaluation.tasks", "None"])
    assert (settings.evaluation.ks, settings.evaluation.tasks) == ((1, 3), None)
    words = [settings_file, "--events.columns", "user_id", "customer", "--events.drop-duplicates", "False"]
    events = parse_settings("build_sequences", words).events
    assert (events.columns, events.drop_duplicates) == ({"user_id": "customer"}, False)


def test_what_a_job_does_not_read_keeps_the_file_s_value(settings_file: str) -> None:
    settings = parse_settings("score_users", [settings_file, "--scoring.k", "3"])
    assert (settings.scoring.k, settings.encoder.hidden_size) == (3, 32)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_no_override_leaves_a_shipped_file_as_it_is(name: str) -> None:
    path = str(CONFIGS / name)
    parsed = [parse_settings(job, [path]) for job in JOBS]
    assert all(settings == parsed[0] for settings in parsed)


def test_an_unknown_job_is_answered_with_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    message = fail_in(capsys, "pretran", "run.yaml")
    assert message == f"clickformer: unknown job pretran; jobs are {', '.join(JOBS)}\n"


def test_no_settings_file_is_answered_with_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    message = fail_in(capsys, "pretrain")
    assert message == f"clickformer: no settings file; try: clickformer pretrain {CONFIGS / 'complete_journey.yaml'}\n"
    assert parse_settings("pretrain", [message.split()[-1]]).run_dir == "runs/demo"


def test_an_unknown_option_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], settings_file: str) -> None:
    message = fail_in(capsys, "pretrain", settings_file, "--encoder.num-head", "3")
    assert "Unrecognized options: --encoder.num-head" in message
    assert "--encoder.num-heads INT" in message


def test_an_option_of_another_job_s_section_is_refused(capsys: pytest.CaptureFixture[str], settings_file: str) -> None:
    assert "Unrecognized options: --scoring.k" in fail_in(capsys, "pretrain", settings_file, "--scoring.k", "3")


def test_a_second_settings_file_is_refused(capsys: pytest.CaptureFixture[str], settings_file: str) -> None:
    assert "other.yaml" in fail_in(capsys, "pretrain", settings_file, "other.yaml")


def test_a_value_of_a_wrong_type_is_told_with_its_option(
    capsys: pytest.CaptureFixture[str], settings_file: str
) -> None:
    message = fail_in(capsys, "pretrain", settings_file, "--encoder.num-heads", "two")
    assert "Error parsing --encoder.num-heads" in message
    assert "'two'" in message


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--encoder.num-heads", "3", "num_heads 3 must divide hidden_size 32"),
        ("--encoder.dropout", "1.5", "less than 1"),
        ("--seed", "-1", "greater than or equal to 0"),
        ("--split.test-share", "0.9", "must leave something to train on"),
    ],
)
def test_a_rule_broken_on_the_command_line_reads_as_in_a_file(
    capsys: pytest.CaptureFixture[str], settings_file: str, option: str, value: str, rule: str
) -> None:
    message = fail_in(capsys, "pretrain", settings_file, option, value)
    assert squeeze(rule) in squeeze(message)
    assert "errors.pydantic.dev" not in message, "a link into a library is no remedy"
    assert "input_value" not in message, "pydantic's own words are not the person's"


@pytest.mark.parametrize("words", [["--data", "movielens_1m"], ["--data", "../x"], ["--data"]], ids=str)
def test_demo_offers_its_two_data_sets(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "choose complete_journey or synthetic" in fail_in(capsys, "demo", *words)


def test_demo_takes_its_data_by_name_and_overrides() -> None:
    assert parse_settings("demo", []).source.name == "complete_journey"
    settings = parse_settings("demo", ["--data", "synthetic", "--run-dir", "elsewhere"])
    assert (settings.source.name, settings.run_dir) == ("synthetic", "elsewhere")


def test_interrupting_a_job_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings_file: str
) -> None:
    def interrupt(_: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ray_jobs.convert.run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", settings_file])
    assert stopped.value.code == 130
    assert "run the same command again to go on" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, settings_file: str) -> None:
    def fail(_: Settings) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("ray_jobs.convert.run", fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["convert", settings_file])


def test_an_expected_failure_is_found_as_it_is() -> None:
    failure = DataContractError("no such file")
    assert find_expected(failure) is failure


def test_an_expected_failure_is_found_behind_what_ray_wraps_around_it() -> None:
    failure = SettingsError("the batch does not divide")
    chained = RuntimeError("outer")
    chained.__cause__ = FakeTaskError(failure)
    for wrapped in (FakeTaskError(failure), chained, FakeTrainingFailedError(FakeTaskError(failure))):
        assert find_expected(wrapped) is failure


def test_ray_s_disguise_of_a_failure_is_taken_off() -> None:
    """Ray raises a class that carries our error's name and its own long text."""
    failure = DataContractError("no such file")
    disguise = type("DataContractError", (FakeTaskError,), {})(failure)
    assert find_expected(disguise) is failure


def test_any_other_failure_is_a_bug() -> None:
    assert find_expected(FakeTaskError(KeyError("x"))) is None
    assert find_expected(FakeTrainingFailedError()) is None
    assert find_expected(None) is None


def test_causes_that_go_round_come_to_an_end() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert find_expected(first) is None
