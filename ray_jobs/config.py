"""Settings of a run: the sections of all packages in one file, and the rules between them.

One YAML file serves every job of a run; a job reads the sections it lists in `JOB_SECTIONS` and offers only those on
its command line. Light to import: no torch, no Ray.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from cluster.config import ClusterSettings
from data_io.config import (
    EventSettings,
    ItemSettings,
    LeaveOneOut,
    PrivacySettings,
    SettingsError,
    SettingsModel,
    SourceSettings,
    SplitSettings,
    StoreSettings,
    TimeSplit,
    UserSettings,
)
from data_io.inputs import check_inputs
from model.config import EncoderSettings, PretrainSettings
from model.task_config import FinetuneSettings, FrozenEncoder, NextItemTask
from model.training_config import TrainingSettings
from ray_jobs.feedback_config import FeedbackSettings
from ray_jobs.profile_config import ProfileSettings
from ray_jobs.scoring_config import ExportSettings, LookupSettings, ScoringSettings
from ray_jobs.search_config import SearchSettings
from ray_jobs.tracking_config import TrackingSettings


class ForgetSettings(SettingsModel):
    """Who is to be erased."""

    users: str | None = None
    """File of user ids, local or s3://: one a line, or Parquet with a column user_id."""


class PlanSettings(SettingsModel):
    """Which training is planned, and for how much data."""

    job: Literal["pretrain", "finetune"] = "pretrain"
    """Job whose training is planned."""
    num_items: int | None = Field(default=None, ge=1)
    """Items of the catalogue to plan pretraining for; None: as many as the store has."""
    num_examples: int | None = Field(default=None, ge=1)
    """Training examples of an epoch to plan for; None: as many as the store has."""

    @model_validator(mode="after")
    def _check(self) -> "PlanSettings":
        if self.num_items is not None and self.job != "pretrain":
            raise ValueError("num_items is for job pretrain: a task takes over the catalogue of its encoder")
        return self


class ItemKnnSettings(SettingsModel):
    """The baseline that recommends what users had who had the same items."""

    num_neighbours: int = Field(default=50, ge=1)
    """Nearest items kept of each item; memory is 8 bytes each in every actor."""
    num_events: int = Field(default=10, ge=1, le=1_000)
    """Newest events of a user whose neighbours are summed."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """Weight of an event in that sum beside the one after it."""
    max_pairs: int = Field(default=300_000_000, ge=0)
    """Pairs of items a user had both of, summed over users, beyond which the baseline is left out and the report says
    so; 0 leaves it out."""


class EvaluationSettings(SettingsModel):
    """How models are held against what happened."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(5, 10, 20), min_length=1)
    """Cut-offs K of recall, NDCG and MRR."""
    exclude_seen: bool = False
    """Leave items of the user's own history out: of the ranking in the report, and of targets there and in training.
    The figures say which. Jobs that train read it from the settings file."""
    models: tuple[str, ...] = Field(default=("encoder",), min_length=1)
    """Models of the run whose rankings are measured, by pretrain.name or as next_item tasks; each is held against
    those after it."""
    rivals: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], str] = Field(default={})
    """Models of other runs on the same log that are ranked after those: a name for each, and its folder, local or
    s3://."""
    tasks: list[str] | None = None
    """Tasks of outcomes and responses that are measured; None: all that are trained."""
    batch_size: int = Field(default=256, ge=1)
    """Users ranked at a time, fewer over a large catalogue."""
    num_resamples: int = Field(default=1_000, ge=10)
    """Bootstrap resamples behind each 95 % interval."""
    recent_days: float = Field(default=7.0, gt=0)
    """Days before the test cutoff that recent_popularity counts; under leave_one_out, before the end of the log."""
    rare_events: int = Field(default=5, ge=1)
    """Training events up to which a target item is shown as rare; one without any is shown as new."""
    item_knn: ItemKnnSettings = ItemKnnSettings()
    """The item_knn baseline."""
    trees: bool = True
    """Whether gradient-boosted trees on the counts of histories stand beside each outcome task."""

    @property
    def headline_k(self) -> int:
        """The K of verdicts, slices and lists: 10, or the first where 10 is not among them."""
        return 10 if 10 in self.ks else self.ks[0]


BASELINES = ("popularity", "recent_popularity", "own_history", "item_knn")
"""Rankers without a network that stand beside every model (see `model.baselines`)."""
RESERVED_NAMES = ("encoder", "next_item", "lists", *BASELINES)
"""The pretrained model, tables of the evaluation and its baselines: no other model may be called so."""


class Settings(SettingsModel):
    """One run, from log to report."""

    run_dir: str = "runs/default"
    """Folder of the run, local or s3://; every job reads and writes below it."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything drawn at random."""
    target_actions: list[str] | None = Field(default=None, min_length=1)
    """Actions whose items are to be predicted, in training and evaluation; None: every action."""
    source: SourceSettings = SourceSettings()
    """A well-known data set to convert."""
    events: EventSettings = EventSettings()
    """The event log."""
    items: ItemSettings = ItemSettings()
    """The shop's table of items."""
    users: UserSettings = UserSettings()
    """The shop's table of users."""
    privacy: PrivacySettings = PrivacySettings()
    """Pseudonyms of user ids."""
    store: StoreSettings = StoreSettings()
    """The sequence store."""
    lookup: LookupSettings = LookupSettings()
    """For clickformer lookup: the user."""
    export: ExportSettings = ExportSettings()
    """Where scores are brought."""
    forget: ForgetSettings = ForgetSettings()
    """Users to erase."""
    split: SplitSettings = TimeSplit()
    """Where history ends and targets begin."""
    encoder: EncoderSettings = EncoderSettings()
    """The network."""
    plan: PlanSettings = PlanSettings()
    """What a training is planned for."""
    pretrain: PretrainSettings = PretrainSettings()
    """Self-supervised training."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Supervised training."""
    scoring: ScoringSettings = ScoringSettings()
    """All-user scores."""
    profile: ProfileSettings = ProfileSettings()
    """What is told of every user."""
    search: SearchSettings = SearchSettings()
    """Personalised search."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """The report."""
    feedback: FeedbackSettings = FeedbackSettings()
    """Impressions to learn from."""
    tracking: TrackingSettings = TrackingSettings()
    """What records a training."""
    cluster: ClusterSettings = ClusterSettings()
    """Where it runs."""

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        check_inputs(self.encoder.inputs, self.events.features)
        if self.pretrain.auxiliary.item_alignment and not self.encoder.item_features:
            raise ValueError(
                "pretrain.auxiliary.item_alignment tells items by their features: name some in encoder.item_features, "
                "or set it to 0"
            )
        if isinstance(self.split, LeaveOneOut) and not isinstance(self.finetune.task, NextItemTask):
            raise ValueError(
                f"finetune.task {self.finetune.task.kind} needs a moment in time, which split leave_one_out has not; "
                "use split kind time or finetune.task kind next_item"
            )
        for name, training in (("pretrain", self.pretrain.training), ("finetune", self.finetune.training)):
            _check_device(name, training, self.cluster)
        if isinstance(self.finetune.task, NextItemTask) and isinstance(self.finetune.trainable, FrozenEncoder):
            raise ValueError(
                "finetune.trainable frozen leaves task next_item nothing to learn (it has no head); use top or full"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> "Settings":
        rivals = [("evaluation.rivals", name) for name in self.evaluation.rivals]
        encoder, task = ("pretrain.name", self.pretrain.name), ("finetune.name", self.finetune.name)
        for setting, name in (encoder, task, *rivals):
            if name in RESERVED_NAMES and (setting, name) != ("pretrain.name", "encoder"):
                raise ValueError(f"{setting} {name} has a meaning of its own; choose another name")
        if self.pretrain.name == self.finetune.name:
            raise ValueError(f"pretrain.name and finetune.name are both {self.finetune.name}; choose another name")
        both = sorted(set(self.evaluation.rivals) & set(self.evaluation.models))
        if both:
            raise ValueError(f"evaluation.rivals {both[0]} is one of evaluation.models too; choose another name")
        return self

    def place(self, *parts: str) -> str:
        """The URL of something in the run's folder."""
        return "/".join((self.run_dir.rstrip("/"), *parts))

    @property
    def events_url(self) -> str:
        """Where the event log is."""
        return self.events.path or self.place("events")

    def side_url(self, side: Literal["items", "users"]) -> str | None:
        """Where the table of items or users is; None: there is none."""
        path = self.items.path if side == "items" else self.users.path
        return self.place(side) if path == "source" else path

    @property
    def store_url(self) -> str:
        """Where the sequence store is."""
        return self.place("store")

    def model_url(self, name: str) -> str:
        """Where a model is: encoder under that name, tasks and encoders of other names under tasks."""
        return self.place("encoder") if name == "encoder" else self.place("tasks", name)


def _check_device(name: str, training: TrainingSettings, cluster: ClusterSettings) -> None:
    """Refuse what a CPU cannot do, or what would do nothing there."""
    if cluster.device != "cpu":
        return
    if training.precision == "bfloat16":
        raise ValueError(
            f"{name}.training.precision bfloat16 is for GPUs, and cluster.device is cpu; use precision auto or float32"
        )
    if training.offload != "none":
        raise ValueError(
            f"{name}.training.offload {training.offload} spares the memory of GPUs, and cluster.device is cpu; set it "
            "to none"
        )


_MODEL_SECTIONS = ("run_dir", "seed", "target_actions", "split", "cluster")

JOB_SECTIONS: dict[str, tuple[str, ...]] = {
    "convert": ("run_dir", "source"),
    "build_sequences": ("run_dir", "events", "items", "users", "privacy", "store", "cluster"),
    "append": ("run_dir", "events", "items", "users", "privacy", "store", "cluster"),
    "compact": ("run_dir", "store", "cluster"),
    "forget": ("run_dir", "forget"),
    "plan": (*_MODEL_SECTIONS, "plan", "encoder", "pretrain", "finetune"),
    "pretrain": (*_MODEL_SECTIONS, "tracking", "encoder", "pretrain"),
    "finetune": (*_MODEL_SECTIONS, "tracking", "finetune"),
    "score_users": ("run_dir", "scoring", "cluster"),
    "profile": ("run_dir", "seed", "target_actions", "profile", "cluster"),
    "export": ("run_dir", "export", "cluster"),
    "lookup": ("run_dir", "lookup"),
    "rollback": ("run_dir",),
    "evaluate": (*_MODEL_SECTIONS, "evaluation"),
    "off_policy": ("run_dir", "seed", "feedback"),
    "search": (*_MODEL_SECTIONS, "search"),
    "demo": tuple(Settings.model_fields),
}
"""Which sections each job reads; a setting of another section is refused on its command line."""


def job_settings_type(job: str) -> type[SettingsModel]:
    """A settings class with just the sections of one job, for its command line."""
    fields: dict[str, Any] = {
        name: (Settings.model_fields[name].rebuild_annotation(), Settings.model_fields[name])
        for name in JOB_SECTIONS[job]
    }
    return create_model("".join(part.title() for part in job.split("_")) + "Settings", __base__=SettingsModel, **fields)


def read_settings(path: str | None) -> Settings:
    """The settings of a YAML file; None gives the defaults.

    Raises:
        SettingsError: there is no such file, it is not YAML, or a setting is unknown or breaks a rule; it names
            the file, the setting, the value and the rule.
    """
    if path is None:
        return Settings()
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; give a YAML file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected sections such as events: and encoder:, found {type(content).__name__}")
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{path}: {explain(error)}") from None


def explain(error: ValidationError, section: str = "") -> str:
    """A validation error in one line for each broken rule: the setting, the value and the rule."""
    lines: list[str] = []
    for problem in error.errors():
        place = ".".join(str(part) for part in (*section.split(), *problem["loc"]))
        rule = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_not_found":
            lines.append(f"{place}: say which kind it is: {', '.join(_kinds(_at(problem['loc'])))}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {place}{_suggestion(problem['loc'])}")
        else:
            found = f" (found {problem['input']!r})" if problem["type"] != "value_error" and place else ""
            lines.append(f"{place}: {rule}{found}" if place else rule)
    return "; ".join(lines)


def _suggestion(place: tuple[int | str, ...]) -> str:
    from difflib import get_close_matches

    known = {name: field for kind in _at(place[:-1]) for name, field in kind.model_fields.items()}
    close = get_close_matches(str(place[-1]), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}" if known else ""


def _at(place: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The settings classes that may stand at a place, whose parts are field names and kinds of variants."""
    found: list[type[BaseModel]] = [Settings]
    for part in place:
        if part in _kinds(found):
            found = [variant for variant in found if variant.model_fields["kind"].default == part]
        else:
            fields = [variant.model_fields[str(part)] for variant in found if str(part) in variant.model_fields]
            found = [variant for field in fields for variant in _classes(field.annotation)]
    return found


def _kinds(variants: list[type[BaseModel]]) -> list[str]:
    return [variant.model_fields["kind"].default for variant in variants if "kind" in variant.model_fields]


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes(part)]
