"""How much may the spread of one method be learnt from the other methods?

Three runs hardly show how much runs differ. All methods together do, if they are about equally
steady. Smyth (2004): the variances of the methods come from one scaled inverse chi-squared
distribution with ``d0`` degrees of freedom. If they agree, d0 is large, and each method has nearly
the common variance; if they do not, it is small, and each has its own. Smyth estimates d0. Here it
is integrated over, because few methods show it only roughly.

Shape letters: D draws, K methods, G grid points.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import f

D0 = (0.5, 1, 2, 4, 8, 16, 32, 128)
LOG_SCALES = np.linspace(-3, 3, 25)  # of s0², around the median of the variances
LEAST = 1e-8  # of the largest variance: the grid knows no zero


def pooled(
    variances: Sequence[float], freedom: Sequence[int], draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The variance to use for each method, and draws of what it may truly be.

    The one to use is never below the method's own: a wild method must not look steady because the
    others are.

    Args:
        variances: of the runs of each method.
        freedom: of each variance, at least 1.

    Returns:
        float [K], and float [D, K]. A method alone has its own variance.
    """
    own, free = np.asarray(variances, dtype=float), np.asarray(freedom, dtype=float)
    if own.max(initial=0) == 0:
        return own, np.zeros((draws, len(own)))
    if len(own) == 1:
        return own, own * free / rng.chisquare(free, (draws, 1))
    own = np.maximum(own, LEAST * own.max())
    d0, scale = _prior(own, free, draws, rng)
    total = d0 + free  # [D, K]
    mean = (d0 * scale + free * own) / total
    centre = np.median(mean, axis=0)
    drawn = mean * total / rng.chisquare(total)
    used = np.maximum(centre, own)
    return used, drawn * (used / centre)


def _prior(
    own: np.ndarray, freedom: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of d0 and s0² given the variances, each float [D, 1]; all grid points are as likely
    before."""
    d0 = np.repeat(D0, len(LOG_SCALES))[:, None]  # [G, 1]
    scale = np.median(own) * np.exp(np.tile(LOG_SCALES, len(D0)))[:, None]
    log = (f.logpdf(own / scale, freedom, d0) - np.log(scale)).sum(axis=1)
    weight = np.exp(log - log.max())
    chosen = rng.choice(len(weight), size=draws, p=weight / weight.sum())
    return d0[chosen], scale[chosen]


def common(
    variances: Sequence[float], freedom: Sequence[int], draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As ``pooled``, with one variance for all methods: its draws are the same for all."""
    free = np.asarray(freedom, dtype=float)
    one = float(np.asarray(variances) @ free / free.sum())
    drawn = one * free.sum() / rng.chisquare(free.sum(), (draws, 1))
    return np.full(len(free), one), np.repeat(drawn, len(free), axis=1)
