"""The job that learns from what was shown: a click model, and what other policies would have earned.

Runs on one machine, with the impressions in memory. A model never predicts a block of time that it was fitted to.
Invariant: every figure stands beside what it should be held against, with its interval.
"""

from ray_jobs.cli import run_job

if __name__ == "__main__":  # first, so that --help does not wait for Ray and torch
    run_job("off_policy")

from typing import Any

from data_io import storage
from data_io.config import SettingsError
from data_io.impressions import ImpressionColumns, Impressions, read_impressions
from data_io.lease import write_lease
from ray_jobs.config import Settings
from ray_jobs.feedback import click_figures, cross_fit, policy_figures
from ray_jobs.progress import say
from ray_jobs.report import render_page

REPORT_NAME = "report.json"


def run(settings: Settings) -> str:
    """Evaluate the click model and other policies; returns the URL of the report's folder."""
    options = settings.feedback
    if options.path is None:
        raise SettingsError("feedback.path is not set: give the table of impressions")
    url = storage.absolute(settings.place("off_policy"))
    impressions = read_impressions(options.path, ImpressionColumns(**options.columns.model_dump()))
    _say_read(impressions)
    with write_lease(url, "off_policy"):
        fitted = cross_fit(impressions, options, settings.seed)
        report: dict[str, Any] = {
            "num_impressions": len(impressions),
            "quarantined": dict(impressions.quarantined),
            "clicks": click_figures(impressions, fitted),
            "policies": policy_figures(impressions, fitted, options),
            "settings": settings.model_dump(mode="json", include={"seed", "feedback"}),
        }
        storage.write_json(storage.join(url, REPORT_NAME), report)
        storage.write_bytes(storage.join(url, "index.html"), render_page("off_policy.html", report=report).encode())
    for line in (*_click_lines(report["clicks"]), *_policy_lines(report["policies"])):
        say(f"off_policy: {line}")
    say(f"off_policy: open {url}/index.html; figures in {url}/{REPORT_NAME}")
    return url


def _say_read(impressions: Impressions) -> None:
    left_out = sum(impressions.quarantined.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in impressions.quarantined.items())
    kept = f"{len(impressions):,} kept + {left_out:,} left out"
    say(f"off_policy: {len(impressions) + left_out:,} rows = {kept} ({reasons or 'all can be used'})")


def _click_lines(figures: dict[str, Any]) -> list[str]:
    lines = []
    for name, gain in figures["gain_over"].items():
        said = "beats" if gain["low"] > 0 else "loses to" if gain["high"] < 0 else "is not clearly apart from"
        own, other = figures["log_loss"]["click head"], figures["log_loss"][name]
        against = f"{own:.6f} against {other:.6f}"
        ends = f"{gain['value']:+.6f} [{gain['low']:+.6f}, {gain['high']:+.6f}]"
        lines.append(f"click head {said} {name} in log loss: {against}, gain {ends}")
    return lines


def _policy_lines(figures: list[dict[str, Any]]) -> list[str]:
    lines = []
    for found in figures:
        estimates = ", ".join(
            f"{name} {of['value']:.5f} [{of['low']:.5f}, {of['high']:.5f}]" for name, of in found["estimates"].items()
        )
        size = f"worth {found['effective_sample_size']:,.0f} impressions"
        line = f"{found['policy']} from the log of {found['log']} ({size}): {estimates}"
        if found["on_policy"]:
            own = found["on_policy"]
            line += f"; on its own log {own['value']:.5f} [{own['low']:.5f}, {own['high']:.5f}]"
        lines.append(line)
    return lines
