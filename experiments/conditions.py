"""Where does a method begin to pay? Its difference to the baseline, condition by condition.

``python -m experiments.conditions DIR|FILE.csv --by KEY... [--baseline TEXT] [--out FOLDER]
[--page FILE]``

DIR is the folder of a sweep over methods, seeds and settings of the data, KEYs are those settings,
as in ``data.clutter``. Writes conditions.md and conditions.png to DIR/report or beside the CSV, and
of a folder conditions.csv (one row a run), from which both can be made again; and the table into a
page, between a comment that names the CSV and ``<!-- end -->``.
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from experiments.report.csv_files import read_csv, write_csv
    from experiments.report.markdown import markdown
    from experiments.report.runs import LOSS, Run, read
    from experiments.report.statistics import (
        ALPHA,
        Difference,
        Verdict,
        compared,
        in_blocks,
        verdicts,
    )
    from experiments.report.study import Study, study
    from experiments.report.tables import (
        ALONE,
        NONE,
        Table,
        differences,
        interval,
        made,
        mean_of,
        ratios,
    )
    from experiments.style import BLUE, STYLE, VERMILLION, png
    from experiments.table import put
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error

WORSE_TO_BETTER = LinearSegmentedColormap.from_list("", [VERMILLION, "white", BLUE])

ALL = "all conditions"

Condition = tuple[str, ...]  # of each key its value, as JSON


@dataclass(frozen=True)
class Map:
    """Studies by condition.

    Args:
        keys: the settings that make a condition.
        studies: by condition.
        axes: for each key the conditions that differ from ``centre`` in that key alone, and
            ``centre``, by the key's value.
        centre: the commonest value of each key.
        verdicts: by condition and method: the spread is that of the condition's runs, the
            correction for the number of all of them.
        overall: by method, on the mean over the conditions of each seed that has them all.
        changes: by the place of a key and method: the difference at the last value of the axis
            less that at the first.
        problems: a sentence for each run, seed, method and condition that is left out.
    """

    keys: Sequence[str]
    studies: Mapping[Condition, Study]
    axes: Sequence[Sequence[Condition]]
    centre: Condition
    verdicts: Mapping[tuple[Condition, str], Verdict]
    overall: Mapping[str, Verdict]
    changes: Mapping[tuple[int, str], Verdict]
    problems: Sequence[str]

    @property
    def baseline(self) -> str:
        """The method that all others are compared with."""
        return self.studies[self.centre].baseline or ""

    @property
    def methods(self) -> list[str]:
        """Those that are compared, the baseline not among them."""
        return list(dict.fromkeys(method for _, method in self.verdicts))

    def values(self, condition: Condition, method: str) -> list[float]:
        """AP in percent, a value a seed."""
        return list(self.studies[condition].values(method, "AP").values())


def make(runs: Sequence[Run], keys: Sequence[str], baseline: str | None = None) -> Map:
    """Split the runs by condition and compare the methods under each.

    Raises:
        LookupError: no runs, or none to compare, all in all or under the centre; a key in which no
            two of them differ.
    """
    if not runs:
        raise LookupError("no run, which is a folder with a status.json")
    groups: dict[Condition, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_condition(run, keys, runs)].append(run)
    unreadable = [study([run]).problems[0] for run in groups.pop((), [])]
    problems = list(unreadable)
    studies = {}
    for condition, group in groups.items():
        name = _name(keys, condition)
        try:
            found = study(group, baseline)
        except LookupError as error:
            problems.append(f"{name}: {error}: left out.")
            continue
        problems += [f"{name}: {problem}" for problem in found.problems]
        if differences(found):
            studies[condition] = found
        elif not found.problems:
            problems.append(f"{name}: nothing to compare: left out.")
    if not studies:
        raise LookupError("\n".join(["no condition has a baseline and a method", *problems]))
    columns = zip(*studies, strict=True)
    centre = tuple(Counter(column).most_common(1)[0][0] for column in columns)
    if centre not in studies:
        missing = f"the centre {_name(keys, centre)} has no baseline and a method"
        raise LookupError("\n".join([missing, *problems]))
    axes = [_axis(studies, centre, place) for place in range(len(keys))]
    shown = {condition for axis in axes for condition in axis}
    problems += [f"{_name(keys, c)}: lies on no axis: left out." for c in studies if c not in shown]
    studies = {condition: found for condition, found in studies.items() if condition in shown}
    tested = {(c, m): d for c, s in studies.items() for m, d in differences(s).items()}
    name = studies[centre].baseline or ""
    overall = verdicts(compared(means(studies), name))
    changed = {
        (place, method): difference
        for place, axis in enumerate(axes)
        for method, difference in along(studies[axis[0]], studies[axis[-1]]).items()
    }
    return Map(keys, studies, axes, centre, verdicts(tested), overall, verdicts(changed), problems)


def means(studies: Mapping[Condition, Study]) -> dict[str, dict[int, float]]:
    """By method and seed the mean AP over the conditions, of the seeds that have them all.

    Many conditions tell more than one; runs of a seed share their initial weights under all of
    them, so it is the seeds that are independent, and their number that counts. The mean is that of
    these conditions, each as heavy as any other, and says nothing of others.
    """
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(m for study in studies.values() for m in study.methods):
        under = [s.values(method, "AP") if method in s.methods else {} for s in studies.values()]
        seeds = set.intersection(*(set(own) for own in under))
        found[method] = {seed: fmean(own[seed] for own in under) for seed in sorted(seeds)}
    return found


def along(first: Study, last: Study) -> dict[str, Difference]:
    """How much more a method differs from the baseline at the last than at the first condition."""
    name = first.baseline or ""
    values = {}
    for method in (m for m in first.methods if m in last.methods):
        here, there = first.values(method, "AP"), last.values(method, "AP")
        values[method] = {s: there[s] - here[s] for s in here.keys() & there.keys()}
    shared = {m: own for m, own in values.items() if own.keys() & values.get(name, {}).keys()}
    return in_blocks(shared, name) if name in shared and first is not last else {}


def _condition(run: Run, keys: Sequence[str], runs: Sequence[Run]) -> Condition:
    """Nothing where a run does not say, which is one that cannot be read."""
    for key in keys:
        if not any(key in other.settings for other in runs):
            known = ", ".join(sorted({k for other in runs for k in other.settings}))
            raise LookupError(f"--by {key}: no two runs differ in it. They differ in {known}")
    return tuple(json.dumps(run.settings[key]) for key in keys if key in run.settings)


def _axis(conditions: Mapping[Condition, Study], centre: Condition, place: int) -> list[Condition]:
    def others(condition: Condition) -> Condition:
        return condition[:place] + condition[place + 1 :]

    found = [condition for condition in conditions if others(condition) == others(centre)]
    return sorted(found, key=lambda condition: json.loads(condition[place]))


def _name(keys: Sequence[str], condition: Condition) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(keys, condition, strict=True))


def table(found: Map) -> Table:
    """Row by method, column by condition: the baseline's AP, then differences to it."""
    beside = [c for axis in found.axes for c in axis if c != found.centre]
    conditions = [found.centre, *beside]
    own = list(means(found.studies)[found.baseline].values())
    base = [own, *(found.values(c, found.baseline) for c in conditions)]
    rows = [[found.baseline, *map(mean_of, base)]]
    for method in found.methods:
        by_condition = [found.verdicts.get((c, method)) for c in conditions]
        rows.append([method, *map(_cell, [found.overall.get(method), *by_condition])])
    return Table(
        "Where a method pays",
        ["method", ALL, *(_label(found, c) for c in conditions)],
        rows,
        _notes(found),
    )


def changes(found: Map) -> Table:
    """Row by method, column by axis: how the difference changes from its first to its last."""
    places = sorted({place for place, _ in found.changes})
    columns = [f"{found.keys[p]}: {_ends(found, p)[0]} to {_ends(found, p)[1]}" for p in places]
    rows = [
        [method, *(_between(found.changes.get((place, method))) for place in places)]
        for method in found.methods
    ]
    notes = [
        f"The difference in AP to `{found.baseline}` at the last value less that at the first, "
        "paired by seed, with its interval: whether a method pays more there. Spread and "
        f"correction as above, for all {len(found.changes)} changes together."
    ]
    return Table("Where a method pays more", ["method", *columns], rows, notes)


def scale(found: Map) -> Table:
    """Row by method, column by loss term: its mean over the runs, times the baseline's."""
    names = _terms(found)
    rows = [[m, *(mean_of(_ratios(found, m, n), 2) for n in names)] for m in found.methods]
    notes = [
        f"Each loss term's mean over a run, times that of `{found.baseline}` of the same condition "
        "and seed: mean ± standard deviation over all of these. A method that changes it changes "
        "how fast that part of the network learns, beside what it is meant to change."
    ]
    columns = ["method", *(name.removeprefix(LOSS) for name in names)]
    return Table("Scale of the losses", columns, rows, notes)


def _terms(found: Map) -> list[str]:
    """The loss terms of any run."""
    names = dict.fromkeys(name for run in _runs(found) for name in run.figures)
    return [name for name in names if name.startswith(LOSS)]


def _ratios(found: Map, method: str, name: str) -> list[float]:
    under = [study for study in found.studies.values() if method in study.methods]
    pairs = [(s.values(method, name), s.values(found.baseline, name)) for s in under]
    return [ratio for own, base in pairs for ratio in ratios(own, base)]


def _runs(found: Map) -> list[Run]:
    studies = found.studies.values()
    return [run for s in studies for by_seed in s.methods.values() for run in by_seed.values()]


def _ends(found: Map, place: int) -> tuple[str, str]:
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
    mean = f"{verdict.difference.spread.mean:+.1f}"
    return f"**{mean}**" if verdict.told_apart else mean


def sentences(found: Map) -> list[str]:
    """Of each method: over all conditions, and under which it is told apart from the baseline."""
    said = []
    for method in found.methods:
        own = {c: v for (c, name), v in found.verdicts.items() if name == method}
        own = {condition: verdict for condition, verdict in own.items() if verdict.p is not None}
        if not own:
            said.append(f"`{method}` has one seed: nothing can be said.")
            continue
        better = [c for c, v in own.items() if v.told_apart and v.difference.spread.mean > 0]
        worse = [c for c, v in own.items() if v.told_apart and c not in better]
        parts = [f"better at {_listed(found, better)}"] if better else []
        parts += [f"worse at {_listed(found, worse)}"] if worse else []
        rest = len(own) - len(better) - len(worse)
        parts += [f"not told apart at {rest} of {len(own)} conditions"] if rest else []
        first = _over_all(found.overall.get(method))
        said.append(f"`{method}` is {first}{', '.join(parts)}.")
    return said + _changed(found)


def _changed(found: Map) -> list[str]:
    tested = {key: v for key, v in found.changes.items() if v.p is not None}
    said = []
    for (place, method), verdict in tested.items():
        if verdict.told_apart:
            key, (first, last) = found.keys[place], _ends(found, place)
            mean = verdict.difference.spread.mean
            how = "more" if mean > 0 else "less"
            said.append(f"`{method}` gains {how} at {key}={last} than at {first}: {mean:+.1f} AP.")
    none = "No method's difference is told apart between the ends of an axis."
    return said or ([none] if tested else [])


def _over_all(verdict: Verdict | None) -> str:
    if verdict is None or verdict.p is None:
        return ""
    mean = verdict.difference.spread.mean
    how = ("better" if mean > 0 else "worse") if verdict.told_apart else "not told apart"
    level, between = interval(verdict)
    return f"{how} over {ALL} ({mean:+.2f} AP, {level} interval {between}); "


def _listed(found: Map, conditions: Sequence[Condition]) -> str:
    return " and ".join(_label(found, condition) for condition in conditions)


def _label(found: Map, condition: Condition) -> str:
    """Where it is not the centre's: ``data.clutter=0``."""
    unlike = [place for place, value in enumerate(found.centre) if condition[place] != value]
    return ", ".join(f"{found.keys[i]}={condition[i]}" for i in unlike) or "the centre"


def _notes(found: Map) -> list[str]:
    tested = [v.difference for v in found.verdicts.values() if v.difference.spread.std is not None]
    seeds = {len(found.values(c, found.baseline)) for c in found.studies}
    number = " or ".join(str(n) for n in sorted(seeds))
    first = (
        f"AP in percent: of `{found.baseline}` the mean over {number} seed(s) ± their standard "
        f"deviation, of the others the mean difference to it, paired by seed. The centre is "
        f"`{_name(found.keys, found.centre)}`; the other columns differ from it in one setting."
    )
    if not tested:
        return [first, "One seed does not show how much seeds differ: nothing is told apart."]
    stds = [difference.spread.std or 0.0 for difference in tested]
    low, high = min(stds), max(stds)
    freedom = max(difference.freedom for difference in tested)
    least = [_least(difference, len(tested)) for difference in tested]
    return [
        first,
        f"Bold: told apart from the baseline, at {100 * ALPHA:.0f} % for all {len(tested)} "
        "differences by condition together (Holm), of which the first has to be "
        f"{min(least):.1f} to {max(least):.1f} AP, by condition; what is smaller is not shown to "
        "be none. The difference of two runs of one seed has a standard deviation of "
        f"{low:.1f} to {high:.1f} by condition, that of randomised blocks with up to {freedom} "
        f"degrees of freedom: of all runs of the condition. The column {ALL} has the mean over the "
        "conditions seed by seed, and is a comparison of its own: its spread, and "
        f"{100 * ALPHA:.0f} % for its {len(found.overall)} methods together.{_alone(found)}",
    ]


def _alone(found: Map) -> str:
    """Which differences have a spread of their own."""
    cells = [(ALL, method, v) for method, v in found.overall.items()]
    cells += [(_label(found, c), method, v) for (c, method), v in found.verdicts.items()]
    cells += [(f"along {found.keys[p]}", m, v) for (p, m), v in found.changes.items()]
    alone = [(where, m) for where, m, v in cells if v.p is not None and not v.difference.common]
    if not alone:
        return ""
    named = ", ".join(f"`{method}` ({where})" for where, method in alone)
    return f" Outside of the common spread, with a spread of its own, is {ALONE}: here {named}."


def _least(difference: Difference, tests: int) -> float:
    """In absolute value, to be told apart at Holm's first step."""
    low, high = difference.interval(1 - ALPHA / tests)
    return (high - low) / 2


def figure(found: Map) -> Figure:
    """A panel an axis: methods by the key's values, coloured and labelled by the difference."""
    rows = len(found.methods)
    widths = [1, *(len(axis) for axis in found.axes)]
    drawn = Figure(figsize=(1.8 + 0.85 * sum(widths), 1.3 + 0.33 * rows), layout="constrained")
    panels = drawn.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    largest = max(abs(v.difference.spread.mean) for v in found.verdicts.values()) or 1.0
    _panel(panels[0], found.methods, [[found.overall.get(m)] for m in found.methods], largest)
    panels[0].set_xticks([0], ["all"], **STYLE)
    panels[0].set_xlabel("conditions", **STYLE)
    for place, (axes, conditions) in enumerate(zip(panels[1:], found.axes, strict=True)):
        own = [[found.verdicts.get((c, m)) for c in conditions] for m in found.methods]
        _panel(axes, found.methods, own, largest)
        axes.set_xticks(range(len(conditions)), [_values(c[place]) for c in conditions], **STYLE)
        axes.set_xlabel(found.keys[place], **STYLE)
    drawn.suptitle(f"difference in AP (percent) to {found.baseline}; boxed: told apart", **STYLE)
    return drawn


def _panel(
    axes: Axes, methods: Sequence[str], rows: Sequence[Sequence[Verdict | None]], largest: float
) -> None:
    means = [[math.nan if v is None else v.difference.spread.mean for v in row] for row in rows]
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
    mean = verdict.difference.spread.mean
    colour = "white" if abs(mean) > 0.7 * largest else "black"
    axes.text(column, row, f"{mean:+.1f}", ha="center", va="center", color=colour, fontsize=8)
    if verdict.told_apart:
        box = Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False, linewidth=1.5)
        axes.add_patch(box)


def page(found: Map, picture: str) -> str:
    """Sentences, problems, the figure's file and the table as Markdown."""
    own = table(found)
    parts = ["# Conditions", "\n".join(f"- {text}" for text in sentences(found))]
    if found.problems:
        parts += ["## What is wrong with the runs", "\n".join(f"- {p}" for p in found.problems)]
    parts.append(f"![{own.title}]({picture})")
    more = [changes(found)] if found.changes else []
    more += [scale(found)] if _terms(found) else []
    for shown in (own, *more):
        parts += [f"## {shown.title}", markdown(shown), *shown.notes]
    runs = _runs(found)
    return "\n\n".join([*parts, f"{len(runs)} runs{made(runs)}."]) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.conditions", description=__doc__)
    parser.add_argument("source", type=Path, metavar="DIR|FILE.csv")
    parser.add_argument("--by", nargs="+", required=True, metavar="KEY")
    parser.add_argument("--baseline", metavar="TEXT", help="as in sampler=all, or a part of it")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--page", type=Path, metavar="FILE")
    options = parser.parse_args()
    source = options.source
    if not source.exists():
        raise SystemExit(f"{source}: no such folder or file")
    out = options.out or (source / "report" if source.is_dir() else source.parent)
    try:
        runs = read(source) if source.is_dir() else read_csv(source)
        found = make(runs, options.by, options.baseline)
    except LookupError as error:
        raise SystemExit(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        write_csv(runs, out / "conditions.csv")
    (out / "conditions.png").write_bytes(png(figure(found)))
    (out / "conditions.md").write_text(page(found, "conditions.png"))
    if options.page:
        put(markdown(table(found)) + "\n", (out / "conditions.csv").as_posix(), options.page)
    print("\n".join([*found.problems, *sentences(found), str(out / "conditions.md")]))


if __name__ == "__main__":
    main()
