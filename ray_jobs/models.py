"""Which models there are: encoders and tasks of a run, and rivals of other runs, found by their manifests.

Invariant: what is returned means by its indices the items and actions that the store means.
"""

from dataclasses import dataclass
from typing import Any

from data_io import storage
from data_io.config import SettingsError
from data_io.scores import response_column
from data_io.snapshots import MANIFEST_NAME, read_manifest
from data_io.store import SequenceStore
from ray_jobs.config import Settings
from ray_jobs.learning import check_actions, check_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A published model, not yet loaded."""

    url: str
    manifest: dict[str, Any]

    @property
    def is_outcome(self) -> bool:
        """Whether it predicts an outcome rather than items."""
        return self.manifest["kind"] == "outcome"

    @property
    def is_response(self) -> bool:
        """Whether it predicts if shown items are responded to."""
        return self.manifest["kind"] == "response"


def find_model(settings: Settings, store: SequenceStore, name: str) -> ModelFolder:
    """The model of that name, checked against the store.

    Raises:
        DataContractError: it is not trained yet.
        SettingsError: it was trained on another vocabulary, or on other actions.
    """
    url = storage.absolute(settings.model_url(name))
    job = "pretrain" if name == "encoder" else f"finetune (or pretrain --pretrain.name {name})"
    manifest = read_manifest(url, made_by=f"clickformer {job}")
    check_vocabulary(manifest, store, url)
    check_actions(manifest, store, url)
    return ModelFolder(url=url, manifest=manifest)


def find_recommender(settings: Settings, store: SequenceStore, name: str) -> ModelFolder:
    """The model of that name, which must rank items.

    Raises:
        SettingsError: it predicts an outcome or responses.
    """
    found = find_model(settings, store, name)
    if found.is_outcome or found.is_response:
        predicted = "an outcome" if found.is_outcome else "responses"
        raise SettingsError(f"{name} predicts {predicted} and cannot rank items; name encoder or a next_item task")
    return found


def find_rivals(settings: Settings, store: SequenceStore) -> dict[str, ModelFolder]:
    """Models of other runs (`evaluation.rivals`) by name, checked against this run's store.

    Raises:
        DataContractError: nothing is published in a folder.
        SettingsError: it is no model that ranks items, or is of another log: its items are not the store's, in the
            store's order, with or without the newest.
    """
    return {name: _find_rival(store, name, storage.absolute(url)) for name, url in settings.evaluation.rivals.items()}


def _find_rival(store: SequenceStore, name: str, url: str) -> ModelFolder:
    manifest = read_manifest(url, made_by="clickformer pretrain in that run")
    if manifest.get("kind") != "next_item":
        raise SettingsError(f"evaluation.rivals {name}: {url} is no model that ranks items; give such a model's folder")
    try:
        check_vocabulary(manifest, store, url)
        check_actions(manifest, store, url)
    except SettingsError as error:
        raise SettingsError(f"evaluation.rivals {name}: {error}, on a store of the same log") from None
    return ModelFolder(url=url, manifest=manifest)


def find_tasks(settings: Settings, store: SequenceStore, names: list[str] | None) -> dict[str, ModelFolder]:
    """Models of outcomes and of responses by name; None finds all that are published.

    Raises:
        SettingsError: a named task ranks items, was trained by an earlier version, or two answers are called alike.
    """
    found = _tasks_by_name(settings, store, names)
    asked: dict[str, str] = {}
    for name, folder in found.items():
        if "questions" not in folder.manifest:
            raise SettingsError(f"task {name} was trained by an earlier version of clickformer: finetune it again")
        answers = [score_name(name, question["name"]) for question in folder.manifest["questions"]]
        for answer in [response_column(name)] if folder.is_response else answers:
            if answer in asked:
                raise SettingsError(f"tasks {asked[answer]} and {name} both have an answer {answer}; rename one")
            asked[answer] = name
    return found


def score_name(task: str, question: str) -> str:
    """What the answers to a question are called: as the task, if it is the only one."""
    return f"{task}_{question}" if question else task


def _tasks_by_name(settings: Settings, store: SequenceStore, names: list[str] | None) -> dict[str, ModelFolder]:
    folders = storage.list_folders(storage.absolute(settings.place("tasks"))) if names is None else names
    if names is None:
        done = (name for name in folders if not name.endswith(".work"))
        published = [name for name in done if _is_published(settings, name)]
        found = {name: find_model(settings, store, name) for name in published}
        return {name: folder for name, folder in found.items() if folder.is_outcome or folder.is_response}
    found = {name: find_model(settings, store, name) for name in folders}
    for name, folder in found.items():
        if not (folder.is_outcome or folder.is_response):
            raise SettingsError(f"task {name} ranks items and has no probability; name it as scoring.recommender")
    return found


def _is_published(settings: Settings, name: str) -> bool:
    return storage.exists(storage.join(storage.absolute(settings.model_url(name)), MANIFEST_NAME))
