"""A study as tables of text, for any kind of page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.differences import is_blocked
from experiments.report.runs import (
    BY_CLASS,
    BY_FREQUENCY,
    COST,
    LOSS,
    MADE,
    METRICS,
    Run,
    machine,
)
from experiments.report.spread import Spread, seed_effect, spread
from experiments.report.study import Study
from experiments.report.verdicts import ALPHA, Verdict

NONE = "–"
FREQUENCIES = ("APr", "APc", "APf")


@dataclass(frozen=True)
class Table:
    """Rows of text under columns. The first column is code; ``notes`` stand below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def compare(study: Study) -> dict[str, Verdict]:
    """The verdict on the AP, in percent, of every method, the largest difference first."""
    return dict(sorted(study.verdicts.items(), key=lambda pair: -pair[1].difference.mean))


def groups(study: Study, methods: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The methods of the study's family apart from the others, each group by name."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    for method in methods:
        parts[study.in_family(method)].append(method)
    names = {False: "preset" if study.family else "method", True: "variant"}
    more = {False: "", True: f" ({study.family}=)"}
    return [
        (names[kind] + "s" * (len(own) > 1) + more[kind], own) for kind, own in parts.items() if own
    ]


def tables(study: Study) -> list[Table]:
    """All tables of a study."""
    differences = [_differences(study), *_by_frequency(study)] if study.compared else []
    errors = [_errors(study)] if costs(study) else []
    scale = [_scale(study)] if study.compared and figures_named(study.runs, LOSS) else []
    first, *others = [_by_class(study, prefix) for prefix in BY_CLASS]
    classes = [first, *(table for table in others if len(table.columns) > 2)]
    return [*differences, _cost(study), _overall(study), *classes, *errors, *scale]


def costs(study: Study) -> list[str]:
    """The names of the figures that say what errors cost, if any run has them."""
    values = {
        n: [run.figures.get(n, math.nan) for run in study.runs]
        for n in figures_named(study.runs, COST)
    }
    return [name for name, found in values.items() if not all(map(math.isnan, found))]


def figures_named(runs: Sequence[Run], prefix: str) -> list[str]:
    """The names of all figures of the runs that begin with ``prefix``."""
    found = dict.fromkeys(name for run in runs for name in run.figures)
    return [name for name in found if name.startswith(prefix)]


def interval(verdict: Verdict) -> str:
    """The ends of a verdict's interval, as text."""
    if verdict.interval is None:
        return NONE
    low, high = verdict.interval
    return f"{low:+z.2f} to {high:+z.2f}"


def _differences(study: Study) -> Table:
    columns = ["method", "difference in AP", "interval", "answer", "p", "p (Holm)", "sd", "runs"]
    found = compare(study)
    order = [m for _, methods in groups(study, found) for m in methods]
    rows = [_difference_row(method, found[method]) for method in order]
    return Table(f"Difference to {study.baseline}", columns, rows, notes(study, found))


def _difference_row(method: str, verdict: Verdict) -> list[str]:
    own = verdict.difference
    first = [method, f"{own.mean:+z.2f}", interval(verdict), verdict.answer]
    p = [NONE if value is None else p_value(value) for value in (verdict.p, verdict.holm)]
    return [*first, *p, NONE if own.std is None else f"{own.std:.2f}", str(own.n)]


def frequencies(study: Study) -> list[str]:
    """Which of APr, APc and APf all runs have, where that is more than one."""
    names = [
        name
        for name in FREQUENCIES
        if not any(math.isnan(run.figures.get(name, math.nan)) for run in study.runs)
    ]
    return names if len(names) > 1 else []


def _by_frequency(study: Study) -> list[Table]:
    names = frequencies(study)
    if not names:
        return []
    found = {name: study.verdicts_on(name) for name in names}
    rows = [[m, *(_in_one(found[name][m]) for name in names)] for m in compare(study)]
    notes = [
        "AP of classes in below 10 (APr), 10 to 99 (APc), and 100 or more (APf) training images: "
        "difference, interval and answer. p is corrected for the methods of a column, not for the "
        "columns together. Errors are those of the runs alone, not of the images."
    ]
    return [Table(f"Differences to {study.baseline} by frequency", ["method", *names], rows, notes)]


def _in_one(verdict: Verdict) -> str:
    return f"{verdict.difference.mean:+z.1f} ({interval(verdict)}), {verdict.answer}"


def notes(study: Study, found: Mapping[str, Verdict]) -> list[str]:
    """How the answers were found."""
    tested = [verdict for verdict in found.values() if verdict.p is not None]
    if not tested:
        return ["One run does not show how much runs differ: nothing is tested."]
    return [_by_seed(study), COMMON if study.plan.common else POOLED, _together(tested)]


def _by_seed(study: Study) -> str:
    if study.folds:
        return (
            "Methods are compared fold by fold, since images are the same for all, with one value "
            "per fold, the mean over its seeds. Each fold has test images of its own, so that the "
            "spread of the folds has the error of the images too."
        )
    learnt = study.learnt
    p = equals(p_value(seed_effect(learnt)))
    if is_blocked(learnt, study.rules):
        return f"Runs are paired by seed: an F test finds an effect of the seed (p {p})."
    return f"Runs are not paired: an F test finds no effect of the seed (p {p})."


def equals(text: str) -> str:
    """A p after the sign."""
    return text if text.startswith("<") else f"= {text}"


POOLED = (
    "The sd of a run is estimated from the method's own runs and, as far as the methods agree, "
    "from all methods' runs (Smyth 2004). The baseline's sd comes from its own runs only. So an "
    "unsteady method or baseline rarely causes a false difference."
)
COMMON = (
    "One sd for all methods and the baseline (`--common`): it needs methods that are equally "
    "steady, which few runs cannot show, and shows false differences where they are not."
)


def _together(tested: Sequence[Verdict]) -> str:
    levels = [100 * v.level for v in tested if v.level is not None]
    return (
        f"p is that of step-down Dunnett for all {len(tested)} methods together: it keeps the "
        "probability of showing any difference that does not exist at "
        f"{100 * ALPHA:.0f} %, and p (Holm) stands beside it. The intervals hold together; each "
        f"alone has a level of {min(levels):.1f} to {max(levels):.1f} %. An interval that "
        "excludes 0 shows a difference. Rarely, the interval of a shown difference touches 0: the "
        "step-down test is a little sharper than the intervals."
    )


def p_value(p: float) -> str:
    """A p with three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _overall(study: Study) -> Table:
    known = {name for run in study.runs for name in run.figures}
    names = [*METRICS, *(name for name in BY_FREQUENCY if name in known)]
    rows = [_figures(study, method, names) for method in study.methods]
    notes = [
        "COCO's metrics in percent after the last step: mean ± standard deviation over the seeds. "
        f"{NONE}: a run has no such value, because there is no such object."
    ]
    return Table("Figures", ["method", "seeds", *names], rows, notes)


def _by_class(study: Study, prefix: str) -> Table:
    names = figures_named(study.runs, prefix)
    columns = ["method", "seeds", *(name.removeprefix(prefix) for name in names)]
    rows = [_figures(study, method, names) for method in study.methods]
    return Table(f"{prefix}by class", columns, rows)


def _errors(study: Study) -> Table:
    names = costs(study)
    columns = ["method", "seeds", *(name.removeprefix(COST) for name in names)]
    rows = [_figures(study, method, names) for method in study.methods]
    return Table("What errors cost", columns, rows, [OF_ERRORS])


OF_ERRORS = (
    "The AP50 in percent that each kind of error costs: what AP50 would gain if this kind alone "
    "were corrected (Bolya et al. 2020, arXiv 2008.08115), mean ± standard deviation over the "
    "seeds. Localisation: the right class at an IoU of 0.1 to 0.5. Classification: a wrong class "
    "at 0.5 or more. Both: a wrong class at 0.1 to 0.5. Duplicate: of an object that a detection "
    "with a higher score has found. Background: at most 0.1 with any object. Missed: objects that "
    "no detection finds, and none would with its class or box corrected. The sum of the costs is "
    "not 100 % minus AP50."
)


def _scale(study: Study) -> Table:
    names = figures_named(study.runs, LOSS)
    columns = ["method", "seeds", *(name.removeprefix(LOSS) for name in names)]
    rows = [_scale_row(study, method, names) for method in study.compared]
    notes = [
        "The mean of each loss term over a run, divided by the baseline's with the same seed: mean "
        "± standard deviation over the seeds. A method that changes it also changes how fast that "
        "part of the network learns. With its inverse as the term's `loss_weight`, the method has "
        "the baseline's mean loss. These are values, not gradients: of two losses with the same "
        "value, the one of few hard samples has the larger gradient."
    ]
    return Table("Scale of the losses", columns, rows, notes)


def _scale_row(study: Study, method: str, names: Sequence[str]) -> list[str]:
    base = study.baseline or ""
    cells = [
        mean_of(ratios(study.values(method, name), study.values(base, name)), 2) for name in names
    ]
    return [method, str(len(study.pairs(method))), *cells]


def _figures(study: Study, method: str, names: Sequence[str]) -> list[str]:
    cells = [mean_of(list(study.values(method, name).values())) for name in names]
    return [method, str(len(study.methods[method])), *cells]


def mean_of(values: Sequence[float], digits: int = 1) -> str:
    """``53.7 ± 0.4``, or one value alone; a dash if there is none, or if one is NaN."""
    if not values or any(math.isnan(value) for value in values):
        return NONE
    return _shown(spread(values), digits)


def _shown(found: Spread, digits: int) -> str:
    more = "" if found.std is None else f" ± {found.std:.{digits}f}"
    return f"{found.mean:.{digits}f}{more}"


def _cost(study: Study) -> Table:
    rows = [
        [
            method,
            str(len(runs)),
            mean_of(_measured(runs, "step_seconds"), 3),
            _times(runs, study.methods.get(study.baseline or "", {})),
            mean_of(_measured(runs, "seconds"), 0),
            mean_of(_measured(runs, "memory"), 0),
        ]
        for method, runs in study.methods.items()
    ]
    columns = ["method", "runs", "seconds per step", "times the baseline's"]
    columns += ["seconds per run", "peak memory, MB"]
    notes = [
        f"Wall time{made(study.runs)}. Times the baseline's: of runs with one seed on one "
        f"machine; {NONE}: there are none. Seconds per step: the median of the run, which a pause "
        "does not change, but other work on the machine does. Seconds per run: everything, with "
        "validation and pauses. Peak memory in MB of 10^6 bytes: on a GPU what PyTorch's allocator "
        "gave out, on a CPU all memory of the run's main process, with the libraries and without "
        "the data workers."
    ]
    return Table("Cost", columns, rows, notes)


def made(runs: Sequence[Run]) -> str:
    """The code and machine that all runs share, in parentheses."""
    same = {key: {run.made[key] for run in runs if key in run.made} for key in MADE}
    said = ", ".join(f"{key} {values.pop()}" for key, values in same.items() if len(values) == 1)
    return f" ({said})" if said else ""


def _measured(runs: Mapping[Any, Run], what: str) -> list[float]:
    """Time or memory; NaN where a run does not say."""
    found = [getattr(run, what) for run in runs.values()]
    return [math.nan if value is None else value for value in found]


def _times(own: Mapping[Any, Run], base: Mapping[Any, Run]) -> str:
    """Seconds per step, for the seeds that both have on one machine."""
    pairs = [(own[seed], base[seed]) for seed in own.keys() & base.keys()]
    same = [pair for pair in pairs if machine(pair[0]) == machine(pair[1])]
    steps = [(a.step_seconds, b.step_seconds) for a, b in same]
    return mean_of([a / b for a, b in steps if a and b], 2)


def ratios(own: Mapping[Any, float], base: Mapping[Any, float]) -> list[float]:
    """The ratios for the seeds that both have."""
    return [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
