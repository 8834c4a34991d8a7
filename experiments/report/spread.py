"""How much do runs of one method differ, and do seeds explain any of it?

Units are the caller's; the report has AP in percent.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import f

Values = Mapping[str, Mapping[Any, float]]  # method -> seed, or (seed, fold) -> value

LEARNT = 2 / 3  # a method below this share of the baseline's mean did not learn
SEED_EFFECT = 0.05  # runs are blocked by seed where p that seeds do nothing is at most this
ROUNDING = 1e-12  # residuals below this share of the largest value are zero


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of n values; ``std`` is None if n = 1."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Spread(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n)


def failed(methods: Values, baseline: str) -> set[str]:
    """The methods that did not learn: their mean is below ``LEARNT`` of the baseline's."""
    least = LEARNT * fmean(methods[baseline].values()) if methods[baseline] else 0.0
    return {method for method, own in methods.items() if own and fmean(own.values()) < least}


def seed_effect(methods: Values) -> float:
    """p that runs of one seed have nothing in common, in 0..1; 1 where the runs cannot say.

    The F test of randomised blocks (Fisher 1935).
    """
    squares, freedom = unexplained(methods, seeds=False)
    least, free = unexplained(methods, seeds=True)
    if freedom == free or free == 0:
        return 1.0
    if least == 0:
        return 1.0 if squares == 0 else 0.0
    return p_of_f((squares, freedom), (least, free))


def p_of_f(smaller: tuple[float, int], larger: tuple[float, int], share: float = 1.0) -> float:
    """p of Fisher's F test that the larger of two nested linear models explains no more, in 0..1.

    The squares that only the larger explains, over those that it leaves over, each by its degrees
    of freedom.

    Args:
        smaller, larger: what each leaves over, as ``left_over``; the larger one leaves some.
        share: of the degrees of freedom that counts.
    """
    (squares, freedom), (least, free) = smaller, larger
    ratio = (squares - least) / (freedom - free) / (least / free)
    return float(f.sf(ratio, share * (freedom - free), share * free))


def std_of_runs(methods: Values, blocked: bool) -> tuple[float, int]:
    """The standard deviation of a run, pooled over the methods, and its degrees of freedom.

    Args:
        methods: of which at least one has several runs.
        blocked: whether runs are compared seed by seed, so that what a seed adds does not count.
    """
    squares, freedom = unexplained(methods, seeds=blocked)
    return math.sqrt(squares / freedom), freedom


def unexplained(methods: Values, seeds: bool) -> tuple[float, int]:
    """``left_over`` by the methods' means, and by effects of the seeds too where ``seeds``."""
    cells = [(method, seed, v) for method, own in methods.items() for seed, v in own.items()]
    levels = [[("method", m), *([("seed", s)] if seeds else [])] for m, s, _ in cells]
    return left_over(levels, [value for *_, value in cells])


def without_seeds(methods: Values) -> dict[str, dict[Any, float]]:
    """Each value minus the effect of its seed (least squares), for seeds of several methods.

    Residuals around fitted effects are too small by (M - 1) / M for M methods. So the deviations
    from a method's mean are enlarged by the square root of the inverse.
    """
    times: dict[Any, int] = {}
    for seed in chain(*methods.values()):
        times[seed] = times.get(seed, 0) + 1
    shared = {m: {s: v for s, v in own.items() if times[s] > 1} for m, own in methods.items()}
    cells = [(m, s, v) for m, own in shared.items() for s, v in own.items()]
    if not cells:
        return shared
    levels = [[("method", m), ("seed", s)] for m, s, _ in cells]
    residuals = _residuals(levels, [v for *_, v in cells])[0]
    found: dict[str, dict[Any, float]] = {m: {} for m in methods}
    for (method, seed, _), error in zip(cells, residuals, strict=True):
        larger = math.sqrt(times[seed] / (times[seed] - 1))
        found[method][seed] = fmean(shared[method].values()) + larger * float(error)
    return found


def by_fold(methods: Mapping[str, Mapping[tuple[Any, int], float]]) -> dict[str, dict[int, float]]:
    """method -> (seed, fold) -> value, as method -> fold -> mean over the seeds.

    Runs of a fold share its test images, so that a further seed of a fold says nothing of other
    images. One value per fold has the error of the runs and that of the images.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for method, own in methods.items():
        found[method] = {}
        for (_, fold), value in own.items():
            found[method].setdefault(fold, []).append(value)
    return {
        m: {fold: fmean(own) for fold, own in sorted(folds.items())} for m, folds in found.items()
    }


def left_over(levels: Sequence[Sequence[Hashable]], values: Sequence[float]) -> tuple[float, int]:
    """The residual sum of squares of least squares, and its degrees of freedom.

    Args:
        levels: for each value, the levels whose effects add up to it.
    """
    errors, rank = _residuals(levels, values)
    return float(errors @ errors), len(levels) - rank


def _residuals(
    levels: Sequence[Sequence[Hashable]], values: Sequence[float]
) -> tuple[np.ndarray, int]:
    columns = {level: column for column, level in enumerate(dict.fromkeys(chain(*levels)))}
    design = np.zeros((len(levels), len(columns)))
    for row, own in zip(design, levels, strict=True):
        row[[columns[level] for level in own]] = 1
    wanted = np.array(values, dtype=float)
    fit, _, rank, _ = np.linalg.lstsq(design, wanted, rcond=None)
    errors = wanted - design @ fit
    errors[np.abs(errors) < ROUNDING * np.abs(wanted).max(initial=0)] = 0
    return errors, int(rank)
