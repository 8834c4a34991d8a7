"""Histograms of the objects, and of their best anchors.

Shape letters: M objects, I images, C classes.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.style import BLUE, GREEN, PURPLE, VERMILLION, named, panels
from frcnn.data import DetectionDataset
from frcnn.data.objects import Objects
from frcnn.survey.settings import Setting
from frcnn.survey.tables import LIMITS

COLOURS = (VERMILLION, PURPLE, GREEN, BLUE)  # below 0.3, 0.5, 0.7, and the rest
PER_OCTAVE = 4  # bars of a logarithmic histogram
FEWEST = 5  # objects of a bar whose shares are drawn


def of_objects(data: DetectionDataset, objects: Objects, setting: Setting) -> Figure:
    """Six panels: sizes before and after resizing, shapes, crowding, classes, images."""
    figure, axes = panels(6)
    generator = setting.generator
    octaves(axes[0], objects.sizes)
    named(axes[0], "Objects in the image", "√area in pixels", "objects")
    octaves(axes[1], setting.coverage.sizes)
    lines(axes[1], {size for level in generator.sizes for size in level})
    named(axes[1], "Objects after resizing, lines: anchors", "√area in pixels", "objects")
    octaves(axes[2], objects.ratios)
    lines(axes[2], {1 / ratio for level in generator.aspect_ratios for ratio in level})
    named(axes[2], "Aspect ratio, lines: anchors", "width / height", "objects")
    crowding(axes[3], np.bincount(objects.image, minlength=len(data)))
    ranks(axes[4], data.class_frequencies())
    axes[5].scatter(data.widths, data.heights, s=12, color=BLUE, alpha=0.5, linewidths=0)
    axes[5].set_xlim(0, 1.1 * data.widths.max())
    axes[5].set_ylim(0, 1.1 * data.heights.max())
    named(axes[5], "Images", "width in pixels", "height in pixels")
    return figure


def of_anchors(objects: Objects, setting: Setting) -> Figure:
    """Three panels: the objects' best IoU, and its shares by size and by shape."""
    figure, axes = panels(3)
    found = setting.coverage
    bars, edges = np.histogram(found.ious, bins=40, range=(0, 1))
    colours = [COLOURS[int(np.digitize(low, LIMITS))] for low in edges[:-1] + 1e-9]
    axes[0].bar(edges[:-1], bars, np.diff(edges), align="edge", color=colours)
    named(axes[0], "IoU of the best anchor", "IoU", "objects")
    shares(axes[1], found.sizes, found.ious)
    named(axes[1], "By size after resizing", "√area in pixels", "share of the objects")
    shares(axes[2], objects.ratios, found.ious)
    named(axes[2], "By aspect ratio", "width / height", "share of the objects")
    patches = [
        Patch(color=colour, label=name) for name, colour in zip(range_names(), COLOURS, strict=True)
    ]
    # Below the axes, since bars fill the whole panel.
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def octave_edges(values: np.ndarray) -> np.ndarray:
    """Edges of bars at equal ratios, four per octave, round at powers of two."""
    low, high = np.floor(np.log2(values.min())), np.ceil(np.log2(values.max()) + 1e-9)
    return 2 ** np.linspace(low, high, int(max(1, high - low)) * PER_OCTAVE + 1)


def octaves(axes: Axes, values: np.ndarray) -> None:
    """A histogram of [M] positive numbers over a logarithmic axis."""
    axes.hist(values, bins=octave_edges(values).tolist(), color=BLUE)
    logarithmic(axes, values)


def logarithmic(axes: Axes, values: np.ndarray) -> None:
    """An axis in powers of two that spans the values."""
    edges = octave_edges(values)
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def lines(axes: Axes, places: set[float]) -> None:
    """Vertical lines; the axis keeps its span."""
    span = axes.get_xlim()
    for place in places:
        axes.axvline(place, color=VERMILLION, linewidth=1)
    axes.set_xlim(span)


def crowding(axes: Axes, numbers: np.ndarray) -> None:
    """How many of [I] images show how many objects."""
    width = max(1, -(-int(numbers.max()) // 40))  # objects per bar
    bins = np.arange(0, numbers.max() + width + 1, width) - 0.5
    axes.hist(numbers, bins=bins.tolist(), color=BLUE)
    named(axes, "Objects per image", "objects", "images")


def ranks(axes: Axes, numbers: np.ndarray) -> None:
    """[C] objects of the classes, the most frequent first."""
    axes.bar(np.arange(1, len(numbers) + 1), np.sort(numbers)[::-1], color=BLUE)
    axes.set_xlim(0, len(numbers) + 1)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)  # below 1, or a class of one object would look empty
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    named(axes, "Classes", "rank, the most frequent first", "objects")


def shares(axes: Axes, values: np.ndarray, ious: np.ndarray) -> None:
    """Stacked shares of the best IoU's ranges over [M] sizes or ratios."""
    edges = octave_edges(values)
    counts, _ = np.histogram(values, edges)
    shown, bottom = counts >= FEWEST, np.zeros(len(counts))
    for number, colour in enumerate(COLOURS):
        part, _ = np.histogram(values[np.digitize(ious, LIMITS) == number], edges)
        share = np.where(shown, part / counts.clip(min=1), 0)
        axes.bar(edges[:-1], share, np.diff(edges), bottom, align="edge", color=colour)
        bottom += share
    logarithmic(axes, values)


def range_names() -> Sequence[str]:
    """``below 0.3``, ``0.3 to 0.5``, ..., in the order of the colours."""
    between = [f"{low:g} to {high:g}" for low, high in zip(LIMITS, LIMITS[1:], strict=False)]
    return [f"below {LIMITS[0]:g}", *between, f"{LIMITS[-1]:g} and above"]
