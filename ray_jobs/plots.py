"""Plots as SVG that stands in a page: how a figure is begun, and how it becomes text.

Invariant: equal figures give equal text, and none needs anything from outside.
"""

import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#010203"
"""Stands for the colour of the page's text until the figure is written."""

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "clickformer"


def new_figure() -> tuple[Figure, Axes]:
    """An empty figure of the size that all have, so that their letters are of one size too."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    return figure, _axes_of(figure)


def new_small_figure() -> tuple[Figure, Axes]:
    """An empty figure whose letters can be read on a phone, where it is 360 pixels wide; for short tick labels."""
    figure = Figure(figsize=(4.4, 2.8))
    figure.subplots_adjust(left=0.16, right=0.94, bottom=0.18, top=0.95)  # to work margins out takes as long as to draw
    return figure, _axes_of(figure)


def _axes_of(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def to_themed_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element without ground, whose axes and letters take the colour of the page's text.

    Args:
        figure: drawn in colours that can be seen on light and on dark.
        label: what a screen reader says of it; plain words of ours.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
        axes.tick_params(which="both", colors=_INK)
        axes.spines[:].set_color(_INK)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.xaxis.offsetText, axes.yaxis.offsetText):
            text.set_color(_INK)
    svg = re.sub(r'(?s)(?<=<g) id="[^"]*"|<metadata>.*</metadata>', "", to_svg(figure)).replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
