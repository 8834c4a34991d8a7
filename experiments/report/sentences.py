"""A study as plain sentences: what was compared, the answer in one sentence, and what follows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from experiments.report.differences import is_blocked
from experiments.report.plan import (
    POWER,
    RANGE,
    on_repetition,
    seeds_needed,
    smallest_seen,
    std_range,
)
from experiments.report.runs import FACTS, Run
from experiments.report.spread import std_of_runs
from experiments.report.study import Study
from experiments.report.tables import compare, groups, interval
from experiments.report.verdicts import (
    BETTER,
    EQUIVALENT,
    FAILED,
    UNDECIDED,
    UNTESTED,
    WORSE,
    Verdict,
)

WORTH = 0.5  # a difference in AP (percent) for which people would change their detector


def facts(study: Study) -> str:
    """What was compared: data, images, network, length, runs, seeds, code."""
    runs = study.runs
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    parts = setting(runs)
    parts += [f"{len(study.folds)} folds"] if study.folds else []
    counts = sorted({len(own) for own in study.methods.values()})
    parts += [f"{_from_to(counts)} runs per method, {len(runs)} in all"]
    parts += [f"seed{'s' * (len(seeds) > 1)} {_from_to(seeds)}"] if seeds else []
    return "; ".join([*parts, *code(runs)])


def setting(runs: Sequence[Run]) -> list[str]:
    """Data, network, images and length that all runs share."""
    parts = [_same(runs, key) for key in FACTS]
    images = _same(runs, "images")
    steps = sorted({run.steps for run in runs if run.steps})
    parts += [f"{images} test images" if images else ""]
    return [part for part in [*parts, f"{_from_to(steps)} steps" if steps else ""] if part]


def code(runs: Sequence[Run]) -> list[str]:
    """The commit, and how many machines there were."""
    commits = sorted({run.made["commit"] for run in runs if "commit" in run.made})
    machines = {run.made.get("machine", "") for run in runs}
    parts = [f"commit {', '.join(commits)}"] if commits else []
    return parts + ([f"{len(machines)} machines"] if len(machines) > 1 else [])


def page_title(study: Study) -> str:
    """The page's title, with the data if all runs share them."""
    data = _same(study.runs, "data")
    return f"Comparison on {data}" if data else "Comparison"


def _same(runs: Sequence[Run], key: str) -> str:
    found = {run.made.get(key, "") for run in runs}
    return found.pop() if len(found) == 1 else ""


def _from_to(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def headline(study: Study) -> str:
    """The answers in one sentence, and what could have been seen; "" without a comparison."""
    found = compare(study)
    if not found:
        return ""
    parts = [
        f"of {len(own)} {name} {counted([found[method] for method in own])}"
        for name, own in groups(study, found)
    ]
    return f"Compared with `{study.baseline}`, {'; '.join(parts)}.{_seen(found)}"


def counted(own: Sequence[Verdict]) -> str:
    """How many methods have which answer."""
    counts = Counter(verdict.answer for verdict in own)
    said = [f"{counts[BETTER] or 'none'} {_is(counts[BETTER])} shown better"]
    said += [f"{counts[WORSE] or 'none'} {_is(counts[WORSE])} worse"]
    others = (EQUIVALENT, UNDECIDED, FAILED, UNTESTED)
    said += [f"{counts[answer]} {answer}" for answer in others if counts[answer]]
    return ", ".join(said)


def _is(number: int) -> str:
    return "is" if number < 2 else "are"


def _seen(found: Mapping[str, Verdict]) -> str:
    least = least_seen(found)
    if least is None:
        return ""
    return (
        f" This study detects a true difference of {least:.1f} AP with 80 % power (four times in "
        "five)."
    )


def least_seen(found: Mapping[Any, Verdict]) -> float | None:
    """The true difference in AP that the typical comparison detects with 80 % power, or None."""
    least = [
        smallest_seen(_half(v), v.difference.scale)
        for v in found.values()
        if v.difference.scale is not None
    ]
    return median(least) if least else None


def _half(verdict: Verdict) -> float:
    assert verdict.interval is not None
    return (verdict.interval[1] - verdict.interval[0]) / 2


def sentences(study: Study) -> list[str]:
    """What the runs show, in the order in which a reader asks."""
    folds = [OF_FOLDS.format(len(study.folds))] if study.folds else []
    found = compare(study)
    if not found:
        return folds
    said = [headline(study), *folds, _images(study, found)]
    said += [_shown(m, v) for m, v in found.items() if v.answer in (BETTER, WORSE)]
    for answer, what in OTHERS.items():
        names = [f"`{method}`" for method, verdict in found.items() if verdict.answer == answer]
        said += [f"{what}: {', '.join(names)}."] if names else []
    needed = [] if study.folds else [_needed(study)]  # more seeds of a fold add no images
    planned = study.plan.said(study.fewest_seeds, study.alpha)
    return [text for text in [*said, planned, *needed] if text]


OF_FOLDS = (
    "The runs are of {} folds of the data. Folds are averaged, and runs are compared fold by fold. "
    "Training images are shared between folds, so the intervals are somewhat too narrow (Bengio "
    "and Grandvalet 2004)."
)
OTHERS = {
    EQUIVALENT: "Equivalent within the region that was given",
    UNDECIDED: "Undecided, which is not the same as equal",
    FAILED: "Did not learn with these settings (less than two thirds of the baseline's AP)",
    UNTESTED: "Not tested, because one run does not show how much runs differ",
}


def _images(study: Study, found: Mapping[str, Verdict]) -> str:
    if not any(verdict.p is not None for verdict in found.values()):
        return ""
    if study.folds or all(study.over_images(method) is not None for method in found):
        return "The intervals cover new seeds and new test images."
    return (
        "The intervals cover new seeds, not new test images: some runs have no stored detections."
    )


def _shown(method: str, verdict: Verdict) -> str:
    own = verdict.difference
    assert own.scale is not None
    again = on_repetition(own.mean, verdict.least or 0.0, own.scale)
    return (
        f"`{method}` is {verdict.answer}: {own.mean:+z.2f} AP ({interval(verdict)}) with {own.n} "
        f"runs. If the study is repeated, expect roughly {again:+z.1f} AP: a difference that is "
        "shown is too large on average."
    )


def _needed(study: Study) -> str:
    number = sum(verdict.p is not None for verdict in study.verdicts.values())
    if not number:
        return ""
    std, freedom = std_of_runs(study.learnt, is_blocked(study.learnt, study.rules))
    low, high = std_range(std, freedom)
    fewest, most = seeds_needed(WORTH, low), seeds_needed(WORTH, high)
    several = f", {seeds_needed(WORTH, std, number)} when {number} are" if number > 1 else ""
    return (
        f"The sd of a run is {std:.2f} ({100 * RANGE:.0f} % interval {low:.2f} to {high:.2f}), "
        f"pooled over the methods. To detect {WORTH} AP with {100 * POWER:.0f} % power: "
        f"{seeds_needed(WORTH, std)} seeds per method ({fewest} to {most}) when one method is "
        f"compared{several}."
    )
