"""Do the methods' differences depend on the condition?"""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter

from experiments.report.spread import left_over, p_of_f, unexplained

UNSTEADY = 0.01  # most probability that one of equally steady methods is called unsteady


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
    smaller, larger = left_over(same, values), left_over(each, values)
    least, free = larger
    if free == 0 or free == smaller[1] or least == 0:
        return None
    return p_of_f(smaller, larger, _evenness(conditions))


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
    every = unexplained(methods, seeds=True)
    others = unexplained({m: own for m, own in methods.items() if m != method}, seeds=True)
    return 1.0 if others[1] == every[1] or others[0] == 0 else p_of_f(every, others)


def _evenness(conditions: Sequence[Mapping[str, Mapping[int, float]]]) -> float:
    """Box's epsilon of the variances of the conditions' errors: 1 if they are equal, 1 over their
    number if all but one are zero."""
    left = [unexplained(methods, seeds=True) for methods in conditions]
    variances = [squares / freedom for squares, freedom in left if freedom]
    total = math.fsum(v * v for v in variances)
    return math.fsum(variances) ** 2 / (len(variances) * total) if total else 1.0
