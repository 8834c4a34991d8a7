"""Runs -> methods to compare, and what is wrong with the runs."""

import json
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from experiments.report.differences import Difference, Rules, compared
from experiments.report.images import difference_over
from experiments.report.plan import Plan
from experiments.report.runs import FOLD, MADE, ORDER, Run, is_condition, terms
from experiments.report.spread import by_fold, failed
from experiments.report.verdicts import Verdict, verdicts

# The options of the default baseline, by group; GROUP/SITE has those of GROUP, whatever the site.
DEFAULTS = {
    "sampler": "random",
    "loss": "cross_entropy",
    "box_loss": "smooth_l1",
    "assigner": "max_iou",
    "weigher": "none",
    "experiment": "null",
}
ENDS = {
    "FAILED": "failed",
    "INTERRUPTED": "was interrupted",
    "RUNNING": "runs, or was killed",
    "UNREADABLE": "cannot be read",
}

# What a method is made of. A difference from the baseline in any other setting is reported.
METHOD = re.compile(r"(sampler|loss|box_loss|loss_weight|assigner|weigher)([./@]|$)")
# How runs differ in what ``MADE`` names.
APART = {
    "commit": "come from {} commits",
    "torch": "used {} versions of PyTorch",
    "processor": "come from {} processors",
    "instructions": "used {} sets of processor instructions",
    "threads": "used {} different numbers of threads",
    "gpu": "come from {} kinds of GPU",
    "machine": "come from {} machines",
    "weights": "start from {} sets of weights",
}
SHOWN = 4  # at most so many settings or runs are named in a sentence

Terms = tuple[tuple[str, str], ...]
# Key of a run within its method: seed, or (seed, fold) where runs are of several folds.
Draw = Any


@dataclass(frozen=True)
class Study:
    """Runs that can be compared.

    Args:
        methods: the runs by label (``sampler=ohem``) and seed, the baseline first. Where runs are
            of several folds, a pair of seed and fold takes the place of a seed.
        baseline: its label, or None if there is none.
        problems: a sentence for every run that is left out, every missing seed or baseline, runs
            without usable detections, and every difference in code or machine.
        draws: by run its AP on draws of the test images, where it is known.
        family: a key; the methods that have it are variants, which are shown apart.
        plan: what was said beforehand, and how the spread is taken.
    """

    methods: Mapping[str, Mapping[Draw, Run]]
    baseline: str | None
    problems: Sequence[str]
    draws: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    family: str | None = None
    plan: Plan = Plan()

    def values(self, method: str, figure: str) -> dict[Draw, float]:
        """A method's figure by seed, as a percentage; NaN where there is none."""
        runs = self.methods[method]
        return {seed: 100 * run.figures.get(figure, math.nan) for seed, run in runs.items()}

    def of_methods(self, figure: str = "AP") -> dict[str, dict[Draw, float]]:
        """The ``values`` of every method."""
        return {method: self.values(method, figure) for method in self.methods}

    def samples(self, figure: str = "AP") -> dict[str, dict[Any, float]]:
        """What is compared: by method and seed, or by method and fold, the mean over its seeds."""
        found = self.of_methods(figure)
        return by_fold(found) if self.folds else found

    @property
    def runs(self) -> list[Run]:
        """The runs of all methods."""
        return [run for by_seed in self.methods.values() for run in by_seed.values()]

    @property
    def folds(self) -> list[int]:
        """The folds that the runs are of; empty if there are not several."""
        found = sorted({run.fold for run in self.runs if run.fold is not None})
        return found if len(found) > 1 else []

    @property
    def compared(self) -> list[str]:
        """All methods but the baseline; empty without a baseline."""
        return [] if self.baseline is None else [m for m in self.methods if m != self.baseline]

    def in_family(self, method: str) -> bool:
        """Whether a method's command line had the key ``family``."""
        return any(self.family in run.method for run in self.methods[method].values())

    def over_images(self, method: str) -> np.ndarray | None:
        """float [B]: a method's difference to the baseline on draws of the test images, in percent.

        None if it is not known, or if runs are of several folds, which have images of their own.
        """
        own, base = (list(self.methods[m].values()) for m in (method, self.baseline or ""))
        if not own or self.folds:
            return None
        return difference_over(self.draws, [r.name for r in own], [r.name for r in base])

    @property
    def not_learnt(self) -> set[str]:
        """The methods that did not learn, measured by the baseline's AP."""
        return failed(self.samples(), self.baseline) if self.baseline else set()

    @property
    def learnt(self) -> dict[str, dict[Any, float]]:
        """The ``samples`` of the AP of the others."""
        apart = self.not_learnt
        return {method: own for method, own in self.samples().items() if method not in apart}

    @property
    def rules(self) -> Rules:
        """How runs are compared: those of folds always by fold."""
        return Rules(True if self.folds else None, self.plan.common)

    @property
    def fewest_seeds(self) -> int:
        """The seeds of the method that has the fewest; with folds, whole rounds of all of them."""
        runs = min((len(self.methods[method]) for method in self.compared), default=0)
        return runs // max(1, len(self.folds))

    @property
    def alpha(self) -> float:
        """The level at which differences are judged. With folds, one seed can be compared."""
        return self.plan.level(self.fewest_seeds, 1 if self.folds else 2)

    @property
    def differences(self) -> dict[str, Difference]:
        """The difference in AP, in percent, of every method that has runs to compare."""
        if self.baseline is None:
            return {}
        if self.folds:  # each fold has test images of its own: the spread of folds has their error
            found = compared(self.samples(), self.baseline, self.rules)
            return {m: replace(d, n=len(self.pairs(m))) for m, d in found.items()}
        over = {method: self.over_images(method) for method in self.compared}
        known = {method: own for method, own in over.items() if own is not None}
        # With the images' error for some methods and not for others, answers would mean two things.
        images = known if len(known) == len(over) else None
        return compared(self.samples(), self.baseline, self.rules, images)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on the AP, in percent, of every compared method with at least one run."""
        return verdicts(self.differences, self.alpha, self.plan.equivalent)

    def verdicts_on(self, figure: str) -> dict[str, Verdict]:
        """As ``verdicts``, of another figure: without the images' error, and without a region."""
        found = compared(
            self.samples(figure), self.baseline or "", self.rules, not_learnt=self.not_learnt
        )
        return verdicts(found, self.alpha)

    def pairs(self, method: str) -> dict[Draw, tuple[Run, Run]]:
        """By seed the runs of a method and of the baseline, for the seeds that both have."""
        own, base = self.methods[method], self.methods[self.baseline or ""]
        return {seed: (own[seed], base[seed]) for seed in sorted(own.keys() & base.keys())}


def study(runs: Sequence[Run], baseline: str | None = None) -> Study:
    """Group runs by method and seed. Runs that cannot be compared are left out, with a sentence.

    Args:
        baseline: a method's label or a part of it (``sampler=ohem``); by default the method that
            is random sampling with the default losses.

    Raises:
        LookupError: ``baseline`` matches no method, or several.
    """
    problems: list[str] = []
    found = grouped(usable_runs(runs, problems), baseline, problems)
    return replace(found, problems=[*found.problems, *made_apart(found.runs)])


def usable_runs(runs: Sequence[Run], problems: list[str], keys: Sequence[str] = ()) -> list[Run]:
    """The finished runs under the usual conditions.

    Runs with different values of ``keys`` need not share their other conditions. The terms that are
    the same in all runs with the same values are removed from the runs' methods.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in _finished(runs, problems):
        groups[json.dumps([run.settings.get(key) for key in keys])].append(run)
    agreeing = [_agreeing(g, is_condition, "most runs", problems) for g in groups.values()]
    found = [run for group in agreeing for run in group]
    shared = _shared_terms(agreeing)
    own = [{k: v for k, v in run.method.items() if k not in shared} for run in found]
    if not any(own):
        return found  # there is one method, which keeps its terms
    return [replace(run, method=method) for run, method in zip(found, own, strict=True)]


def _shared_terms(groups: Sequence[Sequence[Run]]) -> set[str]:
    """The keys that have one value in each group."""
    keys = {key for group in groups for run in group for key in run.method}
    return {k for k in keys if all(len({run.method.get(k) for run in g}) == 1 for g in groups)}


def grouped(usable: Sequence[Run], baseline: str | None, problems: Sequence[str] = ()) -> Study:
    """The study of ``usable_runs``, whose ``problems`` come first among its own.

    Raises:
        LookupError: as ``study``.
    """
    found = list(problems)
    groups: dict[Terms, list[Run]] = defaultdict(list)
    for run in usable:
        groups[tuple(run.method.items())].append(run)
    folds = len({run.fold for run in usable}) > 1
    methods = {key: _seeds(groups[key], folds, found) for key in sorted(groups)}
    chosen = _baseline(list(methods), baseline)
    if chosen is None:
        found.append(
            "There is no baseline, so nothing is compared: no finished method, or more than one, "
            "is random sampling with the default losses. `--baseline` names another method."
        )
    labels = _labels(sorted(methods, key=lambda key: key != chosen), chosen)
    named = {label: methods[key] for key, label in labels.items()}
    found += [*_missing_seeds(named), *_without_detections(named)]
    if chosen is None:
        return Study(named, None, found)
    return Study(named, labels[chosen], [*found, *_other_settings(named, labels[chosen])])


def _finished(runs: Sequence[Run], problems: list[str]) -> list[Run]:
    found = []
    for run in runs:
        if run.status != "COMPLETED":
            reason = f" ({' '.join(run.error.split())})" if run.error else ""
            problems.append(f"{named_run(run)} {ENDS[run.status]}{reason}: left out.")
        elif math.isnan(run.figures.get("AP", math.nan)):
            problems.append(f"{named_run(run)} has no AP: left out.")
        else:
            found.append(run)
    return found


def named_run(run: Run) -> str:
    """Its folder, method and seed."""
    what = shlex.join(f"{key}={value}" for key, value in run.method.items())
    seed = [] if run.seed is None else [f"seed {run.seed}"]
    fold = [] if run.fold is None else [f"fold {run.fold}"]
    details = ", ".join([*([f"`{what}`"] if what else []), *seed, *fold])
    return f"Run `{run.name}`" + (f" ({details})" if details else "")


def _agreeing(
    runs: Sequence[Run], compared: Callable[[str], bool], whose: str, problems: list[str]
) -> list[Run]:
    """The runs with the most frequent settings; of two that are as frequent, the first.

    Args:
        compared: whether the runs must share a setting, by its key.
        whose: who has the most frequent settings, in words.
    """
    kinds = [json.dumps(_chosen(run, compared), sort_keys=True) for run in runs]
    if not runs:
        return []
    usual = Counter(kinds).most_common(1)[0][0]
    for run, kind in zip(runs, kinds, strict=True):
        if kind != usual:
            unlike = _unlike(json.loads(kind), json.loads(usual), whose)
            problems.append(f"{named_run(run)} has other settings: {unlike}; left out.")
    return [run for run, kind in zip(runs, kinds, strict=True) if kind == usual]


def _chosen(run: Run, wanted: Callable[[str], bool]) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if wanted(key)}


def _unlike(own: Mapping[str, Any], usual: Mapping[str, Any], whose: str) -> str:
    keys = sorted(k for k in own.keys() | usual.keys() if own.get(k) != usual.get(k))
    texts = [f"{k}={own.get(k)} where {whose} have {usual.get(k)}" for k in keys[:SHOWN]]
    return ", ".join(texts) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _seeds(runs: Sequence[Run], folds: bool, problems: list[str]) -> dict[Draw, Run]:
    """A method's runs by seed, or by seed and fold where ``folds``."""
    found: dict[Draw, Run] = {}
    for run in _agreeing(runs, _is_free, "most of its method", problems):
        assert run.seed is not None
        draw = (run.seed, run.fold) if folds else run.seed
        if draw in found:
            first = found[draw].name
            problems.append(f"{named_run(run)} repeats run `{first}`, which is kept: left out.")
        else:
            found[draw] = run
    return dict(sorted(found.items()))


def _is_free(key: str) -> bool:
    return not is_condition(key) and key != FOLD


def _baseline(methods: Sequence[Terms], text: str | None) -> Terms | None:
    if text is None:
        found = [key for key in methods if all(_is_default(*term) for term in key)]
        return found[0] if len(found) == 1 else None
    wanted = terms(text).items()
    found = [key for key in methods if wanted <= dict(key).items()]
    found = [key for key in found if wanted == dict(key).items()] or found
    if len(found) != 1:
        known = ", ".join(_label(key, None) for key in found or methods)
        raise LookupError(f"--baseline {text}: {len(found)} methods match; there are {known}")
    return found[0]


def _is_default(key: str, value: str) -> bool:
    return DEFAULTS.get(key.partition("/")[0]) == value


def _labels(methods: Sequence[Terms], baseline: Terms | None) -> dict[Terms, str]:
    """Short labels, each of one method alone."""
    short = {key: _label(key, baseline) for key in methods}
    times = Counter(short.values())
    return {key: label if times[label] == 1 else _label(key, None) for key, label in short.items()}


def _label(method: Terms, baseline: Terms | None) -> str:
    """The terms in which a method differs from the baseline."""
    shared = set() if baseline is None or baseline == method else set(baseline)
    return shlex.join(f"{k}={v}" for k, v in method if (k, v) not in shared) or "defaults"


def _other_settings(methods: Mapping[str, Mapping[Draw, Run]], baseline: str) -> list[str]:
    """A sentence for each method that differs from the baseline in more than what makes a method
    and its label."""
    base = _first(methods[baseline])
    found = []
    for label, runs in methods.items():
        own = _first(runs)
        keys = {k for k in own.settings.keys() | base.settings.keys() if not METHOD.match(k)}
        free = keys - own.method.keys() - {FOLD, *ORDER}
        pair = [{key: run.settings.get(key) for key in free} for run in (own, base)]
        if pair[0] != pair[1]:
            unlike = _unlike(pair[0], pair[1], "the baseline's runs")
            found.append(f"`{label}` has other settings too: {unlike}.")
    return found


def _first(runs: Mapping[Draw, Run]) -> Run:
    return next(iter(runs.values()))


def _missing_seeds(methods: Mapping[str, Mapping[Draw, Run]]) -> list[str]:
    """A sentence for each method with a hole in its seeds: it lacks one, and has a later one.

    That methods have different numbers of seeds may be planned, and is no fault.
    """
    every = sorted(set().union(*methods.values()))
    found = []
    for label, runs in methods.items():
        fold = {draw[1] for draw in every if isinstance(draw, tuple)}
        wanted = every if fold else [draw for draw in every if draw <= max(runs)]
        lack = [_of(draw) for draw in wanted if draw not in runs]
        if lack:
            found.append(f"`{label}` has no finished run of seed {', '.join(lack)}.")
    return found


def _of(draw: Draw) -> str:
    return f"{draw[0]} on fold {draw[1]}" if isinstance(draw, tuple) else str(draw)


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _without_detections(methods: Mapping[str, Mapping[Draw, Run]]) -> list[str]:
    """A sentence for each reason."""
    names: dict[str, list[str]] = defaultdict(list)
    for run in (run for runs in methods.values() for run in runs.values() if run.lacks):
        names[run.lacks].append(f"`{run.name}`")
    return [
        f"Run{'' if len(found) == 1 else 's'} {_few(found)} "
        f"{_have(found)} {reason}: precision by recall, "
        "errors and what depends on the images are not known."
        for reason, found in names.items()
    ]


def made_apart(runs: Sequence[Run]) -> list[str]:
    """A sentence for each of ``MADE`` in which the runs differ."""
    made = [run.made for run in runs]
    found = []
    for key in MADE:
        counts = Counter(of[key] for of in made if key in of).most_common()
        if len(counts) > 1:
            values = ", ".join(f"`{value}` ({number})" for value, number in counts)
            found.append(f"The runs {APART[key].format(len(counts))}: {values}.")
    return found


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
