"""A study as tables of text, for any kind of page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report.images import DRAWS, LEVEL, Interval
from experiments.report.runs import BY_CLASS, BY_FREQUENCY, COST, LOSS, MADE, METRICS, Run
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
# Which methods have a standard deviation of their own.
ALONE = (
    f"It is not used for a method with less than {100 * LEARNT:.0f} % of the baseline's AP (it did "
    "not learn), for a method whose seeds differ far more than those of all others (Cochran's test "
    f"for an outlying variance, at {100 * UNSTEADY:.0f} % for all methods together), and for any "
    "method where the baseline is such a one; these have a standard deviation of their own"
)


@dataclass(frozen=True)
class Table:
    """Rows of text under columns. The first column is code; ``notes`` stand below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def compare(study: Study) -> dict[str, Verdict]:
    """The verdict on the AP, in percent, of every method that shares a seed with the baseline."""
    return _corrected(study, differences(study))


def _corrected(study: Study, found: Mapping[str, Difference]) -> dict[str, Verdict]:
    """With Holm's correction, one for the family and one for all other methods."""
    families = [
        verdicts({m: d for m, d in found.items() if study.in_family(m) == own})
        for own in (False, True)
    ]
    together = families[0] | families[1]
    return {method: together[method] for method in found}


def differences(study: Study) -> dict[str, Difference]:
    """The difference in AP, in percent, of every method that shares a seed with the baseline."""
    return {} if study.baseline is None else compared(_values(study), study.baseline)


def by_themselves(study: Study) -> dict[str, Verdict]:
    """As ``compare``, each method with the spread of its own differences."""
    values, base = _values(study), study.baseline or ""
    found = {m: paired(values[m], values[base]) for m in study.compared if study.pairs(m)}
    return _corrected(study, found)


def not_learnt(study: Study) -> set[str]:
    """The methods that did not learn, measured by the baseline's AP."""
    return failed(_values(study), study.baseline) if study.baseline else set()


def _values(study: Study) -> dict[str, dict[int, float]]:
    return {method: study.values(method, "AP") for method in study.methods}


def tables(study: Study) -> list[Table]:
    """All tables of a study."""
    differences = [_differences(study)] if study.compared else []
    errors = [_errors(study)] if costs(study) else []
    scale = [_scale(study)] if study.compared and figures_named(study.runs, LOSS) else []
    first, *others = [_by_class(study, prefix) for prefix in BY_CLASS]
    classes = [first, *(table for table in others if len(table.columns) > 2)]
    return [*differences, _overall(study), *classes, *errors, *scale, _cost(study)]


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


def interval(verdict: Verdict) -> tuple[str, str]:
    """The level and the ends of a verdict's interval, as text."""
    assert verdict.interval is not None and verdict.level is not None
    low, high = verdict.interval
    return f"{100 * verdict.level:.3g} %", f"{low:+z.2f} to {high:+z.2f}"


def percent_range(low: float, high: float) -> str:
    """A range of fractions, in percent."""
    return f"{100 * low:+z.2f} to {100 * high:+z.2f}"


def _differences(study: Study) -> Table:
    columns = ["method", "difference in AP", "interval", "p (Holm)", "p alone", "spread", "seeds"]
    found, alone = compare(study), by_themselves(study)
    rows = [_difference_row(method, verdict, alone[method]) for method, verdict in found.items()]
    notes = [_of_intervals(study, found), OF_UNSTEADY, OF_SEEDS]
    if study.images:
        columns.append("one pair, over images")
        rows = [[*row, _image_cell(study.images.get(row[0]))] for row in rows]
        notes.append(OF_IMAGES)
    return Table(f"Difference to {study.baseline}", columns, rows, notes)


def _of_intervals(study: Study, found: Mapping[str, Verdict]) -> str:
    return (
        "Differences are paired by seed: runs of one seed share initial weights, images, their "
        "order and augmentation. Intervals and p come from Student's t for the mean of the "
        f"differences, with one standard deviation for all methods{_pooled(found)}, that of "
        f"randomised blocks. {ALONE}{_alone(found)}. Holm's correction for the number of methods "
        "keeps the probability of showing any difference that does not exist at "
        f"{100 * ALPHA:.0f} %{_families(study, found)}. Each interval has the level of its "
        "method's step of that procedure: it excludes zero exactly where a difference is shown. It "
        "is an interval of that method, not of all together."
    )


OF_UNSTEADY = (
    "This holds for methods that are about equally steady. Where they are not, above all where the "
    "baseline is not, the common standard deviation shows differences more often than stated. The "
    "column p alone does not need this: it is Holm's p of each pair's own t test, from the "
    "standard deviation of its own differences (the column spread). With few seeds it finds only "
    "very large differences."
)
OF_SEEDS = (
    "The seeds needed are those of a paired t test that finds the difference with a probability of "
    f"{100 * POWER:.0f} %: at {100 * ALPHA:.0f} % for one pair, and for several methods at that "
    "over their number, as in the first step of Holm's procedure. They follow from a standard "
    "deviation that few seeds give only roughly."
)
OF_IMAGES = (
    "The last column is about two runs alone, the method's and the baseline's of the seed that it "
    f"names: the {100 * LEVEL:.0f} % interval of their difference over {DRAWS} draws of the "
    "validation images with replacement, the same draws for both runs, without a correction for "
    "the number of methods. It shows how much the choice of images matters, and nothing about "
    f"other seeds. {NONE}: the two runs have no detections of the same images."
)


def _families(study: Study, found: Mapping[str, Verdict]) -> str:
    own = sum(map(study.in_family, found))
    if not own:
        return ""
    without = len(found) - own
    return f", separately for the methods with `{study.family}=` ({own}) and without it ({without})"


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
    p = [p_value(verdict.p), p_value(alone.p)]
    return [*first, f"{between} ({level})", *p, f"{own.std:.2f}", str(own.n)]


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
    cells = [_times(study.values(method, name), study.values(base, name)) for name in names]
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
    columns = ["method", "seeds", "seconds per step", "times the baseline's"]
    columns += ["seconds per run", "peak memory, MB"]
    notes = [
        f"Wall time{made(study.runs)}. Compare it only where the runs had the same share of the "
        "same machine. Seconds per step: the median over the run, which a pause does not change. "
        "Seconds per run: everything, with validation and pauses. Peak memory in MB of 10^6 bytes: "
        "on a GPU what PyTorch's allocator gave out, on a CPU all memory of the run's main "
        "process, with the libraries and without the data workers."
    ]
    return Table("Cost", columns, rows, notes)


def made(runs: Sequence[Run]) -> str:
    """The code and machine that all runs share, in parentheses."""
    same = {key: {run.made[key] for run in runs if key in run.made} for key in MADE}
    said = ", ".join(f"{key} {values.pop()}" for key, values in same.items() if len(values) == 1)
    return f" ({said})" if said else ""


def _measured(study: Study, method: str, what: str) -> dict[int, float]:
    """Time or memory by seed; NaN where a run does not say."""
    found = {seed: getattr(run, what) for seed, run in study.methods[method].items()}
    return {seed: math.nan if value is None else value for seed, value in found.items()}


def _times(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    return mean_of(ratios(own, base), 2)


def ratios(own: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """The ratios for the seeds that both have."""
    return [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
