"""Is a method better than the baseline, or did it get the better seeds?

Runs of one seed share initial weights, images, their order and augmentation. So a method is
compared with the baseline seed by seed: n seeds give n differences. Student (1908): if these are
normal around zero, their mean divided by ``std / sqrt(n)`` follows a t distribution with n - 1
degrees of freedom. Units are the caller's; the report has AP in percent.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from scipy.stats import f, nct, norm, t

Key = TypeVar("Key", bound=Any)  # of a verdict: a method, or a condition and a method

ALPHA = 0.05
POWER = 0.8
LEARNT = 2 / 3  # a method below this share of the baseline's mean did not learn
UNSTEADY = 0.01  # most probability that one of equally steady methods is called unsteady
ROUNDING = 1e-12  # residuals below this share of the largest value are zero


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of n values; ``std`` is None if n = 1."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, over the seeds that both have.

    Args:
        spread: of the differences.
        p: of the two-sided paired t test, in 0..1; None for one seed.
        freedom: degrees of freedom of ``spread.std``: n - 1, or more if it is from other methods
            too.
        common: whether ``spread.std`` is that of all methods.
    """

    spread: Spread
    p: float | None
    freedom: int
    common: bool = False

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence interval of the mean for a level in 0..1.

        Raises:
            ValueError: one seed has no interval.
        """
        if self.spread.std is None:
            raise ValueError("one seed has no interval")
        quantile = float(t.isf((1 - level) / 2, self.freedom))
        half = quantile * self.spread.std / math.sqrt(self.spread.n)
        return self.spread.mean - half, self.spread.mean + half


@dataclass(frozen=True)
class Verdict:
    """The result of a method's comparison with the baseline, corrected for all comparisons.

    Args:
        difference: to the baseline.
        p: Holm's, in 0..1; None for one seed.
        level: of ``interval``, in 0..1; None for one seed.
        interval: (low, high). It excludes zero exactly where ``p`` is at most ``ALPHA``.
    """

    difference: Difference
    p: float | None = None
    level: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def differs(self) -> bool:
        """Whether a difference to the baseline is shown, after Holm's correction."""
        return self.p is not None and self.p <= ALPHA


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n)


def paired(method: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """The difference between a method and the baseline, each a value by seed.

    Raises:
        ValueError: they have no seed in common.
    """
    found = spread(_differences(method, baseline))
    return _tested(found, found.n - 1)


def in_blocks(
    methods: Mapping[str, Mapping[int, float]], baseline: str, apart: Collection[str] = ()
) -> dict[str, Difference]:
    """The difference of each method to the baseline, with one ``std`` for all ``steady`` methods.

    Randomised blocks (Fisher 1935): a value is the mean of its method, plus an effect of its seed
    that all methods share, plus an error with the same standard deviation for all. The errors are
    the residuals of least squares over all runs. So few seeds show more than each pair alone would,
    if the methods are about equally steady. A method that is not steady, or is in ``apart``, is
    ``paired``; if it is the baseline, all are. A method with one seed in common with the baseline
    is not tested.

    Args:
        methods: method -> seed -> value; those that share no seed with the baseline are left out.
        apart: methods with a standard deviation of their own.

    Raises:
        KeyError: ``methods`` has no baseline.
    """
    base = methods[baseline]
    shared = {method: own for method, own in methods.items() if own.keys() & base.keys()}
    together = steady({method: own for method, own in shared.items() if method not in apart})
    squares, freedom = _left_over(together)
    std = math.sqrt(2 * squares / freedom) if freedom else None
    found = {}
    for method, own in shared.items():
        if method == baseline:
            continue
        if not {method, baseline} <= together.keys():
            found[method] = paired(own, base)
            continue
        values = _differences(own, base)
        pooled = Spread(spread(values).mean, std if len(values) > 1 else None, len(values))
        found[method] = _tested(pooled, freedom, common=True)
    return found


def failed(methods: Mapping[str, Mapping[int, float]], baseline: str) -> set[str]:
    """The methods that did not learn: their mean is below ``LEARNT`` of the baseline's.

    The runs of such a method tend to differ much more than others'. With few methods ``steady``
    cannot show that, and the common standard deviation would hide the others' differences.
    """
    least = LEARNT * fmean(methods[baseline].values()) if methods[baseline] else 0.0
    return {method for method, own in methods.items() if own and fmean(own.values()) < least}


def steady(methods: Mapping[str, Mapping[int, float]]) -> dict[str, Mapping[int, float]]:
    """The methods without those whose seeds differ far more than those of all others.

    Cochran's test for an outlying variance (1941; ISO 5725-2) in randomised blocks. A method's own
    sum of squares is the residual of all runs minus that of all runs but its own. Divided by the
    others', each by its degrees of freedom, it follows Fisher's F. Its p is compared with
    ``UNSTEADY`` over the number of methods; the least steady method is removed, until none stands
    out.
    """
    left = dict(methods)
    while True:
        p, method = min(
            ((_p_steady(left, m), m) for m in left), key=itemgetter(0), default=(1.0, "")
        )
        if p > UNSTEADY / max(1, len(left)):
            return left
        del left[method]


def _p_steady(methods: Mapping[str, Mapping[int, float]], method: str) -> float:
    """The probability that one of equally steady methods has errors so large; 1 if unknown."""
    squares, freedom = _left_over(methods)
    others, free = _left_over({m: own for m, own in methods.items() if m != method})
    if free == freedom or others == 0:
        return 1.0
    ratio = (squares - others) / (freedom - free) / (others / free)
    return float(f.sf(ratio, freedom - free, free))


def compared(methods: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, Difference]:
    """``in_blocks``, with the methods that ``failed`` apart."""
    return in_blocks(methods, baseline, failed(methods, baseline))


def depends(conditions: Sequence[Mapping[str, Mapping[int, float]]]) -> float | None:
    """p that the methods' differences are the same under all conditions, in 0..1.

    Analysis of variance of split plots (Yates 1935): a value is an effect of its seed and
    condition, plus an effect of its seed and method, plus an error. A second model adds an effect
    of method and condition. The squares that it explains over those that it leaves, each by its
    degrees of freedom, follow F if the effect does not exist. The degrees of freedom are reduced as
    the conditions differ in spread (Box 1954).

    Args:
        conditions: for each, method -> seed -> value, of the same about equally steady methods.

    Returns:
        None if there are too few values.
    """
    rows = [
        (place, method, seed, value)
        for place, methods in enumerate(conditions)
        for method, own in methods.items()
        for seed, value in own.items()
    ]
    values = [value for *_, value in rows]
    same = [(("block", c, s), ("method", m, s)) for c, m, s, _ in rows]
    each = [(*levels, ("mean", c, m)) for levels, (c, m, *_) in zip(same, rows, strict=True)]
    squares, freedom = _fit(same, values)
    least, free = _fit(each, values)
    if free == 0 or freedom == free or least == 0:
        return None
    ratio = (squares - least) / (freedom - free) / (least / free)
    share = _evenness(conditions)
    return float(f.sf(ratio, share * (freedom - free), share * free))


def _evenness(conditions: Sequence[Mapping[str, Mapping[int, float]]]) -> float:
    """Box's epsilon of the variances of the conditions' errors: 1 if they are equal, 1 over their
    number if all but one are zero."""
    left = [_left_over(methods) for methods in conditions]
    variances = [squares / freedom for squares, freedom in left if freedom]
    total = math.fsum(v * v for v in variances)
    return math.fsum(variances) ** 2 / (len(variances) * total) if total else 1.0


def _left_over(methods: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """The sum of squares that methods and seeds do not explain, and its degrees of freedom."""
    cells = [(method, seed, v) for method, own in methods.items() for seed, v in own.items()]
    levels = [(("method", method), ("seed", seed)) for method, seed, _ in cells]
    return _fit(levels, [value for *_, value in cells])


def _fit(levels: Sequence[Sequence[Hashable]], values: Sequence[float]) -> tuple[float, int]:
    """The residual sum of squares of least squares, and its degrees of freedom.

    Args:
        levels: for each value, the levels whose effects add up to it.
    """
    columns = {level: column for column, level in enumerate(dict.fromkeys(chain(*levels)))}
    design = np.zeros((len(levels), len(columns)))
    for row, own in zip(design, levels, strict=True):
        row[[columns[level] for level in own]] = 1
    wanted = np.array(values, dtype=float)
    fit, _, rank, _ = np.linalg.lstsq(design, wanted, rcond=None)
    errors = wanted - design @ fit
    errors[np.abs(errors) < ROUNDING * np.abs(wanted).max(initial=0)] = 0
    return float(errors @ errors), len(levels) - int(rank)


def _differences(method: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    seeds = sorted(method.keys() & baseline.keys())
    if not seeds:
        raise ValueError("no seed in common")
    return [method[seed] - baseline[seed] for seed in seeds]


def _tested(found: Spread, freedom: int, common: bool = False) -> Difference:
    """The difference with the p of Student's test; equal runs (0 / 0) have p = 1."""
    if found.std is None:
        p = None
    elif found.std == 0:
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = float(2 * t.sf(abs(found.mean) / (found.std / math.sqrt(found.n)), freedom))
    return Difference(found, p, freedom, common)


def verdicts(differences: Mapping[Key, Difference]) -> dict[Key, Verdict]:
    """Every method's verdict, with Holm's correction for their number.

    Holm (1979): the k-th smallest of m values of p is compared with alpha / (m - k + 1), up to the
    first that is larger. The probability that any equal method is shown to differ is then at most
    alpha. An interval has the level 1 - alpha / (m - k + 1) of its method's step, or of the step at
    which the procedure stopped before it: it excludes zero exactly where the procedure shows a
    difference. Methods with one seed are not tested and do not count.
    """
    tested = sorted((d.p, name) for name, d in differences.items() if d.p is not None)
    found = {name: Verdict(d) for name, d in differences.items()}
    p, level, stopped = 0.0, 1.0, False
    for step, (own, name) in enumerate(tested):
        left = len(tested) - step
        p = max(p, min(1.0, left * own))
        if not stopped:
            level = 1 - ALPHA / left
        stopped = stopped or p > ALPHA
        difference = differences[name]
        found[name] = Verdict(difference, p, level, difference.interval(level))
    return found


def power(
    difference: float, std: float, n: int, alpha: float = ALPHA, freedom: int | None = None
) -> float:
    """Probability in 0..1 that a paired t test of n seeds at ``alpha`` finds a true difference.

    Args:
        std: of the differences between seeds, above 0.
        n: at least 2.
        freedom: degrees of freedom of ``std``; n - 1 by default.
    """
    freedom = n - 1 if freedom is None else freedom
    critical = t.isf(alpha / 2, freedom)
    # Beyond these shifts the tails are 1 and below 1e-6, and scipy's sums do not converge.
    shift = abs(difference) / std * math.sqrt(n)
    right = nct.sf(critical, freedom, min(shift, 4 * critical + 8))
    wrong = nct.cdf(-critical, freedom, shift) if shift < 3 else 0.0  # with the wrong sign
    return float(right + wrong)


def seeds_needed(difference: float, std: float, tests: int = 1, share: int = 1) -> int:
    """The fewest seeds that find a true difference with a probability of ``POWER``.

    Args:
        std: of the differences between seeds.
        tests: number of comparisons: p is compared with ``ALPHA`` / tests, Holm's first step.
        share: number of methods beside the baseline that ``std`` is from: each seed but the first
            adds so many degrees of freedom.
    """
    alpha = ALPHA / tests
    if std == 0:
        return 2
    # A test that knew the spread would need this many; a t test needs more.
    known = (norm.isf(alpha / 2) + norm.isf(1 - POWER)) * std / abs(difference)
    n = max(2, math.floor(known**2))
    while power(difference, std, n, alpha, share * (n - 1)) < POWER:
        n += 1
    return n
