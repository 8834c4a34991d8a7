"""A map as tables, and its conditions by name."""

from collections.abc import Mapping
from typing import Any

from experiments.conditions.map import Condition, Map, name
from experiments.report.runs import LOSS
from experiments.report.sentences import least_seen
from experiments.report.tables import NONE, POOLED, Table, figures_named, mean_of, ratios
from experiments.report.verdicts import FAILED, Verdict

ALL = "all conditions"


def table(found: Map) -> Table:
    """Row by method, column by condition: the baseline's AP, then differences to it."""
    beside = [c for axis in found.axes for c in axis if c != found.centre]
    conditions = [found.centre, *beside]
    own = list(found.means[found.baseline].values())
    base = [own, *(found.values(c, found.baseline) for c in conditions)]
    rows = [[found.baseline, *map(mean_of, base)]]
    for method in found.methods:
        by_condition = [found.verdicts.get((c, method)) for c in conditions]
        rows.append([method, *map(_cell, [found.overall.get(method), *by_condition])])
    return Table(
        "Where a method pays",
        ["method", ALL, *(label(found, c) for c in conditions)],
        rows,
        _notes(found),
    )


def changes(found: Map) -> Table:
    """Row by method, column by axis: how the difference changes from its first to its last."""
    places = sorted({place for place, _ in found.changes})
    columns = [f"{found.keys[p]}: {ends(found, p)[0]} to {ends(found, p)[1]}" for p in places]
    rows = [
        [method, *(_between(found.changes.get((place, method))) for place in places)]
        for method in found.methods
    ]
    notes = [
        f"The difference in AP to `{found.baseline}` at the last value less that at the first, "
        "seed by seed, with its interval: whether a method pays more there. Standard deviation "
        f"and correction as above, for all {_tested(found.changes)} tested changes together."
    ]
    return Table("Where a method pays more", ["method", *columns], rows, notes)


def scale(found: Map) -> Table:
    """Row by method, column by loss term: its mean over the runs, divided by the baseline's."""
    terms = figures_named(found.runs, LOSS)
    rows = [[m, *(mean_of(_ratios(found, m, n), 2) for n in terms)] for m in found.methods]
    notes = [
        f"The mean of each loss term over a run, divided by that of `{found.baseline}` with the "
        "same condition and seed: mean ± standard deviation over all of these. A method that "
        "changes it also changes how fast that part of the network learns."
    ]
    columns = ["method", *(term.removeprefix(LOSS) for term in terms)]
    return Table("Scale of the losses", columns, rows, notes)


def _ratios(found: Map, method: str, name: str) -> list[float]:
    under = [study for study in found.studies.values() if method in study.methods]
    pairs = [(s.values(method, name), s.values(found.baseline, name)) for s in under]
    return [ratio for own, base in pairs for ratio in ratios(own, base)]


def ends(found: Map, place: int) -> tuple[str, str]:
    """The first and the last value of an axis."""
    axis = found.axes[place]
    return axis[0][place], axis[-1][place]


def _between(verdict: Verdict | None) -> str:
    if verdict is None or verdict.interval is None:
        return _cell(verdict)
    low, high = verdict.interval
    return f"{_cell(verdict)} ({low:+.1f} to {high:+.1f})"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return NONE
    mean = f"{verdict.difference.mean:+.1f}"
    return f"**{mean}**" if verdict.differs else mean


def label(found: Map, condition: Condition) -> str:
    """The settings in which a condition differs from the centre: ``data.clutter=0``."""
    unlike = [place for place, value in enumerate(found.centre) if condition[place] != value]
    return ", ".join(f"{found.keys[i]}={condition[i]}" for i in unlike) or "the centre"


def _notes(found: Map) -> list[str]:
    samples = {len(found.values(c, found.baseline)) for c in found.studies}
    number = " or ".join(str(n) for n in sorted(samples))
    each = "folds" if found.folds else "seed(s)"
    first = (
        f"AP in percent: for `{found.baseline}` the mean over {number} {each} ± their standard "
        "deviation, for the others the mean difference to it. The centre is "
        f"`{name(found.keys, found.centre)}`; the other columns differ from it in one setting."
    )
    least = least_seen(found.verdicts)
    if least is None:
        return [first, "One seed does not show how much seeds differ: no difference is shown."]
    level = f"{100 * found.alpha:.2g}"
    tested = _tested(found.verdicts)
    return [
        first,
        f"Bold: a difference is shown, at {level} % for all {tested} differences by "
        f"condition together (step-down Dunnett). This study detects a true difference of "
        f"{least:.1f} AP under one condition with 80 % power (four times in five); a smaller one "
        f"may exist without being shown. The column {ALL} has the mean over the conditions "
        f"{'fold by fold' if found.folds else 'seed by seed'}. It is a comparison of its own, with "
        f"{level} % for its {_tested(found.overall)} methods together.{_failed(found)}",
        f"{POOLED} {OVER_CONDITIONS}",
    ]


OVER_CONDITIONS = (
    "For single conditions, the baseline's sd comes from its runs under all conditions, as far as "
    "these agree."
)


def _tested(found: Mapping[Any, Verdict]) -> int:
    return sum(verdict.p is not None for verdict in found.values())


def _failed(found: Map) -> str:
    """Where a method did not learn."""
    cells = [(label(found, c), m) for (c, m), v in found.verdicts.items() if v.answer == FAILED]
    named = ", ".join(f"`{method}` ({where})" for where, method in cells)
    why = "it did not learn (an AP below two thirds of the baseline's)"
    return f" Not tested, because {why}: {named}." if cells else ""
