"""A study as plain sentences: one a method, what is told apart first."""

from experiments.report.images import LEVEL, Interval
from experiments.report.statistics import Verdict, seeds_needed
from experiments.report.study import Study
from experiments.report.tables import compare, in_family, interval, not_learnt, percent_range

# AP in percent that people would change their detector for.
WORTH = 0.5


def sentences(study: Study) -> list[str]:
    """What can be said of each method that is compared, and with how many seeds more could be."""
    if not study.compared:
        return []
    found, failed = compare(study), not_learnt(study)
    tested = {method: verdict for method, verdict in found.items() if verdict.p is not None}
    said = [f"The baseline is `{study.baseline}`."]
    said += [_told(method, verdict) for method, verdict in tested.items() if verdict.told_apart]
    for method, verdict in tested.items():
        if method in failed:
            said.append(_failed(study, method))
        elif not verdict.told_apart:
            said.append(_told(method, verdict))
    said += [_one_seed(m, v, study.images.get(m)) for m, v in found.items() if m not in tested]
    said += [
        f"`{method}` shares no seed with the baseline: nothing can be said."
        for method in study.compared
        if method not in found
    ]
    own = sum(in_family(study, method) for method in tested)
    largest = max(own, len(tested) - own)
    return [*said, *_needed({m: v for m, v in tested.items() if m not in failed}, largest)]


def _told(method: str, verdict: Verdict) -> str:
    difference = verdict.difference.spread
    how = "is not told apart from"
    if verdict.told_apart:
        how = f"is {'better' if difference.mean > 0 else 'worse'} than"
    level, between = interval(verdict)
    own = "" if verdict.difference.common else ", by a spread of its own"
    return (
        f"`{method}` {how} the baseline with {difference.n} seeds: {difference.mean:+z.2f} AP, "
        f"{level} interval {between}{own}."
    )


def _failed(study: Study, method: str) -> str:
    pairs = study.pairs(method)
    own, base = (
        sum(study.values(name, "AP")[seed] for seed in pairs) / len(pairs)
        for name in (method, study.baseline or "")
    )
    return (
        f"`{method}` did not learn with these settings: an AP of {own:.1f} where the baseline has "
        f"{base:.1f}, with {len(pairs)} seeds."
    )


def _one_seed(method: str, verdict: Verdict, images: Interval | None) -> str:
    other = "" if images is None else f" {_of_images(images)}"
    return (
        f"`{method}` has one seed in common with the baseline "
        f"({verdict.difference.spread.mean:+z.2f} AP): nothing can be said, because one seed does "
        f"not show how much seeds differ.{other}"
    )


def _of_images(images: Interval) -> str:
    return (
        f"With other images than the {images.images} of the validation set these two runs would "
        f"differ by {percent_range(images.low, images.high)} ({100 * LEVEL:.0f} % interval); that "
        "is of the images, not of the training, which another seed changes too."
    )


def _needed(verdicts: dict[str, Verdict], tests: int) -> list[str]:
    """A sentence for all methods of the common spread, and one for each other."""
    said = {}
    for method, verdict in sorted(verdicts.items(), key=lambda item: not item[1].difference.common):
        std, common = verdict.difference.spread.std, verdict.difference.common
        assert std is not None
        share = sum(v.difference.common for v in verdicts.values()) if common else 1
        alone, among = seeds_needed(WORTH, std), seeds_needed(WORTH, std, tests, share)
        more = f", among {tests} methods {among}" if tests > 1 else ""
        of = "the common spread" if common else f"the spread of `{method}`"
        said[of] = (
            f"At {of} ({std:.2f}) a pair alone takes {alone} seeds to tell a difference of {WORTH} "
            f"AP{more}."
        )
    return list(said.values())
