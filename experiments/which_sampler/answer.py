"""The study's answer: each tuned arm against tuned random sampling.

Runs are compared fold by fold: one value per fold, the mean over its seeds. Each fold has test
images of its own, so that the spread of the folds has the error of the runs and of the images. The
data sets and networks are fixed strata of equal weight.

Shape letters: S strata, A arms, F folds.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import product

import numpy as np
from scipy.stats import f

from experiments.report.differences import Difference, Rules, averaged, compared
from experiments.report.images import difference_over
from experiments.report.runs import Run
from experiments.report.spread import by_fold
from experiments.report.verdicts import Verdict, verdicts
from experiments.which_sampler.choose import ARMS, SETS

BASE, PRESET = "random", "preset"
SEEDS = {"slim": 2, "lite0": 1}  # planned, by network
FOLDS = 5
REGION = 1.0  # AP; smaller differences do not matter
Stratum = tuple[str, str]  # network, set
Arms = dict[str, dict[tuple[int, int], Run]]  # arm -> (seed, fold) -> run


def by_stratum(
    runs: Sequence[Run], seeds: Mapping[str, int] = SEEDS, same: Collection[str] = ()
) -> dict[Stratum, Arms]:
    """The runs of the planned seeds by what they are; others are left out.

    Args:
        seeds: by network.
        same: sets on which tuning chose the preset: its runs are those of random sampling.

    Raises:
        LookupError: one is missing or there twice.
    """
    found: dict[Stratum, Arms] = {stratum: {} for stratum in product(seeds, SETS)}
    for run in runs:
        net, seed = run.settings["net"], run.seed or 0
        if seed >= seeds.get(net, 0):
            continue
        name, _, arm = run.settings["case"].partition("_")
        own, key = found[net, name].setdefault(arm, {}), (seed, int(run.settings["data.fold"]))
        if key in own:
            raise LookupError(f"two runs of {net} {name} {arm}, seed and fold {key}")
        own[key] = run
    for (_, name), arms in found.items():
        if name in same:
            arms[PRESET] = arms.get(BASE, {})
    missing = [
        f"{net} {name} {arm}, seed and fold {pair}"
        for (net, name), arms in found.items()
        for arm in (*ARMS, PRESET)
        for pair in product(range(seeds[net]), range(FOLDS))
        if pair not in arms.get(arm, {})
    ]
    if missing:
        raise LookupError(f"{len(missing)} runs are missing: {missing[0]}, ...")
    return found


def values(arms: Arms) -> dict[str, dict[int, float]]:
    """AP in percent by arm and fold. A run that diverged has an AP of 0."""
    return by_fold(
        {
            arm: {pair: 100 * run.figures.get("AP", 0.0) for pair, run in own.items()}
            for arm, own in arms.items()
        }
    )


def differences(found: Mapping[Stratum, Arms]) -> dict[Stratum, dict[str, Difference]]:
    """By stratum and arm the difference to tuned random sampling, in percent. All arms count."""
    return {
        stratum: compared(values(arms), BASE, Rules(blocked=True, stream=stream), apart=())
        for stream, (stratum, arms) in enumerate(found.items())
    }


def answers(of_strata: Mapping[Stratum, Mapping[str, Difference]]) -> dict[str, dict[str, Verdict]]:
    """The verdicts by group of strata: ``all``, which is the answer, each network, and each set.

    The four tuned arms are corrected together. The preset is the size of tuning itself, and a
    comparison of its own.
    """
    groups = {"all": list(of_strata)}
    for what in dict.fromkeys(part for stratum in zip(*of_strata, strict=True) for part in stratum):
        groups[what] = [stratum for stratum in of_strata if what in stratum]
    return {name: _judged([of_strata[s] for s in own]) for name, own in groups.items()}


def _judged(strata: Sequence[Mapping[str, Difference]]) -> dict[str, Verdict]:
    overall = averaged(strata)
    preset = {PRESET: overall.pop(PRESET)}
    return verdicts(overall, equivalent=REGION) | verdicts(preset, equivalent=REGION)


def interaction(found: Mapping[Stratum, Arms]) -> float:
    """p that the tuned arms' differences are the same in all strata, in 0..1.

    Analysis of variance: the squares of arm x stratum over those of arm x fold within a stratum,
    each by its degrees of freedom.
    """
    ap = np.array(
        [[list(own[arm].values()) for arm in ARMS] for own in map(values, found.values())]
    )
    rest = ap - ap.mean(1, keepdims=True)  # [S, A, F] without the folds' own effects
    cells = rest.mean(2)
    within = ((rest - cells[..., None]) ** 2).sum()
    between = ap.shape[2] * ((cells - cells.mean(0)) ** 2).sum()
    strata, arms, folds = ap.shape
    free = (strata - 1) * (arms - 1), strata * (arms - 1) * (folds - 1)
    return float(f.sf(between / free[0] / (within / free[1]), *free))


def images_alone(
    found: Mapping[Stratum, Arms], draws: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """By arm the standard error that the test images alone give the mean difference, in AP.

    From each run's AP on 500 draws of its fold's images; NaN if a run has none.
    """
    errors = {}
    for arm in (*ARMS[1:], PRESET):
        variances = []
        for arms in found.values():
            for fold in range(FOLDS):
                own, base = (
                    [r.name for (_, k), r in arms[a].items() if k == fold] for a in (arm, BASE)
                )
                over = difference_over(draws, own, base)
                variances.append(np.nan if over is None else np.nanvar(over))
        errors[arm] = float(np.sqrt(np.sum(variances)) / len(variances))
    return errors


def lines(found: Mapping[str, Mapping[str, Verdict]]) -> list[str]:
    """A line per group and arm."""
    said = []
    for group, own in found.items():
        for arm, verdict in own.items():
            low, high = verdict.interval or (np.nan, np.nan)
            p = np.nan if verdict.p is None else verdict.p
            mean = verdict.difference.mean
            said.append(
                f"{group:8} {arm:13} {verdict.answer:11} {mean:+z.2f} "
                f"({low:+z.2f} to {high:+z.2f}), p {p:.3f}"
            )
    return said
