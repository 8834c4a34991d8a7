"""A study as plain sentences: one per method, those with a difference first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.report.images import LEVEL, Interval
from experiments.report.statistics import Verdict, seeds_needed
from experiments.report.study import Study
from experiments.report.tables import compare, interval, not_learnt, percent_range

WORTH = 0.5  # a difference in AP (percent) for which people would change their detector


def sentences(study: Study) -> list[str]:
    """What the runs show of each method that is compared, and how many seeds would show more."""
    folds = [_of_folds(study)] if study.folds else []
    if not study.compared:
        return folds
    found, failed = compare(study), not_learnt(study)
    learnt = {method: verdict for method, verdict in found.items() if method not in failed}
    tested = {method: verdict for method, verdict in learnt.items() if verdict.p is not None}
    said = [f"The baseline is `{study.baseline}`.", *folds]
    for differs in (True, False):
        those = {m: v for m, v in tested.items() if v.differs == differs}
        said += [_result(method, verdict) for method, verdict in those.items()]
    said += [_failed(study, method, found[method]) for method in found if method in failed]
    said += [_one_seed(m, v, study.images.get(m)) for m, v in learnt.items() if m not in tested]
    said += [
        f"`{method}` shares no seed with the baseline: no comparison."
        for method in study.compared
        if method not in found
    ]
    sizes = Counter(study.in_family(m) for m, v in found.items() if v.p is not None)
    return [*said, *_needed(study, tested, sizes)]


def _of_folds(study: Study) -> str:
    return (
        f"The runs are of {len(study.folds)} folds of the data. Folds are averaged and paired as "
        "seeds are: a pair of a seed and a fold counts as a seed here. Training images are shared "
        "between folds, so the intervals are somewhat too narrow (Bengio and Grandvalet 2004)."
    )


def _result(method: str, verdict: Verdict) -> str:
    difference = verdict.difference.spread
    how = "shows no difference to"
    if verdict.differs:
        how = f"is {'better' if difference.mean > 0 else 'worse'} than"
    level, between = interval(verdict)
    own = "" if verdict.difference.common else ", with a standard deviation of its own"
    return (
        f"`{method}` {how} the baseline with {difference.n} seeds: {difference.mean:+z.2f} AP, "
        f"{level} interval {between}{own}."
    )


def _failed(study: Study, method: str, verdict: Verdict) -> str:
    own, base = (study.values(name, "AP").values() for name in (method, study.baseline or ""))
    more = f" {_result(method, verdict)}" if verdict.differs else ""
    return (
        f"`{method}` did not learn with these settings: an AP of {fmean(own):.1f} over {len(own)} "
        f"seed(s); the baseline has {fmean(base):.1f}.{more}"
    )


def _one_seed(method: str, verdict: Verdict, images: Interval | None) -> str:
    other = "" if images is None else f" {_of_images(images)}"
    return (
        f"`{method}` has one seed in common with the baseline "
        f"({verdict.difference.spread.mean:+z.2f} AP): no comparison, because one seed does not "
        f"show how much seeds differ.{other}"
    )


def _of_images(images: Interval) -> str:
    return (
        f"On other images than the {images.images} of the validation set these two runs would "
        f"differ by {percent_range(images.low, images.high)} ({100 * LEVEL:.0f} % interval). This "
        "is about the images alone; another seed changes the training too."
    )


def _needed(study: Study, verdicts: Mapping[str, Verdict], sizes: Mapping[bool, int]) -> list[str]:
    """A sentence for all methods with the common standard deviation, and one per other method.

    Args:
        sizes: how many methods are tested together, by whether they are of the family.
    """
    common = {m: v.difference for m, v in verdicts.items() if v.difference.common}
    alone = {m: v.difference for m, v in verdicts.items() if not v.difference.common}
    said = []
    if common:
        std = next(iter(common.values())).spread.std or 0.0
        own = sorted({sizes[study.in_family(method)] for method in common}, reverse=True)
        said.append(_seeds("the common standard deviation", std, own, len(common)))
    for method, difference in alone.items():
        own = [sizes[study.in_family(method)]]
        said.append(
            _seeds(f"the standard deviation of `{method}`", difference.spread.std or 0.0, own, 1)
        )
    return said


def _seeds(of: str, std: float, sizes: Sequence[int], share: int) -> str:
    among = [
        f"; with {tests} methods{' that share it' if share > 1 else ''}: "
        f"{seeds_needed(WORTH, std, tests, share)}"
        for tests in sizes
        if tests > 1
    ]
    return (
        f"At {of} ({std:.2f}) one pair alone needs {seeds_needed(WORTH, std)} seeds to show a "
        f"difference of {WORTH} AP{''.join(among)}."
    )
