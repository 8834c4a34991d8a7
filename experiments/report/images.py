"""How much a difference depends on the validation images: a bootstrap, for one pair of runs.

Efron (1979): as many images as there are, are drawn with replacement. The spread of the difference
in AP over such draws shows how much other images would change it. It says nothing about
other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.report.matches import Matches, average_precision

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """The interval of the difference in AP between two runs of one seed, over draws of the images.

    Args:
        seed: of both runs.
        images: their number.
        difference: on the images themselves, as a fraction.
        low, high: quantiles of the drawn differences, as fractions; ``LEVEL`` of them lie between.
    """

    seed: int
    images: int
    difference: float
    low: float
    high: float


def resampled(matches: Sequence[Matches], draws: int | None = None, seed: int = 0) -> np.ndarray:
    """[draws] AP of each draw as a fraction; runs of as many images have the same draws.

    Args:
        draws: their number; None = ``DRAWS``.
        seed: of the draws.
    """
    images = len(matches[0].objects)
    generator = np.random.default_rng(seed)
    shares = np.full(images, 1 / images)
    counts = (generator.multinomial(images, shares) for _ in range(draws or DRAWS))
    return np.array([average_precision(matches, often) for often in counts])


def interval(
    seed: int, method: Sequence[Matches], baseline: Sequence[Matches], over: np.ndarray
) -> Interval:
    """The interval from the matches of both runs and the differences ``over`` the draws.

    A draw without any object has a NaN, which is left out.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(over, [tail, 1 - tail])
    difference = average_precision(method) - average_precision(baseline)
    return Interval(seed, len(method[0].objects), difference, float(low), float(high))
