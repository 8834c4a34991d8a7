"""A map as figures."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.conditions.map import Condition, Map
from experiments.report.spread import Spread, spread
from experiments.report.verdicts import FAILED, Verdict
from experiments.style import BLUE, GREEN, GREY, PURPLE, STYLE, VERMILLION, panels

# The baseline comes first, and is the only black line.
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, GREY)
LOOKS = [("-", "black"), *product(("-", "--", ":", "-."), COLOURS)]
LIGHT = "#DDDDDD"
ASIDE = 0.04  # between the points of two methods; 1 is from value to value
WORSE_TO_BETTER = LinearSegmentedColormap.from_list("", [VERMILLION, "white", BLUE])


def figure(found: Map) -> Figure:
    """One panel per axis: methods by the key's values, coloured and labelled by the difference.

    The colours end at the largest difference of the methods that learnt under all conditions.
    Grey: the method did not learn, and was not tested.
    """
    rows = len(found.methods)
    widths = [1, *(len(axis) for axis in found.axes)]
    drawn = Figure(figsize=(1.8 + 0.85 * sum(widths), 1.3 + 0.33 * rows), layout="constrained")
    first, *others = drawn.subplots(
        1, len(widths), sharey=True, width_ratios=widths, squeeze=False
    )[0]
    learnt = [v for (_, method), v in found.verdicts.items() if method not in found.not_learnt]
    largest = max((abs(v.difference.mean) for v in learnt), default=0.0) or 1.0
    _panel(first, found.methods, [[found.overall.get(m)] for m in found.methods], largest)
    first.set_xticks([0], ["all"], **STYLE)
    first.set_xlabel("conditions", **STYLE)
    for place, (axes, conditions) in enumerate(zip(others, found.axes, strict=True)):
        own = [[found.verdicts.get((c, m)) for c in conditions] for m in found.methods]
        _panel(axes, found.methods, own, largest)
        _name_values(axes, found, place)
    grey = "; grey: did not learn" if found.not_learnt else ""
    title = f"difference in AP (percent) to {found.baseline}; boxed: a difference is shown{grey}"
    drawn.suptitle(title, **STYLE)
    return drawn


def curves(found: Map) -> Figure:
    """One panel per axis: AP of every method by the key's values, ± one sd over the seeds.

    Methods that did not learn under some condition may be cut, and then have their value. Methods
    lie side by side, so that their bars can be told apart.
    """
    drawn, panels_of_keys = panels(len(found.axes), columns=len(found.axes), sharey=True)
    lines = [_lines(axes, found, place) for place, axes in enumerate(panels_of_keys)]
    first = panels_of_keys[0]
    ends = [end for own in lines for line in own if line.learnt for end in line.lower_ends()]
    high = first.get_ylim()[1]
    low = min(ends) - 0.1 * (high - min(ends))  # room for the values of those that are cut
    first.set_ylim(low, high)
    for axes, own in zip(panels_of_keys, lines, strict=True):
        for line in own:
            line.write_cut(axes, low)
    first.set_ylabel("AP (percent)", **STYLE)
    handles, labels = first.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, **STYLE)
    return drawn


@dataclass(frozen=True)
class Line:
    """The AP of one method in one panel.

    Args:
        places: of its points on the axis of the key's values.
        spreads: over the seeds, of each point.
        learnt: under all conditions.
    """

    places: Sequence[float]
    spreads: Sequence[Spread]
    colour: str
    learnt: bool

    def lower_ends(self) -> list[float]:
        """Of the bars, where there are runs."""
        return [s.mean - (s.std or 0.0) for s in self.spreads if not math.isnan(s.mean)]

    def write_cut(self, axes: Axes, low: float) -> None:
        """The means that lie below the panel, at its lower end."""
        where: dict[str, Any] = {"ha": "center", "va": "bottom", "color": self.colour}
        for place, own in zip(self.places, self.spreads, strict=True):
            if own.mean < low:
                axes.text(place, low, f"{own.mean:.0f} ↓", **where, **STYLE)


def _lines(axes: Axes, found: Map, place: int) -> list[Line]:
    """Draws the panel of a key."""
    methods, conditions = [found.baseline, *found.methods], found.axes[place]
    lines = []
    for row, (method, (style, colour)) in enumerate(zip(methods, LOOKS, strict=False)):
        aside = ASIDE * (row - (len(methods) - 1) / 2)
        line = Line(
            [aside + value for value in range(len(conditions))],
            [_spread(found, condition, method) for condition in conditions],
            colour,
            method not in found.not_learnt,
        )
        means = [own.mean for own in line.spreads]
        bars = [own.std or 0.0 for own in line.spreads]
        look: dict[str, Any] = {"color": colour, "capsize": 2, "markersize": 4}
        axes.errorbar(line.places, means, bars, fmt=f"o{style}", label=method, **look)
        lines.append(line)
    _name_values(axes, found, place)
    axes.grid(alpha=0.3, axis="y")
    return lines


def _spread(found: Map, condition: Condition, method: str) -> Spread:
    """Of the AP of a method's runs; NaN where there are none."""
    known = method in found.studies[condition].methods
    return spread(found.values(condition, method) if known else [math.nan])


def _name_values(axes: Axes, found: Map, place: int) -> None:
    """The values of a key below its panel."""
    values = [_values(condition[place]) for condition in found.axes[place]]
    axes.set_xticks(range(len(values)), values, **STYLE)
    axes.set_xlabel(found.keys[place], **STYLE)


def _panel(
    axes: Axes, methods: Sequence[str], rows: Sequence[Sequence[Verdict | None]], largest: float
) -> None:
    means = [[math.nan if v is None else v.difference.mean for v in row] for row in rows]
    axes.imshow(means, cmap=WORSE_TO_BETTER, vmin=-largest, vmax=largest, aspect="auto")
    for row, verdicts_of_row in enumerate(rows):
        for column, verdict in enumerate(verdicts_of_row):
            _write(axes, row, column, verdict, largest)
    axes.set_yticks(range(len(methods)), methods, **STYLE)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _values(text: str) -> str:
    """``[8, 14]`` as 8 to 14."""
    value = json.loads(text)
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(axes: Axes, row: int, column: int, verdict: Verdict | None, largest: float) -> None:
    if verdict is None:
        return
    mean = verdict.difference.mean
    learnt = verdict.answer != FAILED
    colour = "white" if learnt and abs(mean) > 0.7 * largest else "black"
    if not learnt:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=LIGHT))
    axes.text(column, row, f"{mean:+.1f}", ha="center", va="center", color=colour, fontsize=8)
    if verdict.differs:
        box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, linewidth=1.5)
        axes.add_patch(box)
