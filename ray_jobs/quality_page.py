"""The quality page: what was in a log, as one self-contained HTML file to send to the people who own it.

Figures and sentences come from the report (`data_io.quality.report`); here they get their plots and their places.
Invariant: text of the log stands in HTML only, where it is escaped, and never in a plot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from data_io import storage
from data_io.quality.behaviour import ROBOT_MOMENTS_PER_HOUR, ROBOT_MOMENTS_PER_MINUTE
from data_io.quality.drift import count_actions, count_hours_of_day, count_weekdays
from data_io.quality.findings import day_text, percent
from data_io.quality.profile import HOUR, RowProfile
from data_io.schema import ACTION, COUNT, DataContractError
from ray_jobs.plots import new_small_figure, to_themed_svg

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16")
"""One an action, the most frequent first; they can be seen on light and on dark."""
OTHERS_COLOUR = "#9ca3af"
_TEMPLATE = Path(__file__).parent / "templates" / "quality.html"
_MOST_STEPS = 400
"""Days that a plot shows one by one; a longer log is shown by so many weeks that no more steps are needed."""
_MOST_ACTIONS = 50
"""Actions the page lists."""
_BLUE, _RED = COLOURS[0], COLOURS[3]
_SPANS = ((60, "1 min"), (3_600, "1 h"), (86_400, "1 day"), (30 * 86_400, "30 days"))
_PARTS = (
    ("kept", "num_events", "#10b981"),
    ("quarantined", "num_quarantined", "#ef4444"),
    ("duplicates", "num_duplicates", "#f59e0b"),
    ("truncated", "num_truncated", "#8b5cf6"),
    ("forgotten", "num_forgotten", OTHERS_COLOUR),
)


def write_quality_page(url: str, report: dict[str, Any]) -> None:
    """Write the page of a quality report as one file.

    Args:
        url: of the page.
        report: as `data_io.quality.report.add_profiles` makes it.

    Raises:
        DataContractError: the report holds counts only.
    """
    if "rows" not in report:
        raise DataContractError(f"{url}: the report holds counts and no profiles, so there is no page to make of it")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "percent": percent}
    template = environment.from_string(_TEMPLATE.read_text())
    storage.write_bytes(url, template.render(report=report, **_page_parts(report)).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action as the page lists it."""

    name: str
    count: int
    share: float
    colour: str


def _page_parts(report: dict[str, Any]) -> dict[str, Any]:
    rows = RowProfile.from_json(report["rows"])
    actions = list_actions(rows.hours)
    return {
        "parts": [
            {"name": name, "count": report[key], "colour": colour} for name, key, colour in _PARTS if report[key]
        ],
        "first_day": day_text(report["first_minute"] // 1_440),
        "last_day": day_text(report["last_minute"] // 1_440),
        "rows": rows,
        "actions": actions[:_MOST_ACTIONS],
        "num_more_actions": max(len(actions) - _MOST_ACTIONS, 0),
        "num_steps": f"{steps} days" if (steps := _days_a_step(rows.hours)) > 1 else "day",
        "robot_limits": (ROBOT_MOMENTS_PER_HOUR, ROBOT_MOMENTS_PER_MINUTE),
        "plots": _plots(report, rows.hours, actions),
    }


def list_actions(hours: pl.DataFrame) -> list[Action]:
    """Actions with their share of events and their colour, most frequent first, from the hours of a profile."""
    counts = count_actions(hours)
    colours = [*COLOURS, *[OTHERS_COLOUR] * len(counts)]
    total = sum(counts.values())
    return [
        Action(name=name, count=count, share=count / total, colour=colour)
        for (name, count), colour in zip(counts.items(), colours, strict=False)
    ]


def _plots(report: dict[str, Any], hours: pl.DataFrame, actions: list[Action]) -> dict[str, str]:
    sequences, items = report["sequences"], report["items"]
    return {
        "days": plot_days(hours),
        "actions": plot_actions(hours, actions) if len(actions) > 1 else "",
        "hours": _plot_bars(
            {hour[:2]: n for hour, n in count_hours_of_day(hours).items()}, "hour of the day, UTC", every=3
        ),
        "weekdays": _plot_bars({day[:3]: n for day, n in count_weekdays(hours).items()}, "day of the week, UTC"),
        "events": plot_log2(sequences["users_by_log2_events"], "events of a user", "share of users"),
        "items": plot_items(items["ranks"], items["shares"]),
        "session_events": plot_log2(sequences["sessions_by_log2_events"], "events of a session", "share of sessions"),
        "session_minutes": plot_log2(
            sequences["sessions_by_log2_minutes"], "minutes of a session", "share of sessions"
        ),
        "gaps": plot_log2(sequences["gaps_by_log2_seconds"], "time between events of a user", "share of gaps", _SPANS),
    }


def _days_a_step(hours: pl.DataFrame) -> int:
    days = hours[HOUR].to_numpy() // 24
    span = int(np.ptp(days)) + 1 if len(days) else 1
    return 1 if span <= _MOST_STEPS else 7 * -(-span // (7 * _MOST_STEPS))


def _by_step(hours: pl.DataFrame, steps: np.ndarray) -> np.ndarray:
    return np.histogram(hours[HOUR].to_numpy() // 24, steps, weights=hours[COUNT].to_numpy())[0]


def _steps(hours: pl.DataFrame) -> np.ndarray:
    """Edges of the steps of a plot over time, in days since 1970, which is how Matplotlib counts them."""
    days = hours[HOUR].to_numpy() // 24
    size = _days_a_step(hours)
    return np.arange(days.min(), days.max() + size + 1, size) if len(days) else np.array([0, 1])


def plot_days(hours: pl.DataFrame) -> str:
    """Events over time, with a red mark above each day that has none, as SVG."""
    figure, axes = new_small_figure()
    edges = _steps(hours)
    axes.stairs(_by_step(hours, edges), edges, fill=True, color=_BLUE)
    days = np.unique(hours[HOUR].to_numpy() // 24)
    empty = np.setdiff1d(np.arange(days[0], days[-1]), days) if len(days) else days
    axes.broken_barh(
        [(int(day), 1) for day in empty], (1.0, 0.04), transform=axes.get_xaxis_transform(), color=_RED, clip_on=False
    )
    return _over_time(figure, axes, "events over time")


def plot_actions(hours: pl.DataFrame, actions: Sequence[Action]) -> str:
    """Events over time, those of each action stacked on the ones before, as SVG."""
    figure, axes = new_small_figure()
    edges = _steps(hours)
    base = np.zeros(len(edges) - 1)
    named = [action.name for action in actions if action.colour != OTHERS_COLOUR]
    layers = [(pl.col(ACTION) == action.name, action.colour) for action in actions[: len(named)]]
    for chosen, colour in [*layers, (~pl.col(ACTION).is_in(named), OTHERS_COLOUR)]:
        top = base + _by_step(hours.filter(chosen), edges)
        axes.stairs(top, edges, baseline=base, fill=True, color=colour)
        base = top
    return _over_time(figure, axes, "events over time by action")


def _over_time(figure: Figure, axes: Axes, label: str) -> str:
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    locator = AutoDateLocator(maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    return to_themed_svg(figure, label)


def _plot_bars(counts: Mapping[str, int], label: str, every: int = 1) -> str:
    figure, axes = new_small_figure()
    axes.bar(range(len(counts)), _as_shares(list(counts.values())), color=_BLUE)
    axes.set_xticks(range(0, len(counts), every), list(counts)[::every])
    return _shares_over(figure, axes, label, "share of events")


def plot_log2(counts: Sequence[int], label: str, share: str, marks: Sequence[tuple[int, str]] = ()) -> str:
    """A histogram over doubling bins, as SVG; ticks name where bins begin, or 0 s and the marks (seconds, name)."""
    figure, axes = new_small_figure()
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    axes.bar(range(first, last + 1), _as_shares(counts)[first : last + 1], color=_BLUE, width=0.92)
    if marks:
        at = [(0.0, "0 s"), *((np.log2(value) + 0.5, name) for value, name in marks)]
    else:
        every = 1 if last - first < 12 else 2
        at = [(place, _begin_text(place)) for place in range(first, last + 1, every)]
    shown = [(place, name) for place, name in at if first - 0.5 <= place <= last + 0.5]
    axes.set_xticks([place for place, _ in shown], [name for _, name in shown])
    return _shares_over(figure, axes, label + ("" if marks else ", from"), share)


def plot_items(ranks: Sequence[int], shares: Sequence[float]) -> str:
    """The share of events that the items up to a rank have, as SVG."""
    figure, axes = new_small_figure()
    axes.plot(ranks, shares, color=_BLUE, linewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_ylim(0, 1.02)
    return _shares_over(figure, axes, "items, the most frequent first", "share of events")


def _shares_over(figure: Figure, axes: Axes, label: str, share: str) -> str:
    axes.set_xlabel(label)
    axes.set_ylabel(share)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    return to_themed_svg(figure, f"{share} by {label}")


def _as_shares(counts: Sequence[int]) -> np.ndarray:
    return np.array(counts) / max(sum(counts), 1)


def _begin_text(digits: int) -> str:
    """The smallest number of so many binary digits, in units of 1,024 where they are whole."""
    value = 1 << (digits - 1) if digits else 0
    return f"{value}" if value < 1_024 else f"{value >> 10}k" if value < 1 << 20 else f"{value >> 20}M"


def _short(value: float) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:g}"


def _number(value: float | None) -> str:
    """A figure of a table: whole numbers with commas, others with four digits, nothing as a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"
