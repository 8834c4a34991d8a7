"""A study as a plain sentence a method."""

from experiments.report.images import LEVEL, Interval
from experiments.report.statistics import Verdict, seeds_needed
from experiments.report.study import Study
from experiments.report.tables import compare, interval, percent_range

# AP in percent that people would change their detector for.
WORTH = 0.5


def sentences(study: Study) -> list[str]:
    """What can be said of each method that is compared."""
    found = compare(study)
    methods = sum(verdict.p is not None for verdict in found.values())
    return [
        _sentence(method, study.baseline or "", found[method], methods, study.images.get(method))
        if method in found
        else f"`{method}` shares no seed with `{study.baseline}`: nothing can be said."
        for method in study.compared
    ]


def _sentence(
    method: str, baseline: str, verdict: Verdict, methods: int, images: Interval | None
) -> str:
    difference = verdict.difference.spread
    mean = f"{difference.mean:+z.2f} AP"
    if verdict.interval is None or difference.std is None:
        other = "" if images is None else f" {_of_images(images)}"
        return (
            f"`{method}` has one seed in common with `{baseline}` ({mean}): nothing can be said, "
            f"because one seed does not show how much seeds differ.{other}"
        )
    how = "is not told apart from"
    if verdict.told_apart:
        how = f"is {'better' if difference.mean > 0 else 'worse'} than"
    level, between = interval(verdict)
    of = "common spread" if verdict.difference.common else "method's own spread"
    return (
        f"`{method}` {how} `{baseline}` with {difference.n} seeds: {mean}, "
        f"{level} interval {between}. {_needed(difference.std, of, methods)}"
    )


def _of_images(images: Interval) -> str:
    return (
        f"With other images than the {images.images} of the validation set these two runs would "
        f"differ by {percent_range(images.low, images.high)} ({100 * LEVEL:.0f} % interval); that "
        "is of the images, not of the training, which another seed changes too."
    )


def _needed(std: float, of: str, methods: int) -> str:
    alone, among = (seeds_needed(WORTH, std, tests) for tests in (1, methods))
    more = f", among {methods} methods {among}" if methods > 1 else ""
    return (
        f"At the {of} ({std:.2f}) a pair alone takes {alone} seeds to tell a difference of "
        f"{WORTH} AP{more}."
    )
