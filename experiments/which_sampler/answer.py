"""The study's answer: each tuned arm against tuned random sampling.

Runs are compared fold by fold: one value per fold, the mean over networks, since these share the
fold's test images. Each fold has images of its own, so that the spread of the folds
has the error of the runs and of the images. It lacks what folds have in common, since they share
training images: ``cautious`` is the answer with an error that counts this too (Nadeau and Bengio
2003). The data sets are fixed strata of equal weight.

Shape letters: S sets, A arms, F folds.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np
from scipy.stats import f

from experiments.report.differences import DRAWS, Difference, Rules, averaged, compared
from experiments.report.images import difference_over
from experiments.report.runs import Run
from experiments.report.spread import Values
from experiments.report.verdicts import Verdict, verdicts
from experiments.which_sampler.choose import ARMS, SETS
from experiments.which_sampler.protocol import PRESET, STEPS, case_of

BASE = "random"
FOLDS = 5
REGION = 1.0  # AP; smaller differences do not matter
# Nadeau and Bengio (2003, equation 13): 1 / folds becomes 1 / folds + test / training images.
OVERLAP = (1 + FOLDS / (FOLDS - 1)) ** 0.5
WITHOUT_CHESS = "without chess"  # whose folds share scenes: a second answer, fixed beforehand
Stratum = tuple[str, str]  # network, set
Arms = dict[str, dict[int, Run]]  # arm -> fold -> run


def by_stratum(runs: Sequence[Run], same: Collection[str] = ()) -> dict[Stratum, Arms]:
    """The runs by what they are.

    Args:
        same: sets on which tuning chose the preset: its runs are those of random sampling.

    Raises:
        LookupError: a run is missing or there twice, or is a preset of ``same``.
    """
    found: dict[Stratum, Arms] = {stratum: {} for stratum in product(STEPS, SETS)}
    for run in runs:
        net, (name, arm) = run.settings["net"], case_of(run)
        own, fold = found[net, name].setdefault(arm, {}), int(run.settings["data.fold"])
        if fold in own:
            raise LookupError(f"two runs of {net} {name} {arm}, fold {fold}")
        own[fold] = run
    for (net, name), arms in found.items():
        if name in same:
            if PRESET in arms:
                raise LookupError(f"{net} {name}: the preset is random sampling, and has own runs")
            arms[PRESET] = arms.get(BASE, {})
    missing = [
        f"{net} {name} {arm}, fold {fold}"
        for (net, name), arms in found.items()
        for arm, fold in product((*ARMS, PRESET), range(FOLDS))
        if fold not in arms.get(arm, {})
    ]
    if missing:
        raise LookupError(f"{len(missing)} runs are missing: {missing[0]}, ...")
    return found


def values(found: Mapping[Stratum, Arms], name: str, nets: Sequence[str]) -> Values:
    """AP in percent on a set, by arm and fold: the mean over the networks.

    Networks share the test images of a fold, so that they are averaged before folds are compared.
    A run that diverged has an AP of 0.
    """
    return {
        arm: {
            fold: fmean(100 * found[net, name][arm][fold].figures.get("AP", 0.0) for net in nets)
            for fold in range(FOLDS)
        }
        for arm in found[nets[0], name]
    }


def diverged(found: Mapping[Stratum, Arms], name: str, nets: Sequence[str]) -> set[str]:
    """The arms of which a run on a set diverged."""
    return {
        arm
        for net in nets
        for arm, runs in found[net, name].items()
        if any("AP" not in run.figures for run in runs.values())
    }


def answers(found: Mapping[Stratum, Arms]) -> dict[str, dict[str, Verdict]]:
    """The verdicts by group: ``all``, which is the answer, each network, each set, and all sets
    ``without chess``.

    The four tuned arms are corrected together. The preset is the size of tuning itself, and a
    comparison of its own.
    """
    nets = list(dict.fromkeys(net for net, _ in found))
    groups: dict[str, tuple[Sequence[str], Sequence[str]]] = {"all": (nets, SETS)}
    groups |= {net: ([net], SETS) for net in nets}
    groups |= {name: (nets, (name,)) for name in SETS}
    groups[WITHOUT_CHESS] = (nets, [name for name in SETS if name != "chess"])
    return {group: _judged(found, *parts) for group, parts in groups.items()}


def cautious(found: Mapping[Stratum, Arms]) -> dict[str, Verdict]:
    """The verdicts of ``all``, with errors 1.5 times as large: folds share training images."""
    return _judged(found, list(dict.fromkeys(net for net, _ in found)), SETS, OVERLAP)


def _judged(
    found: Mapping[Stratum, Arms], nets: Sequence[str], sets: Sequence[str], widened: float = 1.0
) -> dict[str, Verdict]:
    """The verdicts on the mean over sets, which have no image in common; all arms count."""
    tuned = averaged([_tuned(found, name, nets, n) for n, name in enumerate(sets)])
    preset = averaged([_preset(found, name, nets, n) for n, name in enumerate(sets)])
    return {
        arm: verdict
        for group in (tuned, preset)
        for arm, verdict in verdicts(_wider(group, widened), equivalent=REGION).items()
    }


def _tuned(
    found: Mapping[Stratum, Arms], name: str, nets: Sequence[str], stream: int
) -> dict[str, Difference]:
    """The differences of the tuned arms on a set.

    An arm of which a run diverged, and so has an AP of 0, is compared apart: it would make the
    error of every arm large.
    """
    arms = {arm: own for arm, own in values(found, name, nets).items() if arm != PRESET}
    apart = diverged(found, name, nets) - {BASE, PRESET}
    groups = [set(arms) - apart, *({BASE, arm} for arm in sorted(apart))]
    together: dict[str, Difference] = {}
    for number, group in enumerate(groups):
        own = {arm: ap for arm, ap in arms.items() if arm in group}
        rules = Rules(blocked=True, stream=stream + len(SETS) * number)  # errors of its own
        together |= compared(own, BASE, rules, not_learnt=())
    return {arm: together[arm] for arm in ARMS if arm != BASE}


def _preset(
    found: Mapping[Stratum, Arms], name: str, nets: Sequence[str], stream: int
) -> dict[str, Difference]:
    """Where tuning chose the preset, its runs are random sampling's: no difference, no error."""
    own = values(found, name, nets)
    pair = {arm: own[arm] for arm in (BASE, PRESET)}
    if pair[BASE] == pair[PRESET]:
        return {PRESET: Difference(0.0, FOLDS, scale=0.0, errors=np.zeros(DRAWS))}
    return compared(pair, BASE, Rules(blocked=True, stream=stream), not_learnt=())


def _wider(group: Mapping[str, Difference], factor: float) -> dict[str, Difference]:
    return {
        arm: replace(d, scale=factor * d.scale, errors=factor * d.errors)
        for arm, d in group.items()
        if d.scale is not None
    }


def interaction(found: Mapping[Stratum, Arms]) -> float:
    """p that the tuned arms' differences are the same on all sets, in 0..1.

    Analysis of variance of the networks' mean: the squares of arm x set over those of arm x fold
    within a set, each by its degrees of freedom.
    """
    nets = list(dict.fromkeys(net for net, _ in found))
    of_sets = [values(found, name, nets) for name in SETS]
    ap = np.array([[list(own[arm].values()) for arm in ARMS] for own in of_sets])
    rest = ap - ap.mean(1, keepdims=True)  # [S, A, F] without the folds' own effects
    cells = rest.mean(2)
    within = ((rest - cells[..., None]) ** 2).sum()
    between = FOLDS * ((cells - cells.mean(0)) ** 2).sum()
    sets, arms, folds = ap.shape
    free = (sets - 1) * (arms - 1), sets * (arms - 1) * (folds - 1)
    return float(f.sf(between / free[0] / (within / free[1]), *free))


def images_alone(
    found: Mapping[Stratum, Arms], draws: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """By arm the standard error that the test images alone give the mean difference, in AP.

    From each run's AP on 500 draws of its fold's images; NaN if a run has none.
    """
    errors = {}
    for arm in (*ARMS[1:], PRESET):
        variances: list[float] = []
        for name, fold in product(SETS, range(FOLDS)):
            own = [arms for (_, of), arms in found.items() if of == name]
            over = [_over_images(arms, arm, fold, draws) for arms in own]
            known = [one for one in over if one is not None]
            complete = len(known) == len(over)
            variances.append(float(np.nanvar(np.mean(known, axis=0))) if complete else np.nan)
        errors[arm] = float(np.sqrt(np.sum(variances)) / len(variances))
    return errors


def _over_images(
    arms: Arms, arm: str, fold: int, draws: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """[500] difference to random sampling on the draws of a fold; None if a run has none."""
    return difference_over(draws, [arms[arm][fold].name], [arms[BASE][fold].name])


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
