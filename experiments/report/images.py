"""How far the validation images decide a difference: a bootstrap over them, for one pair of runs.

Efron (1979): images are drawn anew, with replacement, as many as there are; how much the
difference in AP varies over such draws shows how much other images would change it. It says nothing
of other seeds: both runs are as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.report.matches import Matches, average_precision

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Of the difference in AP between two runs of one seed, over draws of the images.

    Args:
        seed: of both runs.
        images: how many there are.
        difference: on the images as they are, as a fraction, like
        low, high: the quantiles of the differences that leave ``LEVEL`` of them between.
    """

    seed: int
    images: int
    difference: float
    low: float
    high: float


def resampled(matches: Sequence[Matches]) -> np.ndarray:
    """The AP of every draw [DRAWS] as a fraction; the same draws for all runs of as many images."""
    images = len(matches[0].objects)
    generator = np.random.default_rng(0)
    shares = np.full(images, 1 / images)
    draws = (generator.multinomial(images, shares) for _ in range(DRAWS))
    return np.array([average_precision(matches, counts) for counts in draws])


def interval(
    seed: int, method: Sequence[Matches], baseline: Sequence[Matches], over: np.ndarray
) -> Interval:
    """From the matches of both runs, and the differences ``over`` the draws.

    A draw in which there is no object has none, and is left out.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(over, [tail, 1 - tail])
    difference = average_precision(method) - average_precision(baseline)
    return Interval(seed, len(method[0].objects), difference, float(low), float(high))
