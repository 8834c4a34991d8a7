"""The figures of a study, as PNG files' bytes."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.runs import Run
from experiments.report.statistics import Verdict
from experiments.report.study import Study
from experiments.report.tables import compare
from experiments.style import BLUE, GREY, STYLE, VERMILLION, plain, png

COLUMNS = 4


def figures(study: Study) -> dict[str, bytes]:
    """PNG by name: ``differences`` where methods are compared, ``curves`` where there are any."""
    found = {}
    if verdicts := compare(study):
        found["differences"] = png(differences(verdicts, study.baseline or ""))
    if any(run.curve for runs in study.methods.values() for run in runs.values()):
        found["curves"] = png(curves(study))
    return found


def differences(verdicts: Mapping[str, Verdict], baseline: str) -> Figure:
    """A forest plot: each method's mean difference with its interval, and zero."""
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(verdicts)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    for row, verdict in enumerate(verdicts.values()):
        mean, colour = verdict.difference.spread.mean, _colour(verdict)
        if verdict.interval is not None:
            axes.plot(verdict.interval, [row, row], color=colour, linewidth=2)
        one_seed = verdict.interval is None
        axes.plot(mean, row, "o", color=colour, markerfacecolor="white" if one_seed else colour)
    axes.set_yticks(range(len(verdicts)), list(verdicts), **STYLE)
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    axes.set_xlabel(f"difference in AP (percent) to {baseline}", **STYLE)
    axes.grid(axis="x", alpha=0.3)
    plain(axes)
    return figure


def _colour(verdict: Verdict) -> str:
    if not verdict.told_apart:
        return GREY
    return BLUE if verdict.difference.spread.mean > 0 else VERMILLION


def curves(study: Study) -> Figure:
    """AP by epoch, a panel a method beside the baseline: the mean, and a band of ± one standard
    deviation over the seeds."""
    shown = study.compared or list(study.methods)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (max(4.0, 2.7 * columns), 0.5 + 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, method in zip(panels, shown, strict=False):
        if study.baseline is not None:
            _band(axes, list(study.methods[study.baseline].values()), GREY)
        if method != study.baseline:
            _band(axes, list(study.methods[method].values()), BLUE)
        axes.set_title(method, **STYLE)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes)
    return _named(figure, study)


def _named(figure: Figure, study: Study) -> Figure:
    figure.supxlabel("epoch", **STYLE)
    figure.supylabel("AP (percent)", **STYLE)
    if study.baseline is not None:
        figure.suptitle(f"grey: {study.baseline}", color=GREY, **STYLE)
    return figure


def _band(axes: Axes, runs: Sequence[Run], colour: str) -> None:
    """Over the epochs that all of the runs have."""
    epochs = sorted(set.intersection(*(set(run.curve) for run in runs)))
    columns = [[100 * run.curve[epoch] for run in runs] for epoch in epochs]
    means = [statistics.fmean(column) for column in columns]
    spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    axes.plot(epochs, means, ".-", color=colour, linewidth=1.5)
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
