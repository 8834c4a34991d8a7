"""A study as sentences and tables of text, for any kind of page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report.runs import METRICS
from experiments.report.statistics import (
    ALPHA,
    POWER,
    Difference,
    Spread,
    Verdict,
    paired,
    seeds_needed,
    spread,
    verdicts,
)
from experiments.report.study import Study

NONE = "–"
# AP in percent that people would change their detector for.
WORTH = 0.5


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; the first column is code, and ``notes`` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def compare(study: Study) -> dict[str, Verdict]:
    """The verdict on the AP, in percent, of every method that shares a seed with the baseline."""
    if study.baseline is None:
        return {}
    base = study.values(study.baseline, "AP")
    values = {method: study.values(method, "AP") for method in study.compared}
    return verdicts({m: paired(own, base) for m, own in values.items() if own.keys() & base.keys()})


def tables(study: Study) -> list[Table]:
    """All tables of a study."""
    differences = [_differences(study)] if study.compared else []
    return [*differences, _overall(study), _per_class(study), _cost(study)]


def sentences(study: Study) -> list[str]:
    """What can be said of each method that is compared."""
    found = compare(study)
    return [
        _sentence(method, study.baseline or "", found[method])
        if method in found
        else f"`{method}` shares no seed with `{study.baseline}`: nothing can be said."
        for method in study.compared
    ]


def _sentence(method: str, baseline: str, verdict: Verdict) -> str:
    difference = verdict.difference.spread
    mean = f"{difference.mean:+.2f} AP"
    if verdict.interval is None or difference.std is None:
        return (
            f"`{method}` has one seed in common with `{baseline}` ({mean}): nothing can be said, "
            "because one seed does not show how much seeds differ."
        )
    how = "is not told apart from"
    if verdict.told_apart:
        how = f"is {'better' if difference.mean > 0 else 'worse'} than"
    return (
        f"`{method}` {how} `{baseline}` with {difference.n} seeds: {mean}, "
        f"{_interval(verdict)}. {_needed(difference.std)}"
    )


def _interval(verdict: Verdict) -> str:
    assert verdict.interval is not None and verdict.level is not None
    low, high = verdict.interval
    return f"{100 * verdict.level:.3g} % interval {low:+.2f} to {high:+.2f}"


def _needed(std: float) -> str:
    n = seeds_needed(WORTH, std)
    return f"At this spread ({std:.2f}) it takes {n} seeds to tell a difference of {WORTH} AP."


def _differences(study: Study) -> Table:
    rows = [
        _difference_row(method, verdict.difference, verdict)
        for method, verdict in compare(study).items()
    ]
    columns = ["method", "difference in AP", "interval", "p (Holm)", "spread", "seeds"]
    notes = [
        "Differences are paired by seed: runs of one seed share initial weights, images, their "
        "order and augmentation. Intervals and p are Student's t for the mean of the differences. "
        f"Holm's correction for the number of methods keeps the chance of telling any apart that "
        f"does not differ at {100 * ALPHA:.0f} %; each interval has the level of its method's step "
        "of that procedure, so it leaves zero out exactly where the method is told apart. "
        f"The seeds needed are those of one paired t test at {100 * ALPHA:.0f} % that finds the "
        f"difference with a chance of {100 * POWER:.0f} %, from a spread that few seeds give only "
        "roughly.",
    ]
    return Table(f"Difference to {study.baseline}", columns, rows, notes)


def _difference_row(method: str, difference: Difference, verdict: Verdict) -> list[str]:
    own = difference.spread
    first = [method, f"{own.mean:+.2f}"]
    if own.std is None:
        return [*first, NONE, NONE, NONE, "1"]
    p = "< 0.001" if (verdict.p or 0) < 0.001 else f"{verdict.p:.3f}"
    return [*first, _interval(verdict), p, f"{own.std:.2f}", str(own.n)]


def _overall(study: Study) -> Table:
    rows = [_figures(study, method, METRICS) for method in study.methods]
    notes = [
        "COCO's figures in percent after the last step: mean ± standard deviation over the seeds, "
        f"{NONE} where a run has none (no such object)."
    ]
    return Table("Figures", ["method", "seeds", *METRICS], rows, notes)


def _per_class(study: Study) -> Table:
    runs = [run for by_seed in study.methods.values() for run in by_seed.values()]
    names = list(dict.fromkeys(n for run in runs for n in run.figures if n not in METRICS))
    columns = ["method", "seeds", *(name.removeprefix("AP ") for name in names)]
    return Table("AP by class", columns, [_figures(study, m, names) for m in study.methods])


def _figures(study: Study, method: str, names: Sequence[str]) -> list[str]:
    cells = [_mean(list(study.values(method, name).values())) for name in names]
    return [method, str(len(study.methods[method])), *cells]


def _mean(values: Sequence[float], digits: int = 1) -> str:
    """``53.7 ± 0.4``; of one value the value alone; a dash where a run has none."""
    if any(math.isnan(value) for value in values):
        return NONE
    return _shown(spread(values), digits)


def _shown(found: Spread, digits: int) -> str:
    more = "" if found.std is None else f" ± {found.std:.{digits}f}"
    return f"{found.mean:.{digits}f}{more}"


def _cost(study: Study) -> Table:
    seconds = {method: _seconds(study, method) for method in study.methods}
    base = seconds.get(study.baseline or "", {})
    rows = [
        [method, str(len(own)), _mean(list(own.values()), 0), _times(own, base)]
        for method, own in seconds.items()
    ]
    notes = [
        "Wall time with validation; it compares only where the runs had the same machine to "
        "themselves."
    ]
    return Table("Cost", ["method", "seeds", "seconds a run", "times the baseline's"], rows, notes)


def _seconds(study: Study, method: str) -> dict[int, float]:
    return {
        s: math.nan if r.seconds is None else r.seconds for s, r in study.methods[method].items()
    }


def _times(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    """The mean ratio over the seeds of both."""
    ratios = [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
    return _mean(ratios, 2) if ratios else NONE
