"""How much does a difference depend on the test images? A bootstrap of all runs together.

Efron (1979): as many images as there are, are drawn with replacement. The AP of all runs moves with
the images, so that more seeds do not average this error away. Each run keeps its AP on the same
draws; they stand in a file beside runs.csv.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.report.matches import Matches, average_precision

DRAWS = 500
UNIT = 1e-4  # of AP: the draws are kept as int16
NONE = -1  # a draw without objects


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


def difference_over(
    draws: Mapping[str, np.ndarray], own: Sequence[str], baseline: Sequence[str]
) -> np.ndarray | None:
    """float [DRAWS]: the difference of the means of these runs on each draw, in percent.

    None if a run has no draws.
    """
    if not all(name in draws for name in (*own, *baseline)):
        return None
    means = [np.mean([draws[name] for name in names], axis=0) for names in (own, baseline)]
    return 100 * (means[0] - means[1])


def read_draws(csv: Path) -> dict[str, np.ndarray]:
    """By run, float [DRAWS]: AP as a fraction, NaN for a draw without objects. {} without file.

    Args:
        csv: the runs' file, beside which the draws are.
    """
    file = csv.with_suffix(".npz")
    if not file.exists():
        return {}
    with np.load(file) as stored:
        ap = np.where(stored["ap"] == NONE, np.nan, stored["ap"] * UNIT)
        return dict(zip(stored["run"].tolist(), ap, strict=True))


def write_draws(csv: Path, draws: Mapping[str, np.ndarray]) -> None:
    """Write ``run`` [R] and ``ap`` int16 [R, DRAWS] in units of 1e-4 beside ``csv``."""
    names = sorted(draws)
    table = np.array([draws[name] for name in names]) if names else np.zeros((0, DRAWS))
    ap = np.where(np.isnan(table), NONE, (table / UNIT).round()).astype(np.int16)
    np.savez_compressed(csv.with_suffix(".npz"), run=np.array(names, dtype=np.str_), ap=ap)
