"""A study as tables of text, for any kind of page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report.images import DRAWS, LEVEL, Interval
from experiments.report.runs import CLASS, COST, LOSS, MADE, METRICS, Run
from experiments.report.statistics import (
    ALPHA,
    LEARNT,
    POWER,
    UNSTEADY,
    Difference,
    Spread,
    Verdict,
    compared,
    failed,
    paired,
    spread,
    verdicts,
)
from experiments.report.study import Study

NONE = "–"
# Which methods are outside of the common spread.
ALONE = (
    f"a method with less than {100 * LEARNT:.0f} % of the baseline's AP, which did not learn, and "
    "one whose seeds differ far more than all others' (Cochran's test for an outlying variance, at "
    f"{100 * UNSTEADY:.0f} % for all methods together), and all where the baseline is such a one"
)


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; the first column is code, and ``notes`` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def compare(study: Study) -> dict[str, Verdict]:
    """The verdict on the AP, in percent, of every method that shares a seed with the baseline."""
    return _held(study, differences(study))


def _held(study: Study, found: Mapping[str, Difference]) -> dict[str, Verdict]:
    """By Holm's correction, which a family has for itself."""
    families = [
        verdicts({m: d for m, d in found.items() if study.in_family(m) == own})
        for own in (False, True)
    ]
    together = families[0] | families[1]
    return {method: together[method] for method in found}


def differences(study: Study) -> dict[str, Difference]:
    """In AP, in percent, of every method that shares a seed with the baseline."""
    return {} if study.baseline is None else compared(_values(study), study.baseline)


def by_themselves(study: Study) -> dict[str, Verdict]:
    """As ``compare``, each method with the spread of its own differences."""
    values, base = _values(study), study.baseline or ""
    found = {m: paired(values[m], values[base]) for m in study.compared if study.pairs(m)}
    return _held(study, found)


def not_learnt(study: Study) -> set[str]:
    """The methods that did not learn, next to the baseline."""
    return failed(_values(study), study.baseline) if study.baseline else set()


def _values(study: Study) -> dict[str, dict[int, float]]:
    return {method: study.values(method, "AP") for method in study.methods}


def tables(study: Study) -> list[Table]:
    """All tables of a study."""
    differences = [_differences(study)] if study.compared else []
    errors = [_errors(study)] if costs(study) else []
    scale = [_scale(study)] if study.compared and figures_named(study.runs, LOSS) else []
    return [*differences, _overall(study), _per_class(study), *errors, *scale, _cost(study)]


def costs(study: Study) -> list[str]:
    """The names of the figures of what errors cost, where any run has them."""
    values = {
        n: [run.figures.get(n, math.nan) for run in study.runs]
        for n in figures_named(study.runs, COST)
    }
    return [name for name, found in values.items() if not all(map(math.isnan, found))]


def figures_named(runs: Sequence[Run], prefix: str) -> list[str]:
    """Of the figures of any run that begin so."""
    found = dict.fromkeys(name for run in runs for name in run.figures)
    return [name for name in found if name.startswith(prefix)]


def interval(verdict: Verdict) -> tuple[str, str]:
    """Level, and low to high."""
    assert verdict.interval is not None and verdict.level is not None
    low, high = verdict.interval
    return f"{100 * verdict.level:.3g} %", f"{low:+z.2f} to {high:+z.2f}"


def percent_range(low: float, high: float) -> str:
    """Of fractions, in percent."""
    return f"{100 * low:+z.2f} to {100 * high:+z.2f}"


def _differences(study: Study) -> Table:
    columns = ["method", "difference in AP", "interval", "p (Holm)", "p alone", "spread", "seeds"]
    found, alone = compare(study), by_themselves(study)
    rows = [_difference_row(method, verdict, alone[method]) for method, verdict in found.items()]
    notes = [
        "Differences are paired by seed: runs of one seed share initial weights, images, their "
        "order and augmentation. Intervals and p are Student's t for the mean of the differences, "
        f"with one standard deviation for all methods{_pooled(found)}: that of randomised blocks. "
        f"Outside of it, with a spread of its own, is {ALONE}{_alone(found)}. Holm's correction "
        "for the number of methods keeps the chance of telling any apart that does not differ at "
        f"{100 * ALPHA:.0f} %{_families(study, found)}; each interval has the level of its "
        "method's step of that procedure, so it leaves zero out exactly where the method is told "
        "apart: an interval of that method, not of all together.",
        "That holds for methods that are about equally steady. Where they are not, the baseline "
        "above all, the common spread tells apart more often. The column p alone needs nothing of "
        "the kind: it is Holm's of each pair's own t test, from the spread of its own differences "
        "(the column spread), which with few seeds finds only what is very large.",
        f"The seeds needed are those of a paired t test at {100 * ALPHA:.0f} %, or of the common "
        "spread at that over the number of methods as the first of them is held, that finds the "
        f"difference with a chance of {100 * POWER:.0f} %, from a spread that few seeds give only "
        "roughly.",
    ]
    if study.images:
        columns.append("one pair, over images")
        rows = [[*row, _image_cell(study.images.get(row[0]))] for row in rows]
        notes.append(
            "The last column has two runs alone, the method's and the baseline's of the seed it "
            f"names: the {100 * LEVEL:.0f} % interval of their difference over {DRAWS} draws of "
            "the validation images with replacement, the same for both runs, each method for "
            f"itself. It shows how far the images decide, and nothing of other seeds. {NONE} "
            "where the two runs have no detections of the same images."
        )
    return Table(f"Difference to {study.baseline}", columns, rows, notes)


def _families(study: Study, found: Mapping[str, Verdict]) -> str:
    own = sum(map(study.in_family, found))
    if not own:
        return ""
    return f", for the {len(found) - own} without `{study.family}=` and the {own} with it apart"


def _pooled(found: Mapping[str, Verdict]) -> str:
    common = [v.difference for v in found.values() if v.p is not None and v.difference.common]
    if not common:
        return ""
    return f" ({common[0].spread.std:.2f}, {common[0].freedom} degrees of freedom)"


def _alone(found: Mapping[str, Verdict]) -> str:
    alone = [f"`{m}`" for m, v in found.items() if v.p is not None and not v.difference.common]
    return f": here {', '.join(alone)}" if alone else ""


def _image_cell(images: Interval | None) -> str:
    if images is None:
        return NONE
    return f"{percent_range(images.low, images.high)} (seed {images.seed})"


def _difference_row(method: str, verdict: Verdict, alone: Verdict) -> list[str]:
    own = alone.difference.spread
    first = [method, f"{own.mean:+z.2f}"]
    if own.std is None or verdict.p is None or alone.p is None:
        return [*first, NONE, NONE, NONE, NONE, str(own.n)]
    level, between = interval(verdict)
    p = [chance(verdict.p), chance(alone.p)]
    return [*first, f"{between} ({level})", *p, f"{own.std:.2f}", str(own.n)]


def chance(p: float) -> str:
    """A p in three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _overall(study: Study) -> Table:
    rows = [_figures(study, method, METRICS) for method in study.methods]
    notes = [
        "COCO's figures in percent after the last step: mean ± standard deviation over the seeds, "
        f"{NONE} where a run has none (no such object)."
    ]
    return Table("Figures", ["method", "seeds", *METRICS], rows, notes)


def _per_class(study: Study) -> Table:
    names = figures_named(study.runs, CLASS)
    columns = ["method", "seeds", *(name.removeprefix(CLASS) for name in names)]
    return Table("AP by class", columns, [_figures(study, m, names) for m in study.methods])


def _errors(study: Study) -> Table:
    names = costs(study)
    columns = ["method", "seeds", *(name.removeprefix(COST) for name in names)]
    rows = [_figures(study, method, names) for method in study.methods]
    notes = [
        "The AP50 in percent that each kind of error costs: what it would gain if this kind alone "
        "were mended (Bolya et al. 2020, arXiv 2008.08115), mean ± standard deviation over the "
        "seeds. Localisation: the right class at an IoU of 0.1 to 0.5; classification: a wrong "
        "class at 0.5 or more; both: a wrong class at 0.1 to 0.5; duplicate: of an object that a "
        "better score has found; background: at most 0.1 with any object; missed: objects that no "
        "detection finds, nor would with its class or box right. The costs do not add up to what "
        "AP50 lacks.",
    ]
    return Table("What errors cost", columns, rows, notes)


def _scale(study: Study) -> Table:
    names = figures_named(study.runs, LOSS)
    rows = [
        [
            method,
            str(len(study.pairs(method))),
            *(
                _times(study.values(method, name), study.values(study.baseline or "", name))
                for name in names
            ),
        ]
        for method in study.compared
    ]
    columns = ["method", "seeds", *(name.removeprefix(LOSS) for name in names)]
    notes = [
        "Each loss term's mean over a run, times the baseline's of the same seed, mean ± standard "
        "deviation over the seeds. A method that changes it changes how fast that part of the "
        "network learns, beside what it is meant to change. With one over it as the term's "
        "`loss_weight` the method has the baseline's mean loss. These are values, not gradients: "
        "of two losses of one value that of few hard samples has the larger gradient."
    ]
    return Table("Scale of the losses", columns, rows, notes)


def _figures(study: Study, method: str, names: Sequence[str]) -> list[str]:
    cells = [mean_of(list(study.values(method, name).values())) for name in names]
    return [method, str(len(study.methods[method])), *cells]


def mean_of(values: Sequence[float], digits: int = 1) -> str:
    """``53.7 ± 0.4``; of one value the value alone; a dash of none, or where a run has none."""
    if not values or any(math.isnan(value) for value in values):
        return NONE
    return _shown(spread(values), digits)


def _shown(found: Spread, digits: int) -> str:
    more = "" if found.std is None else f" ± {found.std:.{digits}f}"
    return f"{found.mean:.{digits}f}{more}"


def _cost(study: Study) -> Table:
    steps = {method: _measured(study, method, "step_seconds") for method in study.methods}
    base = steps.get(study.baseline or "", {})
    rows = [
        [
            method,
            str(len(own)),
            mean_of(list(own.values()), 3),
            _times(own, base),
            mean_of(list(_measured(study, method, "seconds").values()), 0),
            mean_of(list(_measured(study, method, "memory").values()), 0),
        ]
        for method, own in steps.items()
    ]
    columns = ["method", "seeds", "seconds a step", "times the baseline's"]
    columns += ["seconds a run", "peak memory, MB"]
    notes = [
        f"Wall time{made(study.runs)}; it compares only where the runs had the same share of the "
        "same machine. Of a step the median over the run, which a pause does not change; of a run "
        "all, with validation and pauses. Peak memory in megabytes of a million bytes: on a GPU "
        "what its allocator gave out, on a CPU all that the run's main process held, libraries "
        "included and data workers not."
    ]
    return Table("Cost", columns, rows, notes)


def made(runs: Sequence[Run]) -> str:
    """With what all runs were made that have the same of it."""
    same = {key: {run.made[key] for run in runs if key in run.made} for key in MADE}
    said = ", ".join(f"{key} {values.pop()}" for key, values in same.items() if len(values) == 1)
    return f" ({said})" if said else ""


def _measured(study: Study, method: str, what: str) -> dict[int, float]:
    """Times or memory by seed; NaN where a run does not say."""
    found = {seed: getattr(run, what) for seed, run in study.methods[method].items()}
    return {seed: math.nan if value is None else value for seed, value in found.items()}


def _times(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    return mean_of(ratios(own, base), 2)


def ratios(own: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Over the seeds of both."""
    return [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
