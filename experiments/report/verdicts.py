"""Which of many methods differ from the one baseline?

Step-down Dunnett (Dunnett 1955; Dunnett and Tamhane 1991): the largest of K statistics is compared
with the largest of K drawn ones, the second largest with the largest of the K - 1 that are left,
and so on, up to the first that is not shown. The probability that any equal method is shown to
differ is then at most alpha. That all methods share the baseline's error makes this sharper than
Holm's correction, which knows only each p.

The intervals are simultaneous: all have the critical value of the first step (Dunnett 1955). Those
of later steps would be too narrow to hold together where methods truly differ. So the interval of a
difference that a later step shows can touch zero.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from experiments.report.differences import Difference

Key = TypeVar("Key", bound=Hashable)  # a method, or a condition and a method

ALPHA = 0.05
BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"
FAILED, UNTESTED = "did not learn", "not tested"
ANSWERS = (BETTER, WORSE, EQUIVALENT, UNDECIDED, FAILED, UNTESTED)
# Alpha of a look before the planned number of seeds, and of all such looks together at most.
EARLY, ALL_EARLY = 0.001, 0.01


@dataclass(frozen=True)
class Verdict:
    """What a comparison shows of one method, corrected for all methods compared.

    Args:
        difference: to the baseline.
        answer: one of ``ANSWERS``.
        p: of step-down Dunnett, in 0..1; None if untested.
        holm: p with Holm's correction instead.
        interval: (low, high). Those of all methods hold together. It can touch zero although a
            difference is shown.
        level: of the interval for this method alone, in 0..1.
        least: the size beyond which this method's step shows a difference; None if untested.
    """

    difference: Difference
    answer: str = UNTESTED
    p: float | None = None
    holm: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None
    least: float | None = None

    @property
    def differs(self) -> bool:
        """Whether a difference to the baseline is shown that is not ``EQUIVALENT``."""
        return self.answer in (BETTER, WORSE)


def verdicts(
    differences: Mapping[Key, Difference], alpha: float = ALPHA, equivalent: float | None = None
) -> dict[Key, Verdict]:
    """The verdict on every method. Those that are not tested do not count.

    A method is ``EQUIVALENT`` if its interval lies within the region, also where it excludes zero:
    a difference that small was said beforehand not to matter.

    Args:
        equivalent: the region reaches from minus this to this.
    """
    found = {key: Verdict(d, UNTESTED if d.learnt else FAILED) for key, d in differences.items()}
    tested = {key: d for key, d in differences.items() if d.scale is not None}
    ratios = {key: _ratio(d.mean, d.scale) for key, d in tested.items()}
    order = sorted(tested, key=lambda key: -ratios[key])
    drawn = {key: _ratios(d) for key, d in tested.items()}
    holm = _holm([_share(drawn[key], ratios[key]) for key in order])
    largest = _largest([drawn[key] for key in order])
    critical = [float(np.quantile(own, 1 - alpha, method="higher")) for own in largest]
    p = 0.0
    for step, key in enumerate(order):
        own, scale = tested[key], tested[key].scale or 0.0
        p = max(p, _share(largest[step], ratios[key]))
        half = critical[0] * scale
        interval = (own.mean - half, own.mean + half)
        answer = _answer(own.mean, p <= alpha, interval, equivalent)
        level = 1 - _share(drawn[key], critical[0])
        found[key] = Verdict(own, answer, p, holm[step], interval, level, critical[step] * scale)
    return found


def _ratio(mean: float, scale: float | None) -> float:
    """The statistic; equal runs (0 / 0) have 0."""
    return abs(mean) / scale if scale else (np.inf if mean else 0.0)


def _ratios(difference: Difference) -> np.ndarray:
    scale = difference.scale
    return np.abs(difference.errors) / scale if scale else np.zeros_like(difference.errors)


def _largest(drawn: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each step, the largest statistic of each draw among the methods that are left."""
    found = [drawn[-1]] if drawn else []
    for own in drawn[-2::-1]:
        found.append(np.maximum(found[-1], own))
    return found[::-1]


def _share(drawn: np.ndarray, value: float) -> float:
    """How many draws are at least so large; never 0, which no number of draws can show."""
    return float((np.count_nonzero(drawn >= value) + 1) / (len(drawn) + 1))


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) values of p that are sorted."""
    stepped = [min(1.0, (len(p) - step) * own) for step, own in enumerate(p)]
    return [max(stepped[: step + 1]) for step in range(len(p))]


def _answer(
    mean: float, shown: bool, interval: tuple[float, float], equivalent: float | None
) -> str:
    low, high = interval
    if equivalent is not None and -equivalent < low and high < equivalent:
        return EQUIVALENT
    if not shown:
        return UNDECIDED
    return BETTER if mean > 0 else WORSE


def level_of_look(seeds: int, planned: int | None, first: int = 2) -> float:
    """The alpha at which runs with this many seeds are judged, above 0 and at most ``ALPHA``.

    Each look before the planned number spends a little (Haybittle 1971), and the last has what
    these leave: ``ALPHA`` in all.

    Args:
        planned: number of seeds, at least ``first``; None: there is no plan.
        first: the fewest seeds that can be compared.
    """
    if planned is None:
        return ALPHA
    looks = max(0, planned - first)
    early = min(EARLY, ALL_EARLY / max(1, looks))
    return early if seeds < planned else ALPHA - looks * early
