"""The profile page: one self-contained HTML file on who the users are, in plain sentences, tables and plots.

Figures come from `ray_jobs.profile_figures`; here they get their plots and their places. Invariant: text of the log
stands in HTML only, where it is escaped, and never in a plot.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from data_io import storage
from ray_jobs.plots import new_small_figure, to_themed_svg

_TEMPLATE = Path(__file__).parent / "templates" / "profiles.html"
_COLOURS = (
    "#3b82f6",
    "#f59e0b",
    "#10b981",
    "#ef4444",
    "#8b5cf6",
    "#06b6d4",
    "#ec4899",
    "#84cc16",
    "#a16207",
    "#64748b",
)
_BLUE, _GREY, _RED = _COLOURS[0], "#9ca3af", _COLOURS[3]


def write_profile_page(url: str, figures: Mapping[str, Any], map_points: Sequence[Sequence[float]]) -> None:
    """Write the page as one file.

    Args:
        url: of the page.
        figures: as `profile_figures` gives them.
        map_points: first two components and segment of some users.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "words": words}
    template = environment.from_string(_TEMPLATE.read_text())
    page = template.render(figures=figures, plots=draw_plots(figures, map_points), colour=colour_of)
    storage.write_bytes(url, page.encode())


def draw_plots(figures: Mapping[str, Any], map_points: Sequence[Sequence[float]]) -> dict[str, str]:
    """All plots of the page, as SVG, by name."""
    hours = {str(hour): count for hour, count in enumerate(figures["hours"])}
    told = {
        "map": _plot_map(map_points),
        "stability": _plot_stability(figures["stability"], len(figures["segments"])),
        "hours": _plot_bars(hours, "hour of the day, UTC", "share of events", every=3),
        "weekdays": _plot_bars(figures["weekdays"], "day of the week, UTC", "share of events"),
        "price_bands": _plot_bars(figures["price_bands"], "price band, 5 the dearest", "share of users"),
        "price_sensitivity": _plot_histogram(figures["price_sensitivity"], "price sensitivity, average user 0"),
        "surprise": _plot_histogram(figures["surprise"], "mean surprise, nats"),
        "anomaly": _plot_histogram(figures["anomaly"], "anomaly score, usual user 1"),
    }
    told |= {f"score {name}": _plot_histogram(own, words(name)) for name, own in figures["scores"].items()}
    labels = {"new_item_share": "share of new items", "new_category_share": "share of new categories"}
    told |= {
        f"novelty {name}": _plot_histogram(own, labels.get(name, "self-information, bits"))
        for name, own in figures["novelty"].items()
    }
    return told


def colour_of(segment: int) -> str:
    """The colour of a segment on the page."""
    return _COLOURS[segment % len(_COLOURS)]


def _plot_map(points: Sequence[Sequence[float]]) -> str:
    figure, axes = new_small_figure()
    array = np.array(points).reshape(-1, 3)
    for segment in np.unique(array[:, 2]).astype(int):
        own = array[array[:, 2] == segment]
        axes.scatter(own[:, 0], own[:, 1], s=5, color=colour_of(int(segment)), alpha=0.6, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first component of the embeddings")
    axes.set_ylabel("second component")
    return to_themed_svg(figure, "users by the first two components of their embeddings, coloured by segment")


def _plot_stability(stability: Mapping[str, Any], num_segments: int) -> str:
    figure, axes = new_small_figure()
    tried = {int(k): value for k, value in stability["by_num_segments"].items()}
    colours = [_BLUE if k == num_segments else _GREY for k in tried]
    axes.bar(list(tried), list(tried.values()), color=colours)
    axes.axhline(stability["least_wanted"], color=_RED, linestyle="--", linewidth=1)
    axes.set_ylim(0, 1)
    axes.set_xticks(list(tried))
    axes.set_xlabel("number of segments")
    axes.set_ylabel("adjusted Rand index")
    return to_themed_svg(figure, "adjusted Rand index by number of segments")


def _plot_bars(counts: Mapping[str, int], label: str, share: str, every: int = 1) -> str:
    if not counts:
        return ""
    figure, axes = new_small_figure()
    axes.bar(range(len(counts)), np.array(list(counts.values())) / max(sum(counts.values()), 1), color=_BLUE)
    axes.set_xticks(range(0, len(counts), every), list(counts)[::every])
    axes.set_xlabel(label)
    axes.set_ylabel(share)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    return to_themed_svg(figure, f"{share} by {label}")


def _plot_histogram(own: Mapping[str, Any], label: str) -> str:
    if not own["num_known"]:
        return ""
    figure, axes = new_small_figure()
    axes.stairs(np.array(own["counts"]) / own["num_known"], own["edges"], fill=True, color=_BLUE)
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("share of users")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    return to_themed_svg(figure, f"share of users by {label}")


def number(value: float | None, digits: int = 2) -> str:
    """A figure of a table: whole numbers with commas, others with some digits, nothing as a dash."""
    if value is None or value != value:
        return "-"
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text  # minus zero is zero


def percent(value: float | None) -> str:
    """A share in percent, nothing as a dash."""
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def words(name: str) -> str:
    """The name of a column as a person reads it."""
    return name.replace("_", " ")
