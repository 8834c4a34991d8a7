"""A map as a figure."""

import json
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.conditions.map import Map
from experiments.report.verdicts import Verdict
from experiments.style import BLUE, STYLE, VERMILLION

WORSE_TO_BETTER = LinearSegmentedColormap.from_list("", [VERMILLION, "white", BLUE])


def figure(found: Map) -> Figure:
    """One panel per axis: methods by the key's values, coloured and labelled by the difference."""
    rows = len(found.methods)
    widths = [1, *(len(axis) for axis in found.axes)]
    drawn = Figure(figsize=(1.8 + 0.85 * sum(widths), 1.3 + 0.33 * rows), layout="constrained")
    panels = drawn.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    largest = max(abs(v.difference.mean) for v in found.verdicts.values()) or 1.0
    _panel(panels[0], found.methods, [[found.overall.get(m)] for m in found.methods], largest)
    panels[0].set_xticks([0], ["all"], **STYLE)
    panels[0].set_xlabel("conditions", **STYLE)
    for place, (axes, conditions) in enumerate(zip(panels[1:], found.axes, strict=True)):
        own = [[found.verdicts.get((c, m)) for c in conditions] for m in found.methods]
        _panel(axes, found.methods, own, largest)
        axes.set_xticks(range(len(conditions)), [_values(c[place]) for c in conditions], **STYLE)
        axes.set_xlabel(found.keys[place], **STYLE)
    drawn.suptitle(
        f"difference in AP (percent) to {found.baseline}; boxed: a difference is shown", **STYLE
    )
    return drawn


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
