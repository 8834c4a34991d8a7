"""Seconds of things that are compared with each other, measured in turns.

The speed of a machine drifts over minutes: other processes, heat, clocks. A ratio of two timings
is only worth something when both were taken in the same minute, so the candidates run in rounds,
A B C C B A ..., and a ratio is the median of the rounds' own ratios.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MIN_ROUNDS = 3

Spread = dict[str, float]


def nothing() -> None:
    """The wait of a device that computes while it is called: a CPU."""


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    wait: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    One untimed round comes first, or with ``warm_up`` off none: the median of three rounds and
    more leaves a slow first call out. Rounds follow until the next one would end after the budget,
    but never fewer than three.

    Args:
        seconds: the budget, the untimed round counted in.
        wait: returns when the device has done what it was given (``torch.cuda.synchronize``).
    """
    began = clock()
    if warm_up:
        for call in calls.values():
            call()
        wait()
    found: dict[str, list[float]] = {name: [] for name in calls}
    done, started = 0, clock()
    while done < MIN_ROUNDS or _room(clock() - began, clock() - started, done, seconds):
        # Forth and back, so that nobody always comes after the same one.
        for name, call in list(calls.items())[:: -1 if done % 2 else 1]:
            start = clock()
            call()
            wait()
            found[name].append(clock() - start)
        done += 1
    return found


def _room(spent: float, in_rounds: float, done: int, budget: float) -> bool:
    return spent + in_rounds / done <= budget


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear between neighbours) of at least one value."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "q1": low, "q3": high}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Median and quartiles of the ratios of the same round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of the power law size^p that fits best: the slope on log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
