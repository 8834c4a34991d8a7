"""The study's tables and its figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from experiments.report import forest
from experiments.report.markdown import markdown
from experiments.report.runs import Run, machine
from experiments.report.sentences import least_seen
from experiments.report.tables import NONE, Table
from experiments.report.verdicts import Verdict
from experiments.style import png
from experiments.table import put
from experiments.which_sampler.answer import BASE, REGION
from experiments.which_sampler.choose import ARMS, SETS, SETTINGS, Key, surface
from experiments.which_sampler.protocol import PRESET, case_of

Groups = Mapping[str, Mapping[str, Verdict]]  # "all", networks and sets -> arm -> verdict
TITLES = {"all": "all sets, both networks"}
WIDENED = "the same, errors x 1.5"


def write(
    page: Path,
    found: Groups,
    cautious: Mapping[str, Verdict],
    tuning_runs: Sequence[Run],
    runs: Sequence[Run],
) -> None:
    """Write the tables into a page, and ``differences.png`` beside it."""
    tables = {
        "comparison": comparison(found, cautious),
        "tuning": tuning(surface(tuning_runs)),
        "cost": cost(runs),
    }
    for name, table in tables.items():
        put(markdown(table) + "\n", name, page)
    page.with_name("differences.png").write_bytes(png(figure(found)))


def comparison(found: Groups, cautious: Mapping[str, Verdict]) -> Table:
    """Each arm against tuned random sampling: over all, then by network and by set."""
    groups = {"all": found["all"], WIDENED: cautious, **found}
    rows = [
        _row(arm, TITLES.get(group, group), verdict)
        for group, own in groups.items()
        for arm, verdict in own.items()
    ]
    columns = ["arm", "over", "difference in AP", "interval", "answer", "p"]
    return Table("Comparison", columns, rows)


def _row(arm: str, group: str, verdict: Verdict) -> list[str]:
    assert verdict.interval is not None and verdict.p is not None
    low, high = verdict.interval
    mean = f"{verdict.difference.mean:+z.2f}"
    return [arm, group, mean, f"{low:+z.2f} to {high:+z.2f}", verdict.answer, f"{verdict.p:.3f}"]


def figure(found: Groups) -> Figure:
    """A panel per group."""
    keys = {group: [f"{group} {arm}" for arm in own] for group, own in found.items()}
    verdicts = {f"{group} {arm}": v for group, own in found.items() for arm, v in own.items()}
    labels = {key: key.rpartition(" ")[2] for key in verdicts}
    named = [(TITLES.get(group, group), own) for group, own in keys.items()]
    drawn = forest.grown(named, verdicts, REGION, least_seen(found["all"]), labels)
    return forest.figure(drawn, "tuned random sampling")


def tuning(ap: Mapping[Key, float]) -> Table:
    """AP in percent of each arm and setting on fold 0, the mean over the sets; bold: the best."""
    rows = []
    for arm in ARMS:
        means = [100 * fmean(ap[arm, setting, name] for name in SETS) for setting in SETTINGS]
        best = max(means)
        rows.append([arm, *(f"**{m:.1f}**" if m == best else f"{m:.1f}" for m in means)])
    return Table("Tuning", ["arm", *SETTINGS], rows)


def cost(runs: Sequence[Run]) -> Table:
    """Seconds per step over those of random sampling, the median over pairs, by network.

    A pair has the same set, fold (and so seed) and machine.
    """
    seconds = {_place(run): run.step_seconds for run in runs if run.step_seconds is not None}
    ratios: dict[tuple[str, str], list[float]] = {}
    for (net, arm, *place), own in seconds.items():
        base = seconds.get((net, BASE, *place))
        if base is not None:
            ratios.setdefault((arm, net), []).append(own / base)
    nets = list(dict.fromkeys(net for net, *_ in seconds))
    rows = [
        [arm, *(f"{median(r):.2f}" if (r := ratios.get((arm, net))) else NONE for net in nets)]
        for arm in (*ARMS[1:], PRESET)
    ]
    return Table("Cost", ["arm", *nets], rows)


def _place(run: Run) -> tuple[Any, ...]:
    """Network and arm of a run, then what both runs of a pair have."""
    name, arm = case_of(run)
    return run.settings["net"], arm, name, run.settings["data.fold"], run.seed, machine(run)
