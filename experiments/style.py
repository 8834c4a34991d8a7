"""One look for all figures. The colours, Okabe and Ito's (2008), suit colour-blind readers too."""

import csv
import io
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STYLE: dict[str, Any] = {"fontsize": 9}
DPI = 150
WIDTH = 36  # characters of a line over one panel


def panels(number: int, columns: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` equal axes without frames."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(0.6 + 3.4 * columns, 0.4 + 2.7 * rows), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, **options).ravel())
    for axes in found[number:]:
        axes.set_visible(False)
    for axes in found[:number]:
        plain(axes)
    return figure, found[:number]


def plain(axes: Axes) -> None:
    """Remove the frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=8)


def wrapped(label: str) -> str:
    """A label, broken into lines between its terms."""
    return textwrap.fill(label, WIDTH, break_long_words=False, break_on_hyphens=False)


def named(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Set the title, the names of both axes, and a legend if a line has a name."""
    axes.set_title(title, **STYLE)
    axes.set_xlabel(x, **STYLE)
    axes.set_ylabel(y, **STYLE)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def legends(figures: Mapping[str, Figure]) -> str:
    """CSV text: a row per line of a legend, with the figure's name and the panel's."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["figure", "panel", "y axis", "legend"])
    for name, figure in figures.items():
        for axes in figure.axes:
            for label in axes.get_legend_handles_labels()[1]:
                rows.writerow([name, axes.get_title(), axes.get_ylabel(), label])
    return text.getvalue()
