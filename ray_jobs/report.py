"""The report page: one self-contained HTML file with the figures and their plots."""

from pathlib import Path
from typing import Any

import jinja2

from data_io import storage
from ray_jobs.config import BASELINES
from ray_jobs.plots import new_figure, to_svg

_TEMPLATES = Path(__file__).parent / "templates"
_MODEL_COLOUR, _BASELINE_COLOUR = "#2563eb", "#9ca3af"
_MORE_MODEL_COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777")
_BASELINE_STYLES = ("-", ":", "--", "-.")


def write_report(url: str, report: dict[str, Any]) -> None:
    """Write the page of a report (see `ray_jobs.evaluate`) as one file."""
    plots = {"ranking": plot_ranking(report["next_item"]), "recall": plot_recall(report["next_item"])}
    tasks = {name: [plot_roc(figures), plot_calibration(figures)] for name, figures in report["outcomes"].items()}
    page = render_page("report.html", report=report, plots=plots, task_plots=tasks)
    storage.write_bytes(url, page.encode())


def render_page(template: str, **content: Any) -> str:
    """A page from one of the templates of this package; text is escaped, and what a template names must be there."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string((_TEMPLATES / template).read_text()).render(**content)


def plot_ranking(figures: dict[str, Any]) -> str:
    """Bars of the headline metric with intervals, as SVG."""
    figure, axes = new_figure()
    metric = figures["headline"]
    for place, (name, metrics) in enumerate(figures["rankers"].items()):
        value = metrics[metric]
        error = [[max(0.0, value["value"] - value["low"])], [max(0.0, value["high"] - value["value"])]]
        axes.barh(place, value["value"], xerr=error, color=_colour(name), capsize=3)
        axes.text(value["high"], place, f" {value['value']:.4f}", va="center")
    axes.set_yticks(range(len(figures["rankers"])), list(figures["rankers"]))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel(f"{metric}, with 95 % interval")
    return to_svg(figure)


def plot_recall(figures: dict[str, Any]) -> str:
    """Recall over K for every ranker, as SVG."""
    figure, axes = new_figure()
    for place, (name, metrics) in enumerate(figures["rankers"].items()):
        points = sorted(
            (int(metric.rsplit("_", 1)[1]), value["value"])
            for metric, value in metrics.items()
            if metric.startswith("recall")
        )
        style, colour = _style(name, place)
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, color=colour, label=name)
    axes.set_xlabel("K")
    axes.set_ylabel("recall at K")
    axes.set_ylim(bottom=0)
    axes.legend()
    return to_svg(figure)


def plot_roc(figures: dict[str, Any]) -> str:
    """ROC curves of the model and the best single feature, as SVG."""
    figure, axes = new_figure()
    axes.plot(*zip(*figures["curve"], strict=True), color=_MODEL_COLOUR, label=f"model {figures['auc']['value']:.3f}")
    feature = figures["best_feature"]
    label = f"{feature['name']} {feature['auc']['value']:.3f}"
    axes.plot(*zip(*figures["feature_curve"], strict=True), color=_BASELINE_COLOUR, label=label)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(title="AUC")
    return to_svg(figure)


def plot_calibration(figures: dict[str, Any]) -> str:
    """Observed rate over predicted probability in tenths of the users, as SVG."""
    figure, axes = new_figure()
    bins = figures["calibration"]
    axes.plot([0, 1], [0, 1], color=_BASELINE_COLOUR, linestyle="--")
    axes.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], marker="o", color=_MODEL_COLOUR)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed rate")
    return to_svg(figure)


def _style(name: str, place: int) -> tuple[str, str]:
    """Line and colour of a ranker: baselines differ by their line, models by their colour."""
    if name in BASELINES:
        return _BASELINE_STYLES[BASELINES.index(name) % len(_BASELINE_STYLES)], _BASELINE_COLOUR
    return "-", _MORE_MODEL_COLOURS[place % len(_MORE_MODEL_COLOURS)]


def _colour(name: str) -> str:
    return _BASELINE_COLOUR if name in BASELINES else _MODEL_COLOUR
