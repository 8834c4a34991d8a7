"""What is decided before a study: its plan, and how many seeds it needs. And after it: how large is
a difference that was found, really?"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, nct, norm, t

from experiments.report.verdicts import ALPHA, level_of_look

POWER = 0.8
RANGE = 0.9  # level of the interval of a standard deviation


@dataclass(frozen=True)
class Plan:
    """What is decided before a study is looked at.

    Args:
        equivalent: a difference in AP (percent) below which methods are equivalent; None: no
            region was given.
        seeds: planned per method; None: no plan.
        common: one spread for all methods, which then have to be equally steady.
    """

    equivalent: float | None = None
    seeds: int | None = None
    common: bool = False

    def level(self, seeds: int, first: int = 2) -> float:
        """The alpha at which methods with this many seeds are judged; see ``level_of_look``."""
        return level_of_look(seeds, self.seeds, first)

    def said(self, seeds: int, alpha: float) -> str:
        """Whether this is the planned comparison or an early look, as a sentence."""
        if self.seeds is None:
            return (
                "No number of seeds was planned (`--planned-seeds`): if runs are added until a "
                f"difference is shown, false ones are shown more often than {100 * ALPHA:.0f} %."
            )
        if seeds < self.seeds:
            return (
                f"This is an early look: {seeds} of {self.seeds} planned seeds. Differences are "
                f"shown at {100 * alpha:.2g} %, so that the planned comparison keeps its level."
            )
        return f"The {self.seeds} planned seeds are there."


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


def on_repetition(difference: float, least: float, scale: float) -> float:
    """The size to expect of a difference that was shown, if the study were repeated.

    Only differences beyond ``least`` are shown, so those that are shown are too large on average
    (the winner's curse). This is the true difference for which studies that show one find this
    much on average: the conditional maximum likelihood estimate of Zhong and Prentice (2008), with
    normal errors. It is rough: near ``least`` it falls steeply towards 0. No range is given, since
    the conditional one (also theirs) is too narrow where three runs show the scale: it holds the
    true difference in 73 to 87 % of studies with 4 degrees of freedom, not in 95 %.

    Args:
        difference: above ``least`` in size.
        least: the size beyond which a difference is shown.
        scale: standard error of the difference.
    """
    if scale == 0:
        return difference
    found, edge = abs(difference) / scale, least / scale

    def too_much(true: float) -> float:
        return _mean_shown(true, edge) - found

    return math.copysign(float(brentq(too_much, 0, found)) * scale, difference)


def _mean_shown(true: float, least: float) -> float:
    """The mean of a normal variable around ``true`` with variance 1, where its size is beyond
    ``least``."""
    above, below = norm.sf(least - true), norm.sf(least + true)
    edge = np.exp(-((least - true) ** 2) / 2) - np.exp(-((least + true) ** 2) / 2)
    return float(true + edge / math.sqrt(2 * math.pi) / (above + below))
