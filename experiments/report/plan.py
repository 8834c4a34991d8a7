"""How many seeds does a comparison need, and how large is a difference that was found, really?"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, nct, norm, t

from experiments.report.verdicts import ALPHA

POWER = 0.8
RANGE = 0.9  # level of the interval of a standard deviation


def power(difference: float, std: float, n: int, alpha: float = ALPHA) -> float:
    """Probability in 0..1 that Student's test of two groups of n runs finds a true difference.

    Args:
        std: of the runs of each group, above 0.
        n: at least 2.
    """
    freedom = 2 * (n - 1)
    critical = t.isf(alpha / 2, freedom)
    # Beyond these shifts the tails are 1 and below 1e-6, and scipy's sums do not converge.
    shift = abs(difference) / std * math.sqrt(n / 2)
    right = nct.sf(critical, freedom, min(shift, 4 * critical + 8))
    wrong = nct.cdf(-critical, freedom, shift) if shift < 3 else 0.0  # with the wrong sign
    return float(right + wrong)


def seeds_needed(difference: float, std: float, tests: int = 1) -> int:
    """The fewest seeds that find a true difference with a probability of ``POWER``.

    Args:
        std: of the runs of one method.
        tests: number of comparisons: p is compared with ``ALPHA`` / tests.
    """
    alpha = ALPHA / tests
    if std == 0:
        return 2
    # A test that knew the spread would need this many; a t test needs more.
    known = 2 * ((norm.isf(alpha / 2) + norm.isf(1 - POWER)) * std / abs(difference)) ** 2
    n = max(2, math.floor(known))
    while power(difference, std, n, alpha) < POWER:
        n += 1
    return n


def std_range(std: float, freedom: int) -> tuple[float, float]:
    """The interval of a standard deviation that is estimated with so many degrees of freedom."""
    tail = (1 - RANGE) / 2
    low, high = chi2.isf([tail, 1 - tail], freedom)
    return std * math.sqrt(freedom / low), std * math.sqrt(freedom / high)


def smallest_seen(half: float, scale: float) -> float:
    """The true difference that a comparison shows with a probability of ``POWER``.

    Args:
        half: half the width of its interval.
        scale: standard error of the difference.
    """
    return half + float(norm.isf(1 - POWER)) * scale


def on_repetition(difference: float, half: float, scale: float) -> float:
    """The size to expect of a difference that was shown, if the study were repeated.

    Only differences beyond ``half`` are shown, so those that are shown are too large on average
    (the winner's curse). This is the true difference for which studies that show one find this
    much on average: the conditional maximum likelihood estimate of Zhong and Prentice (2008), with
    normal errors.

    Args:
        difference: above ``half`` in size.
        half: half the width of the interval that excludes zero.
        scale: standard error of the difference.
    """
    if scale == 0:
        return difference
    found, least = abs(difference) / scale, half / scale

    def too_much(true: float) -> float:
        return _mean_shown(true, least) - found

    return math.copysign(float(brentq(too_much, 0, found)) * scale, difference)


def _mean_shown(true: float, least: float) -> float:
    """The mean of a normal variable around ``true`` with variance 1, where its size is beyond
    ``least``."""
    above, below = norm.sf(least - true), norm.sf(least + true)
    edge = np.exp(-((least - true) ** 2) / 2) - np.exp(-((least + true) ** 2) / 2)
    return float(true + edge / math.sqrt(2 * math.pi) / (above + below))
