"""The package as a whole: light settings, files of a readable size, exceptions that travel, jobs that can be run."""

import ast
import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ray_jobs.cli import CONFIGS, JOBS
from ray_jobs.config import Settings, read_settings
from ray_jobs.failures import EXPECTED_ERRORS
from ray_jobs.feedback_config import FeedbackSettings

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("data_io", "model", "cluster", "ray_jobs")
SETTINGS_MODULES = (
    "data_io.config",
    "model.config",
    "model.loss_config",
    "cluster.config",
    "ray_jobs.config",
    "ray_jobs.cli",
)
HEAVY = ("torch", "ray", "pyarrow", "polars", "numpy", "transformers", "deepspeed", "matplotlib")

MAX_LINES = 350
LONGER_WITH_REASON = {
    "tests/data_io/test_sources.py": "seven data sets, each with its literal files",
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPOSITORY / folder).rglob("*.py"))


def exception_classes() -> list[tuple[str, str]]:
    """(module, class) of every exception the packages define, found without importing them."""
    found = []
    for path in sources(*PACKAGES):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        classes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
        found += [(module, node.name) for node in classes if node.name.endswith(("Error", "Exception"))]
    return found


def settings_classes(section: type[BaseModel] = Settings) -> set[type[BaseModel]]:
    """A settings class and all it is made of, every variant of a choice included."""
    found = {section}
    waiting: list[object] = [field.annotation for field in section.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= settings_classes(annotation)
        else:
            waiting += getattr(annotation, "__args__", ())
    return found


def test_settings_are_light_to_import() -> None:
    code = f"import sys, {', '.join(SETTINGS_MODULES)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_parses_and_says_what_it_is(path: Path) -> None:
    settings = read_settings(str(path))
    assert settings.source.name or settings.feedback != FeedbackSettings()
    assert settings.run_dir.startswith("runs/")
    assert path.read_text().startswith("# ")


def test_no_two_shipped_files_share_a_run_folder() -> None:
    folders = [read_settings(str(path)).run_dir for path in CONFIGS.glob("*.yaml")]
    assert len(folders) == len(set(folders)) > 0


def test_files_keep_a_size_that_is_read_in_one_go() -> None:
    lengths = {
        path.relative_to(REPOSITORY).as_posix(): len(path.read_text().splitlines())
        for path in sources(*PACKAGES, "tests")
    }
    longer = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert set(longer) <= set(LONGER_WITH_REASON), "split it, or give the reason here"
    assert set(LONGER_WITH_REASON) <= set(longer), "a reason is no longer needed"


def test_every_own_exception_becomes_one_message() -> None:
    assert {name for _, name in exception_classes()} == set(EXPECTED_ERRORS)


@pytest.mark.parametrize(("module", "name"), exception_classes(), ids=lambda word: word)
def test_every_own_exception_survives_a_pickle_round_trip(module: str, name: str) -> None:
    kind = getattr(importlib.import_module(module), name)
    copy = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(copy) is kind
    assert str(copy) == "what is wrong"


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_a_module_with_run_and_an_entry(job: str) -> None:
    tree = ast.parse((REPOSITORY / "ray_jobs" / f"{job}.py").read_text())
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert [argument.arg for argument in run.args.args] == ["settings"]
    entry = tree.body[2]
    assert ast.unparse(entry) == f"if __name__ == '__main__':\n    run_job('{job}')", "before the heavy imports"


def test_a_job_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "ray_jobs.convert", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.startswith("usage: clickformer convert SETTINGS.yaml")
    assert done.stderr == ""


@pytest.mark.parametrize("section", sorted(settings_classes(), key=lambda kind: kind.__name__))
def test_every_setting_has_a_sentence(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no docstring"
        assert field.description.endswith("."), f"{section.__name__}.{name}: a sentence ends with a full stop"


@pytest.mark.parametrize("section", sorted(settings_classes(), key=lambda kind: kind.__name__))
def test_every_settings_class_is_frozen_and_typo_proof(section: type[BaseModel]) -> None:
    assert section.model_config.get("frozen") is True
    assert section.model_config.get("extra") == "forbid"


def test_every_setting_is_read_somewhere() -> None:
    """Never ignore a setting silently."""
    readers = [path.read_text() for path in sources(*PACKAGES) if not path.name.endswith("config.py")]
    readers.append((REPOSITORY / "ray_jobs/config.py").read_text())
    names = {name for section in settings_classes() for name in section.model_fields} - {"kind"}
    assert sorted(name for name in names if not any(name in text for text in readers)) == []
