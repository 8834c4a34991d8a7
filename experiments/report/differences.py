"""How much does each method differ from the baseline, and how far can that be wrong?

The error of a difference is that of the method's mean plus that of the baseline's mean, which all
methods share, plus that of the test images. It is not looked up in a table but drawn many times, so
that unequal spreads, unequal numbers of runs and the shared baseline need no approximation.

Shape letters: D draws, K methods.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, variance

import numpy as np

from experiments.report.pooling import common, pooled
from experiments.report.spread import SEED_EFFECT, Values, failed, seed_effect, without_seeds

DRAWS = 20_000


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline.

    Args:
        mean: the difference of the means.
        n: runs of the method.
        std: of one run of the method, as it was used; None if it is not known.
        scale: standard error of ``mean``; None if the difference cannot be tested.
        learnt: whether it learnt; a method that ``failed`` is not tested.
        errors: float [D], draws of the error of ``mean``; those of one comparison share the
            baseline's error. Empty if the difference cannot be tested.
    """

    mean: float
    n: int
    std: float | None = None
    scale: float | None = None
    learnt: bool = True
    errors: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False, repr=False)


@dataclass(frozen=True)
class Rules:
    """How differences are computed.

    Args:
        blocked: whether runs are compared seed by seed; None: where ``seed_effect`` shows that
            seeds matter.
        common: one spread for all methods and the baseline, which then have to be equally steady.
        draws: D.
        stream: of the random numbers; comparisons that are independent have different ones.
        baseline: the variance of the baseline's runs and draws of what it may truly be, float [D];
            None: from its own runs alone.
    """

    blocked: bool | None = None
    common: bool = False
    draws: int = DRAWS
    stream: int = 0
    baseline: tuple[float, np.ndarray] | None = None


DEFAULT = Rules()


def compared(
    methods: Values,
    baseline: str,
    rules: Rules = DEFAULT,
    images: Mapping[str, np.ndarray] | None = None,
    not_learnt: Collection[str] | None = None,
) -> dict[str, Difference]:
    """The difference of each method that has runs to the baseline.

    Not tested are methods that ``failed``, those with one run (or pair), and all of them where the
    baseline has one run.

    Args:
        images: by method, float [B]: its difference to the baseline on each of B draws of the test
            images; None: only the errors of the runs count.
        not_learnt: the methods that did not learn; None: those that ``failed``.
    """
    found = {method: own for method, own in methods.items() if own}
    if baseline not in found:
        return {}
    learnt = _learnt(found, failed(found, baseline) if not_learnt is None else not_learnt)
    blocked = is_blocked(learnt, rules)
    differences = {
        m: replace(_untested(found, m, baseline, blocked), learnt=m in learnt)
        for m in found
        if m != baseline
    }
    tested = [m for m, d in differences.items() if d.learnt and d.n > 1]
    if tested and len(learnt[baseline]) > 1:
        rng = np.random.default_rng(rules.stream)
        counts = [differences[m].n for m in tested]
        drawn = (_in_blocks if blocked else _apart)(learnt, tested, baseline, counts, rules, rng)
        for method, own in zip(tested, drawn, strict=True):
            before = differences[method]
            differences[method] = replace(own, mean=before.mean, n=before.n)
        if images is not None:
            differences |= _with_images({m: differences[m] for m in tested}, images, rng)
    return differences


def compared_together(
    groups: Sequence[Values], baseline: str, not_learnt: Sequence[Collection[str]], rules: Rules
) -> list[dict[str, Difference]]:
    """Independent comparisons with one baseline, whose differences are judged together.

    The variance of the baseline's runs is learnt from all groups, as that of the methods is. From
    the few runs of each group alone, errors have such heavy tails that the largest of many
    statistics hides all differences.

    Args:
        groups: each as the ``methods`` of ``compared``.
        not_learnt: the methods of each group that did not learn.
        rules: those of the first group; the others have the next ``stream``.
    """
    cells = list(zip(groups, not_learnt, strict=True))
    runs = [_of_baseline(methods, baseline, apart, rules) for methods, apart in cells]
    known = [group for group, own in enumerate(runs) if len(own) > 1]
    rng = np.random.default_rng([rules.stream, len(groups)])  # other numbers than of any group
    variances = [variance(runs[group]) for group in known]
    freedom = [len(runs[group]) - 1 for group in known]
    used, drawn = pooled(variances, freedom, rules.draws, rng)
    learnt = {group: (float(used[i]), drawn[:, [i]]) for i, group in enumerate(known)}
    found = []
    for group, (methods, apart) in enumerate(cells):
        own = replace(rules, stream=rules.stream + group, baseline=learnt.get(group))
        found.append(compared(methods, baseline, own, not_learnt=apart))
    return found


def _of_baseline(
    methods: Values, baseline: str, not_learnt: Collection[str], rules: Rules
) -> list[float]:
    """The values from which ``compared`` takes the variance of the baseline's runs."""
    learnt = _learnt(methods, not_learnt)
    if baseline not in learnt:
        return []
    used = without_seeds(learnt) if is_blocked(learnt, rules) else learnt
    return list(used[baseline].values())


def _learnt(methods: Values, not_learnt: Collection[str]) -> Values:
    """The methods that have runs and that learnt."""
    return {m: own for m, own in methods.items() if own and m not in not_learnt}


def is_blocked(methods: Values, rules: Rules = DEFAULT) -> bool:
    """Whether runs are compared seed by seed."""
    return seed_effect(methods) <= SEED_EFFECT if rules.blocked is None else rules.blocked


def _untested(methods: Values, method: str, baseline: str, blocked: bool) -> Difference:
    own, base = methods[method], methods[baseline]
    pairs = [own[seed] - base[seed] for seed in own.keys() & base.keys()]
    if blocked and pairs:
        return Difference(fmean(pairs), len(pairs))
    return Difference(fmean(own.values()) - fmean(base.values()), 1 if blocked else len(own))


def _apart(
    methods: Values,
    tested: Sequence[str],
    baseline: str,
    counts: Sequence[int],
    rules: Rules,
    rng: np.random.Generator,
) -> list[Difference]:
    """The errors where seeds do not matter: all runs count, also of seeds that others lack."""
    every = [len(methods[baseline])] * len(tested)
    return _drawn([methods[m] for m in tested], methods[baseline], counts, every, rules, rng)


def _in_blocks(
    methods: Values,
    tested: Sequence[str],
    baseline: str,
    counts: Sequence[int],
    rules: Rules,
    rng: np.random.Generator,
) -> list[Difference]:
    """The errors seed by seed: only pairs count. One method alone has its paired t test."""
    if len(methods) == 2:
        own, base = methods[tested[0]], methods[baseline]
        pairs = {seed: own[seed] - base[seed] for seed in own.keys() & base.keys()}
        return _drawn([pairs], None, counts, counts, rules, rng)
    left = without_seeds(methods)
    return _drawn([left[m] for m in tested], left[baseline], counts, counts, rules, rng)


def _drawn(
    methods: Sequence[Mapping],
    baseline: Mapping | None,
    counts: Sequence[int],
    of_baseline: Sequence[int],
    rules: Rules,
    rng: np.random.Generator,
) -> list[Difference]:
    """Differences with errors, without means.

    Args:
        counts, of_baseline: for each method, the number of values that its mean and the mean of the
            baseline that it is compared with are from.
    """
    every = [*methods, *([] if baseline is None else [baseline])]
    variances = [variance(own.values()) for own in every]
    freedom = [len(own) - 1 for own in every]
    last = len(methods)
    if rules.common:
        used, drawn = common(variances, freedom, rules.draws, rng)
    else:
        used, drawn = pooled(variances[:last], freedom[:last], rules.draws, rng)
        if baseline is not None:
            own = rules.baseline or pooled(variances[last:], freedom[last:], rules.draws, rng)
            used, drawn = np.append(used, own[0]), np.hstack([drawn, own[1]])
    n, n0 = np.array(counts), np.array(of_baseline)
    squares = used[:last] / n
    errors = np.sqrt(drawn[:, :last] / n) * rng.standard_normal((rules.draws, last))
    if baseline is not None:
        squares = squares + used[last] / n0
        shared = np.sqrt(drawn[:, last:]) * rng.standard_normal((rules.draws, 1))
        errors = errors + shared / np.sqrt(n0)
    stds, scales = np.sqrt(used[:last]), np.sqrt(squares)
    return [
        Difference(0.0, 0, float(s), float(c), errors=e)
        for s, c, e in zip(stds, scales, errors.T, strict=True)
    ]


def _with_images(
    tested: Mapping[str, Difference], images: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, Difference]:
    """With the error of the test images added: row by row all methods have the same images."""
    over = np.array([images[method] for method in tested])  # [K, B]
    over = over[:, ~np.isnan(over).any(axis=0)]
    over = over - over.mean(axis=1, keepdims=True)
    draws = len(next(iter(tested.values())).errors)
    drawn = over[:, rng.integers(over.shape[1], size=draws)]  # [K, D]
    found = {}
    for (method, own), moved, errors in zip(tested.items(), over, drawn, strict=True):
        scale = float(np.hypot(own.scale or 0.0, moved.std()))
        found[method] = replace(own, scale=scale, errors=own.errors + errors)
    return found


def averaged(strata: Sequence[Mapping[str, Difference]]) -> dict[str, Difference]:
    """The mean over fixed strata (data sets) of each method's difference; all weigh the same.

    Args:
        strata: by method; compared with different ``Rules.stream``, so that errors are independent.
    """
    number = len(strata)
    found = {}
    for method in strata[0]:
        own = [stratum[method] for stratum in strata]
        mean, n = fmean(d.mean for d in own), sum(d.n for d in own)
        scales = [d.scale for d in own if d.scale is not None]
        found[method] = Difference(mean, n)
        if len(scales) == number:
            scale = float(np.sqrt(np.square(scales).sum())) / number
            errors = np.mean([d.errors for d in own], axis=0)
            found[method] = Difference(mean, n, scale=scale, errors=errors)
    return found
