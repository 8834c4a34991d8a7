"""The study's answer: each tuned arm against tuned random sampling, over the four data sets.

Runs are compared in pairs of one fold and one seed. AP is taken per fold, then averaged; the four
sets are fixed strata of equal weight. The errors of the runs and of the test images are added:
those of the images come from the draws that ``collect`` keeps.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from experiments.report.differences import Difference, Rules, averaged, compared
from experiments.report.images import difference_over
from experiments.report.runs import Run
from experiments.report.verdicts import Verdict, verdicts
from experiments.which_sampler.choose import ARMS, SETS

BASE, PRESET = "random", "preset"
REGION = 1.0  # AP; smaller differences do not matter
Key = tuple[str, str, int, int]  # set, arm, seed, fold


def by_key(runs: Sequence[Run], net: str) -> dict[Key, Run]:
    """The runs of one network by what they are.

    Raises:
        LookupError: one is missing or there twice.
    """
    found: dict[Key, Run] = {}
    for run in (run for run in runs if run.settings["net"] == net):
        name, _, arm = run.settings["case"].partition("_")
        key = (name, arm, run.seed or 0, int(run.settings["data.fold"]))
        if key in found:
            raise LookupError(f"two runs of {key}")
        found[key] = run
    pairs = sorted({(seed, fold) for *_, seed, fold in found})
    wanted = [(n, a, *pair) for n, a, pair in product(SETS, (*ARMS, PRESET), pairs)]
    missing = [key for key in wanted if key not in found]
    if not found:
        raise LookupError(f"no run of net={net}")
    if missing:
        raise LookupError(f"{len(missing)} runs are missing: {missing[0]}, ...")
    return found


def of_set(
    runs: Mapping[Key, Run], draws: Mapping[str, np.ndarray], name: str
) -> dict[str, Difference]:
    """By arm the difference on one data set, in percent. A run that diverged has an AP of 0."""
    own: dict[str, dict[tuple[int, int], Run]] = {arm: {} for arm in (BASE, *ARMS, PRESET)}
    for (of, arm, seed, fold), run in runs.items():
        if of == name:
            own[arm][seed, fold] = run
    values = {
        arm: {pair: 100 * run.figures.get("AP", 0.0) for pair, run in found.items()}
        for arm, found in own.items()
    }
    names = {arm: [run.name for run in found.values()] for arm, found in own.items()}
    over = {arm: difference_over(draws, names[arm], names[BASE]) for arm in own}
    images = {arm: found for arm, found in over.items() if found is not None}
    return compared(values, BASE, Rules(blocked=True, stream=SETS.index(name)), images)


def answer(
    runs: Sequence[Run], draws: Mapping[str, np.ndarray], net: str
) -> tuple[dict[str, Verdict], dict[str, dict[str, Difference]]]:
    """The verdict on each arm over all sets, and the differences by set.

    The four tuned arms are corrected together. The preset is the size of tuning itself, and a
    comparison of its own.
    """
    found = by_key(runs, net)
    by_set = {name: of_set(found, draws, name) for name in SETS}
    overall = averaged(list(by_set.values()))
    preset = {PRESET: overall.pop(PRESET)}
    return verdicts(overall, equivalent=REGION) | verdicts(preset, equivalent=REGION), by_set


def lines(
    found: Mapping[str, Verdict], by_set: Mapping[str, Mapping[str, Difference]]
) -> list[str]:
    """A line per arm: over all sets, and by set."""
    said = []
    for arm, verdict in found.items():
        low, high = verdict.interval or (np.nan, np.nan)
        p = np.nan if verdict.p is None else verdict.p
        sets = ", ".join(f"{name} {own[arm].mean:+z.1f}" for name, own in by_set.items())
        said.append(
            f"{arm:13} {verdict.answer:13} {verdict.difference.mean:+z.2f} "
            f"({low:+z.2f} to {high:+z.2f}), p {p:.3f}; {sets}"
        )
    return said
