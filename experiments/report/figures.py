"""The figures of a study, as PNG files' bytes."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report import forest
from experiments.report.runs import COST, Run
from experiments.report.spread import spread
from experiments.report.study import Study
from experiments.report.tables import compare, costs
from experiments.style import BLUE, GREY, STYLE, plain, png, wrapped

COLUMNS = 4
LINES = {"50": "-", "75": "--"}


def figures(study: Study) -> dict[str, bytes]:
    """PNG by name.

    ``differences`` if methods are compared, ``curves`` if runs have any, ``precision`` and
    ``errors`` of the methods whose runs all have usable detections.
    """
    found = {}
    if compare(study):
        drawn = forest.forest(study)
        found["differences"] = png(forest.figure(drawn, study.baseline or ""))
    if any(run.curve for runs in study.methods.values() for run in runs.values()):
        found["curves"] = png(curves(study))
    seen = [m for m, runs in study.methods.items() if all(r.precision for r in runs.values())]
    if seen:
        found["precision"] = png(precision(study, seen))
        found["errors"] = png(errors(study, seen))
    return found


def curves(study: Study) -> Figure:
    """AP by epoch: the mean, and a band of ± one standard deviation over the seeds."""
    figure, panels = _beside(study, list(study.methods), _band)
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.supxlabel("epoch", **STYLE)
    figure.supylabel("AP (percent)", **STYLE)
    return figure


def precision(study: Study, methods: Sequence[str]) -> Figure:
    """Precision at every recall, of the given methods: the mean over the seeds, at IoU 0.5 and,
    dashed, at 0.75."""
    figure, panels = _beside(study, methods, _precision)
    for axes in panels:
        axes.set(xlim=(0, 100), ylim=(0, 102))
    figure.supxlabel("recall (percent)", **STYLE)
    figure.supylabel("precision (percent)", **STYLE)
    return figure


def _beside(
    study: Study, methods: Sequence[str], draw: Callable[[Axes, Sequence[Run], str], None]
) -> tuple[Figure, list[Axes]]:
    """One panel per method, each also with the baseline if that is among them."""
    base = study.baseline if study.baseline in methods else None
    shown = [method for method in methods if method != base] or list(methods)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (max(4.0, 2.7 * columns), 0.5 + 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, method in zip(panels, shown, strict=False):
        if base is not None:
            draw(axes, list(study.methods[base].values()), GREY)
        if method != base:
            draw(axes, list(study.methods[method].values()), BLUE)
        axes.set_title(wrapped(method), **STYLE)
        axes.grid(alpha=0.3)
        plain(axes)
    if base is not None:
        figure.suptitle(f"grey: {base}", color=GREY, **STYLE)
    return figure, list(panels[: len(shown)])


def _band(axes: Axes, runs: Sequence[Run], colour: str) -> None:
    """Mean and standard deviation at the epochs that all runs have."""
    epochs = sorted(set.intersection(*(set(run.curve) for run in runs)))
    columns = [[100 * run.curve[epoch] for run in runs] for epoch in epochs]
    spreads = [spread(column) for column in columns]
    axes.plot(epochs, [one.mean for one in spreads], ".-", color=colour, linewidth=1.5)
    low = [one.mean - (one.std or 0.0) for one in spreads]
    high = [one.mean + (one.std or 0.0) for one in spreads]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _precision(axes: Axes, runs: Sequence[Run], colour: str) -> None:
    for iou, line in LINES.items():
        columns = zip(*(run.precision[iou] for run in runs), strict=True)
        means = [100 * statistics.fmean(column) for column in columns]
        axes.plot(range(len(means)), means, line, color=colour, linewidth=1.3)


def errors(study: Study, methods: Sequence[str]) -> Figure:
    """The AP50 that each kind of error costs: one panel per kind, one bar per method.

    A bar has ± one standard deviation over the seeds; a line marks the baseline's cost. Bars of
    methods that did not learn may be cut, and then have their value.
    """
    kinds = costs(study)
    apart = study.not_learnt
    high = 0.0
    figure = Figure(figsize=(11.5, 0.9 + 0.3 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False).ravel()
    for axes, kind in zip(panels, kinds, strict=True):
        found = [spread(list(study.values(method, kind).values())) for method in methods]
        colours = [GREY if method == study.baseline else BLUE for method in methods]
        axes.barh(
            range(len(methods)),
            [own.mean for own in found],
            xerr=[own.std or 0.0 for own in found],
            color=colours,
            error_kw={"linewidth": 1},
        )
        ends = [
            own.mean + (own.std or 0.0)
            for method, own in zip(methods, found, strict=True)
            if method not in apart
        ]
        high = max([high, *(1.05 * end for end in ends)])
        if study.baseline in methods:
            axes.axvline(found[methods.index(study.baseline)].mean, color=GREY, linewidth=0.8)
        axes.set_title(kind.removeprefix(COST), **STYLE)
        plain(axes)
        axes.tick_params(axis="y", left=axes is panels[0])
    panels[0].set_yticks(range(len(methods)), map(wrapped, methods), **STYLE)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    panels[0].set_xlim(0, high or 1.0)
    for axes, kind in zip(panels, kinds, strict=True):
        _write_cut(axes, [study.values(method, kind) for method in methods], high)
    figure.supxlabel("cost in AP50 (percent)", **STYLE)
    return figure


def _write_cut(axes: Axes, values: Sequence[Mapping], high: float) -> None:
    """The means that lie beyond the axis, at its end."""
    for row, own in enumerate(values):
        mean = statistics.fmean(own.values())
        if mean > high:
            axes.text(high, row, f"{mean:.0f} →", ha="right", va="center", color="white", **STYLE)
