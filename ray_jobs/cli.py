"""The command line: `clickformer JOB settings.yaml [--section.field value]`.

Reads settings, runs one job, and turns every expected failure into one message and exit code 2. Importing this module
imports no job, so that --help answers at once.
"""

import importlib
import io
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import tyro
from pydantic import ValidationError

from data_io.config import SettingsError
from ray_jobs.config import JOB_SECTIONS, Settings, explain, job_settings_type, read_settings
from ray_jobs.failures import find_expected

CONFIGS = Path(__file__).parent / "configs"

JOBS = {
    "convert": "turn a well-known data set on disk into an event log",
    "build_sequences": "turn an event log into the sequence store: users in buckets, events in order",
    "append": "bring new files of the log into the store",
    "compact": "merge what appends left in the buckets of the store",
    "forget": "erase users: forget shop.yaml --users FILE",
    "plan": "say what a training will take: memory by part, checkpoint, steps and time, with a dry run",
    "pretrain": "train an encoder on the sequences, without labels",
    "finetune": "give the encoder a task and train it",
    "score_users": "write recommendations, task scores and an embedding for every user",
    "profile": "write a profile of every user: segment, preferences, price, novelty, alerts",
    "export": "bring scores into another table: one row an item, Lance, Delta or Iceberg",
    "lookup": "show what was written for one user: lookup shop.yaml --user ID",
    "rollback": "let readers see the scores from before again",
    "evaluate": "hold the models against what happened next, beside simple baselines",
    "off_policy": "learn from what was shown: clicks, and what other policies would earn",
    "search": "rank what users search for by relevance and by what each prefers, and measure it",
    "demo": "all of these in order, on real data: demo [--data synthetic]",
}

_EXIT_INTERRUPTED, _EXIT_TERMINATED = 130, 143  # as a shell says it: 128 and the number of the signal


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        _say(_overview())
        return
    if given[0] not in JOBS:
        _fail(f"unknown job {given[0]}; jobs are {', '.join(JOBS)}")
    run_job(given[0], given[1:])


def run_job(job: str, arguments: Sequence[str] | None = None) -> None:
    """Run one job with the rest of the command line; `python -m ray_jobs.JOB` does the same.

    On SIGTERM, as a scheduler or `ray job stop` sends it, everything that is open is closed on the way out.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    was_told: list[int] = []  # Ray hides what a handler raises behind a KeyboardInterrupt of its own

    def terminate(signal_number: int, _: object) -> None:
        was_told.append(signal_number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        settings = parse_settings(job, given)
        importlib.import_module(f"ray_jobs.{job}").run(settings)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        sys.exit(_EXIT_TERMINATED if was_told else _EXIT_INTERRUPTED)
    except Exception as error:  # every expected failure becomes one line; any other is raised again as it is
        expected = find_expected(error)
        if expected is None:
            raise
        _fail(str(expected))


def parse_settings(job: str, arguments: list[str]) -> Settings:
    """The settings of a job: its file, then what the command line overrides.

    Raises:
        SettingsError: a file or setting is wrong.
    """
    path, overrides = _settings_file(job, arguments)
    short = {("forget", "--users"): "--forget.users", ("lookup", "--user"): "--lookup.user"}
    overrides = [short.get((job, part), part) for part in overrides]
    base = read_settings(path)
    sections = job_settings_type(job)
    default = sections.model_validate({name: getattr(base, name) for name in JOB_SECTIONS[job]})
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            chosen = tyro.cli(
                sections,
                args=overrides,
                default=default,
                prog=f"clickformer {job} SETTINGS.yaml",
                description=f"{JOBS[job][0].upper()}{JOBS[job][1:]}.",
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
        return Settings.model_validate(base.model_dump() | chosen.model_dump())
    except ValidationError as error:
        raise SettingsError(explain(error)) from None
    except SystemExit as stop:
        _explain_refusal(stop)
        sys.stderr.write(said.getvalue())
        raise


def _explain_refusal(stop: SystemExit) -> None:
    """Where tyro stopped because a value broke a rule of ours, say it in our words."""
    error, section = stop.__context__, ""
    while error is not None and not isinstance(error, ValidationError):
        section = str(getattr(error, "arg", ""))
        error = error.__context__
    if isinstance(error, ValidationError):
        raise SettingsError(explain(error, section)) from None


def _settings_file(job: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if job == "demo":
        return _demo_file(arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        return None, arguments
    raise SettingsError(f"no settings file; try: clickformer {job} {CONFIGS / 'complete_journey.yaml'}")


def _demo_file(arguments: list[str]) -> tuple[str, list[str]]:
    data, rest = "complete_journey", arguments
    if arguments[:1] == ["--data"]:
        data, rest = (arguments[1] if len(arguments) > 1 else ""), arguments[2:]
    path = CONFIGS / f"{data}.yaml"
    if data not in ("complete_journey", "synthetic"):
        raise SettingsError(f"demo --data {data}: choose complete_journey or synthetic")
    return str(path), rest


def _overview() -> str:
    lines = [f"  {name:<16} {meaning}" for name, meaning in JOBS.items()]
    return "\n".join(
        [
            "usage: clickformer JOB SETTINGS.yaml [--section.field value ...]",
            "",
            "Train Transformers on shop behaviour logs and score every user.",
            "",
            "jobs, in the order of the road:",
            *lines,
            "",
            "clickformer JOB --help shows every setting of a job. Shipped settings files:",
            *(f"  {path}" for path in sorted(CONFIGS.glob("*.yaml"))),
        ]
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(message: str) -> None:
    sys.stderr.write(f"clickformer: {message}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
