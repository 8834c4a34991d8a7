"""Do the answers hold? Studies of known truth: ``python -m experiments.report.simulation
[--studies 1000] [--page docs/comparing.md]``.

Every setting is drawn many times. ``error``: in how many studies of equal methods is any shown to
differ? ``coverage``: in how many studies where some methods are truly better does every interval
hold its true difference? ``--page`` puts the table between ``<!-- simulation -->`` and
``<!-- end -->``. About ten minutes on one core.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.differences import Difference, Rules, compared
from experiments.report.markdown import markdown
from experiments.report.spread import by_fold
from experiments.report.tables import Table
from experiments.report.verdicts import ALPHA, level_of_look, verdicts
from experiments.table import put

BASE = "base"
GAIN = 2.0  # of the methods that are better; a run's standard deviation is about 1
MUCH = 10.0  # between methods that all differ
LEVEL = 50.0
DRAWS = 2000
AT = 0.1  # of runs that fail, where some do
Runs = dict[str, dict[Any, float]]  # method -> seed, or (seed, fold) -> AP


@dataclass(frozen=True)
class Setting:
    """What is drawn.

    Args:
        name: in words.
        methods: their number, without the baseline.
        seeds, of_baseline: runs of a method and of the baseline.
        stds: of the runs of the first and the last method; those between lie between.
        last: standard deviation of the last method, where it differs.
        base: standard deviation of the baseline's runs.
        seed: standard deviation of what runs of one seed share.
        fails: whether a run in ten loses 10.
        images: number of test images, each with an effect of its own on each method; 0: none.
        folds: number of folds, which differ in difficulty, and whose images have an effect on each
            method with a standard deviation of 1; each seed has a run on each. 0: none.
        looks: numbers of seeds after which the study is looked at, before the planned last.
        distinct: whether all methods are truly better by much where coverage is measured; else a
            third of them are better by ``GAIN``.
    """

    name: str
    methods: int = 20
    seeds: int = 3
    of_baseline: int = 5
    stds: tuple[float, float] = (1.0, 1.0)
    last: float | None = None
    base: float = 1.0
    seed: float = 0.0
    fails: bool = False
    images: int = 0
    folds: int = 0
    looks: tuple[int, ...] = ()
    distinct: bool = False


SETTINGS = (
    Setting("equal methods"),
    Setting("equal methods, few, 5 seeds", methods=4, seeds=5),
    Setting("seeds matter: pairs are compared", methods=8, of_baseline=3, seed=3.0),
    Setting("spreads from 0.5 to 2", stds=(0.5, 2.0), of_baseline=6),
    Setting("the same, a steady baseline", methods=7, stds=(0.5, 2.0), of_baseline=6, base=0.5),
    Setting("one of seven methods is wild (sd 5)", methods=7, last=5.0),
    Setting("an unsteady baseline (sd 2)", of_baseline=3, base=2.0),
    Setting("the same, seeds matter", methods=8, of_baseline=3, base=2.0, seed=3.0),
    Setting("one run in ten fails", fails=True),
    Setting("72 test images matter as much as runs", methods=8, seeds=5, images=72),
    Setting("5 folds, images matter as much as runs", 5, 2, 2, folds=5),
    Setting("looks after 3, 4, 5 of 6 planned seeds", 8, 6, 6, looks=(3, 4, 5)),
    Setting("all methods are better by 10, 20, ... AP", 10, 5, 5, distinct=True),
)


def drawn(setting: Setting, rng: np.random.Generator) -> tuple[Runs, dict[str, np.ndarray]]:
    """Runs of equal methods, and what each image adds to every run of a method."""
    names = [BASE, *(f"m{i:02}" for i in range(setting.methods))]
    stds = [setting.base, *np.linspace(*setting.stds, setting.methods)]
    if setting.last is not None:
        stds[-1] = setting.last
    shared = rng.normal(0, setting.seed, max(setting.seeds, setting.of_baseline))
    counts = [setting.of_baseline, *[setting.seeds] * setting.methods]
    # The mean over the images then has a standard deviation of about one.
    images = {m: rng.normal(0, np.sqrt(setting.images), setting.images) for m in names}
    runs: Runs = {}
    for name, std, count in zip(names, stds, counts, strict=True):
        values = LEVEL + shared[:count] + rng.normal(0, std, count)
        values -= 10 * (rng.random(count) < AT) * setting.fails
        values += images[name].mean() if setting.images else 0.0
        runs[name] = dict(enumerate(values.tolist()))
    return (_with_folds(runs, setting, rng) if setting.folds else runs), images


def _with_folds(runs: Runs, setting: Setting, rng: np.random.Generator) -> Runs:
    """Runs of each seed on each fold, whose own values are drawn anew; equal spreads of 1."""
    hard = rng.normal(0, 10, setting.folds)
    found: Runs = {}
    for name, own in runs.items():
        base = LEVEL + hard + rng.normal(0, 1, setting.folds)
        found[name] = {
            (seed, fold): float(base[fold] + rng.normal())
            for seed in own
            for fold in range(len(hard))
        }
    return found


def truth(setting: Setting) -> dict[str, float]:
    """By method the true difference of a study in which some methods are better."""
    number = range(setting.methods)
    gains = [MUCH * (i + 1) if setting.distinct else GAIN * (i % 3 == 0) for i in number]
    return {f"m{i:02}": gain for i, gain in enumerate(gains)}


def with_gains(runs: Runs, gains: Mapping[str, float]) -> Runs:
    """The runs with what each method truly gains."""
    return {m: {s: v + gains.get(m, 0.0) for s, v in own.items()} for m, own in runs.items()}


def measured(
    setting: Setting, studies: int, common: bool = False, seed: int = 0
) -> tuple[float, float]:
    """(error, coverage), each a share of the studies."""
    rng = np.random.default_rng(seed)
    gains = truth(setting)
    false = held = 0
    for _ in range(studies):
        runs, images = drawn(setting, rng)
        false += _any_shown(setting, runs, images, common, rng)
        found = verdicts(_compared(with_gains(runs, gains), images, common, rng))
        inside = [
            v.interval is None or v.interval[0] <= gains[m] <= v.interval[1]
            for m, v in found.items()
        ]
        held += all(inside)
    return false / studies, held / studies


def _compared(
    runs: Runs, images: Mapping[str, np.ndarray], common: bool, rng: np.random.Generator
) -> dict[str, Difference]:
    rules = Rules(common=common, draws=DRAWS, stream=int(rng.integers(2**31)))
    over = None
    if len(images[BASE]):
        number = len(images[BASE])
        often = rng.multinomial(number, np.full(number, 1 / number), 500) / number
        over = {m: often @ (own - images[BASE]) for m, own in images.items()}
    folds = isinstance(next(iter(runs[BASE])), tuple)
    used = by_fold(runs) if folds else runs
    return compared(used, BASE, replace(rules, blocked=True) if folds else rules, over)


def _any_shown(
    setting: Setting,
    runs: Runs,
    images: Mapping[str, np.ndarray],
    common: bool,
    rng: np.random.Generator,
) -> bool:
    """Whether any look shows any of the equal methods to differ."""
    for seeds in (*setting.looks, setting.seeds):
        alpha = level_of_look(seeds, setting.seeds if setting.looks else None)
        seen = {
            m: {s: v for s, v in own.items() if not setting.looks or s < seeds}
            for m, own in runs.items()
        }
        found = verdicts(_compared(seen, images, common, rng), alpha)
        if any(verdict.differs for verdict in found.values()):
            return True
    return False


def table(studies: int, say: Callable[[str], None] = print) -> Table:
    """Row by setting."""
    rows = []
    for setting in SETTINGS:
        error, coverage = measured(setting, studies)
        other = measured(setting, studies, common=True)[0]
        size = f"{setting.methods} x {setting.seeds}, {setting.of_baseline}"
        cells = [f"{ALPHA:.2f}", f"{error:.3f}", f"{coverage:.3f}", f"{other:.3f}"]
        rows.append([setting.name, size, *cells])
        say(" | ".join(rows[-1]))
    columns = ["truth", "methods x seeds, of the baseline", "promised error", "error", "coverage"]
    return Table("Simulation", [*columns, "error with --common"], rows)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("experiments.report.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    found = table(options.studies)
    if options.page:
        put(markdown(found).replace("`", "") + "\n", "simulation", options.page)


if __name__ == "__main__":
    main()
