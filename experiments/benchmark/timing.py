"""Seconds of calls that are compared with each other, measured in turns.

The speed of a machine drifts over minutes: other processes, heat, clocks. So a ratio of two timings
is only meaningful if both were taken in the same minute. The calls run in rounds, A B C C B A ...,
a ratio is computed in each round, and the median is over the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MIN_ROUNDS = 3

Spread = dict[str, float]


def nothing() -> None:
    """The wait for a CPU, which has done its work when the call returns."""


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    wait: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    With ``warm_up`` one untimed round comes first; without it a slow first call is one of at least
    three, and leaves the median alone. There are at least three rounds. The last one is that after
    which another would exceed the budget.

    Args:
        seconds: the budget, which includes the untimed round.
        wait: returns when the device has done its work (``torch.cuda.synchronize``).
    """
    began = clock()
    if warm_up:
        for call in calls.values():
            call()
        wait()
    found: dict[str, list[float]] = {name: [] for name in calls}
    done, started = 0, clock()
    while done < MIN_ROUNDS or _room(clock() - began, clock() - started, done, seconds):
        # Forth and back, so that no call always follows the same one.
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
    """The exponent p of the best power law size^p: the slope on log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
