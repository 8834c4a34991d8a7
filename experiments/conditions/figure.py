"""A map as figures."""

import json
import math
from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.conditions.map import Map
from experiments.report.spread import spread
from experiments.report.verdicts import Verdict
from experiments.style import BLUE, GREEN, GREY, PURPLE, STYLE, VERMILLION, panels

# The baseline comes first, and is the only black line.
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, GREY)
LOOKS = [("-", "black"), *product(("-", "--", ":", "-."), COLOURS)]
WORSE_TO_BETTER = LinearSegmentedColormap.from_list("", [VERMILLION, "white", BLUE])


def figure(found: Map) -> Figure:
    """One panel per axis: methods by the key's values, coloured and labelled by the difference.

    The colours end at the largest difference of the methods that learnt under all conditions.
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
    drawn.suptitle(
        f"difference in AP (percent) to {found.baseline}; boxed: a difference is shown", **STYLE
    )
    return drawn


def curves(found: Map) -> Figure:
    """One panel per axis: AP of every method by the key's values, ± one sd over the seeds.

    Methods that did not learn under some condition may be cut, and then have their value.
    """
    low = math.inf
    drawn, axes_of_keys = panels(len(found.axes), columns=len(found.axes), sharey=True)
    for place, (axes, conditions) in enumerate(zip(axes_of_keys, found.axes, strict=True)):
        for method, (style, colour) in zip([found.baseline, *found.methods], LOOKS, strict=False):
            own = [
                found.values(c, method) if method in found.studies[c].methods else [math.nan]
                for c in conditions
            ]
            spreads = [spread(values) for values in own]
            means, deviations = [one.mean for one in spreads], [one.std or 0.0 for one in spreads]
            line = axes.errorbar(
                range(len(own)), means, deviations, fmt=f"o{style}", color=colour, capsize=2
            )
            line.set_label(method)
            if method not in found.not_learnt:
                ends = zip(means, deviations, strict=True)
                low = min([low, *(m - deviation for m, deviation in ends if m == m)])
        _name_values(axes, found, place)
        axes.grid(alpha=0.3, axis="y")
    high = axes_of_keys[0].get_ylim()[1]
    axes_of_keys[0].set_ylim(low - 0.05 * (high - low), high)
    for axes in axes_of_keys:
        _write_cut(axes)
    axes_of_keys[0].set_ylabel("AP (percent)", **STYLE)
    handles, labels = axes_of_keys[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, **STYLE)
    return drawn


def _write_cut(axes: Axes) -> None:
    """The means that lie below the axis, at its end."""
    low = axes.get_ylim()[0]
    for bars in axes.containers:
        line = bars.lines[0]
        for x, mean in zip(line.get_xdata(), line.get_ydata(), strict=True):
            if mean < low:
                colour = line.get_color()
                axes.text(x, low, f"{mean:.0f} ↓", ha="center", va="bottom", color=colour, **STYLE)


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
    colour = "white" if abs(mean) > 0.7 * largest else "black"
    axes.text(column, row, f"{mean:+.1f}", ha="center", va="center", color=colour, fontsize=8)
    if verdict.differs:
        box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, linewidth=1.5)
        axes.add_patch(box)
