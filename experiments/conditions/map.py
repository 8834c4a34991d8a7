"""Runs -> studies by condition, and what can be said of all of them together."""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, TypeVar

from experiments.report.differences import Difference, Rules, compared, compared_together
from experiments.report.interaction import depends, steady
from experiments.report.plan import Plan
from experiments.report.runs import Run, is_condition
from experiments.report.spread import Values, failed
from experiments.report.study import Study, grouped, made_apart, named_run, usable_runs
from experiments.report.verdicts import Key, Verdict, verdicts

Condition = tuple[str, ...]  # the value of each key, as JSON
Group = TypeVar("Group", bound=Hashable)  # a condition, or the place of an axis
NO_PLAN = Plan()


@dataclass(frozen=True)
class Map:
    """Studies by condition.

    Args:
        keys: the settings that make a condition.
        studies: by condition.
        axes: one per key, ordered by the key's value: ``centre``, and the conditions that differ
            from it in that key alone.
        centre: the most frequent value of each key.
        problems: a sentence for each run, seed, method and condition that is left out.
        plan: what was said beforehand.
    """

    keys: Sequence[str]
    studies: Mapping[Condition, Study]
    axes: Sequence[Sequence[Condition]]
    centre: Condition
    problems: Sequence[str]
    plan: Plan = NO_PLAN

    @property
    def baseline(self) -> str:
        """The method that all others are compared with."""
        return self.studies[self.centre].baseline or ""

    @property
    def methods(self) -> list[str]:
        """The methods that are compared, without the baseline, the best over all first."""
        found = dict.fromkeys(method for _, method in self.verdicts)
        last = min((v.difference.mean for v in self.overall.values()), default=0.0) - 1
        means = {m: v.difference.mean for m, v in self.overall.items()}
        return sorted(found, key=lambda method: -means.get(method, last))

    @property
    def runs(self) -> list[Run]:
        """All runs that are compared."""
        return [run for study in self.studies.values() for run in study.runs]

    @property
    def folds(self) -> list[int]:
        """The folds that the runs are of; empty if there are not several."""
        return self.studies[self.centre].folds

    def values(self, condition: Condition, method: str) -> list[float]:
        """AP in percent, one value per seed, or per fold."""
        return list(self.studies[condition].samples()[method].values())

    @cached_property
    def not_learnt(self) -> set[str]:
        """The methods that did not learn under some condition."""
        return {method for study in self.studies.values() for method in study.not_learnt}

    @property
    def seeds(self) -> int:
        """Those of the method and condition that has the fewest; with folds, rounds of all."""
        found = self.studies.values()
        runs = min(len(own) for study in found for own in study.methods.values())
        return runs // max(1, len(self.folds))

    @property
    def alpha(self) -> float:
        """The level at which differences are judged. With folds, one seed can be compared."""
        return self.plan.level(self.seeds, 1 if self.folds else 2)

    def judged(self, found: Mapping[Key, Difference]) -> dict[Key, Verdict]:
        """The verdicts on differences, as planned."""
        return verdicts(found, self.alpha, self.plan.equivalent)

    @cached_property
    def verdicts(self) -> dict[tuple[Condition, str], Verdict]:
        """By condition and method: the spread of the condition's runs, one correction for all."""
        samples = {condition: study.samples() for condition, study in self.studies.items()}
        apart = [study.not_learnt for study in self.studies.values()]
        return self.judged(self._compared(samples, apart))

    @cached_property
    def means(self) -> dict[str, dict[Any, float]]:
        """By method and seed (or fold) the mean AP over the conditions."""
        return means([study.samples() for study in self.studies.values()])

    @cached_property
    def overall(self) -> dict[str, Verdict]:
        """By method, on the ``means``."""
        return self.judged(compared(self.means, self.baseline, self._rules))

    @cached_property
    def changes(self) -> dict[tuple[int, str], Verdict]:
        """By the index of a key and method: the difference at the last value of the axis minus
        that at the first. A method that did not learn at one of them is not tested."""
        ends = {
            place: (self.studies[axis[0]], self.studies[axis[-1]])
            for place, axis in enumerate(self.axes)
            if len(axis) > 1
        }
        samples = {place: along(*pair) for place, pair in ends.items()}
        apart = [first.not_learnt | last.not_learnt for first, last in ends.values()]
        return self.judged(self._compared(samples, apart))

    @property
    def _rules(self) -> Rules:
        return self.studies[self.centre].rules

    def _compared(
        self, groups: Mapping[Group, Values], not_learnt: Sequence[set[str]]
    ) -> dict[tuple[Group, str], Difference]:
        """The differences of the methods of each group."""
        found = compared_together(list(groups.values()), self.baseline, not_learnt, self._rules)
        return {(key, m): d for key, own in zip(groups, found, strict=True) for m, d in own.items()}

    @cached_property
    def steady(self) -> list[str]:
        """The methods that all conditions have, that learnt, and whose variances do not differ
        significantly (Cochran)."""
        apart = failed(self.means, self.baseline)
        chosen = {m: own for m, own in self.means.items() if own and m not in apart}
        return list(steady(chosen))

    @cached_property
    def depends(self) -> float | None:
        """p that the differences of the ``steady`` methods are the same under all conditions; None
        if it cannot be computed."""
        of_all = [study.samples() for study in self.studies.values()]
        return depends([{m: own[m] for m in self.steady} for own in of_all])


def make(
    runs: Sequence[Run], keys: Sequence[str], baseline: str | None = None, plan: Plan = NO_PLAN
) -> Map:
    """Split the runs by condition and compare the methods under each.

    Raises:
        LookupError: there are no runs, or none to compare, under any condition or at the centre;
            or no two runs differ in a key.
    """
    if not runs:
        raise LookupError("no run, which is a folder with a status.json")
    problems: list[str] = []
    found = _studies(usable_runs(runs, problems, keys), keys, baseline, problems)
    centre = _centre(found, keys, problems)
    axes = [_axis(found, centre, index) for index in range(len(keys))]
    shown = {condition for axis in axes for condition in axis}
    studies = {condition: study for condition, study in found.items() if condition in shown}
    problems += [f"{name(keys, c)}: lies on no axis: left out." for c in found if c not in shown]
    return Map(keys, studies, axes, centre, [*problems, *_unequal(studies, keys)], plan)


def _centre(
    found: Mapping[Condition, Study], keys: Sequence[str], problems: Sequence[str]
) -> Condition:
    centre = tuple(Counter(column).most_common(1)[0][0] for column in zip(*found, strict=True))
    if centre not in found:
        missing = f"the centre {name(keys, centre)} has no baseline and a method"
        raise LookupError("\n".join([missing, *problems]))
    return centre


def _unequal(studies: Mapping[Condition, Study], keys: Sequence[str]) -> list[str]:
    """What the conditions have not in common, a sentence each."""
    runs = [run for study in studies.values() for run in study.runs]
    return [*_absent(studies, keys), *_apart(runs, keys), *made_apart(runs)]


def _studies(
    runs: Sequence[Run], keys: Sequence[str], baseline: str | None, problems: list[str]
) -> dict[Condition, Study]:
    """The studies of the conditions in which something is compared."""
    found = {}
    for condition, group in _by_condition(runs, keys, problems).items():
        try:
            study = grouped(group, baseline)
        except LookupError as error:
            problems.append(f"{name(keys, condition)}: {error}: left out.")
            continue
        problems += [f"{name(keys, condition)}: {problem}" for problem in study.problems]
        if study.differences:
            found[condition] = study
        elif not study.problems:
            problems.append(f"{name(keys, condition)}: nothing to compare: left out.")
    if not found:
        raise LookupError("\n".join(["no condition has a baseline and a method", *problems]))
    return found


def _by_condition(
    runs: Sequence[Run], keys: Sequence[str], problems: list[str]
) -> dict[Condition, list[Run]]:
    groups: dict[Condition, list[Run]] = defaultdict(list)
    for run in runs:
        missing = [key for key in keys if key not in run.settings]
        if missing:
            _check(missing[0], runs)
            problems.append(f"{named_run(run)} has no {missing[0]}: left out.")
        else:
            groups[tuple(json.dumps(run.settings[key]) for key in keys)].append(run)
    return groups


def _check(key: str, runs: Sequence[Run]) -> None:
    if not any(key in run.settings for run in runs):
        known = ", ".join(sorted({k for run in runs for k in run.settings}))
        raise LookupError(f"--by {key}: no two runs differ in it. They differ in {known}")


def _absent(studies: Mapping[Condition, Study], keys: Sequence[str]) -> list[str]:
    """A sentence for each method that a condition does not have at all."""
    methods = dict.fromkeys(m for study in studies.values() for m in study.methods)
    return [
        f"{name(keys, condition)}: `{method}` has no finished run."
        for condition, study in studies.items()
        for method in methods
        if method not in study.methods
    ]


def _apart(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """A sentence for each setting beside ``keys`` in which the conditions differ."""
    found = []
    for key in sorted(set().union(*(run.settings for run in runs)) - set(keys)):
        values = Counter(json.dumps(run.settings.get(key)) for run in runs)
        if is_condition(key) and len(values) > 1:
            shown = ", ".join(f"{value} ({number})" for value, number in values.most_common())
            found.append(f"The conditions differ in {key} too: {shown}.")
    return found


def means(conditions: Sequence[Values]) -> dict[str, dict[Any, float]]:
    """By method and seed (or fold) the mean AP over the conditions; only of seeds that have all.

    The runs of one seed share their initial weights under all conditions, and those of one fold
    their images. So only seeds (or folds) are independent, and their number counts. All these
    conditions have the same weight in the mean; it says nothing about other conditions.
    """
    found: dict[str, dict[Any, float]] = {}
    for method in dict.fromkeys(m for methods in conditions for m in methods):
        under = [methods.get(method, {}) for methods in conditions]
        seeds = set.intersection(*(set(own) for own in under))
        found[method] = {seed: fmean(own[seed] for own in under) for seed in sorted(seeds)}
    return found


def along(first: Study, last: Study) -> dict[str, dict[Any, float]]:
    """By method and seed (or fold) the AP under the last condition minus that under the first."""
    before, after = first.samples(), last.samples()
    return {
        method: {seed: after[method][seed] - own[seed] for seed in own.keys() & after[method]}
        for method, own in before.items()
        if method in after
    }


def _axis(conditions: Mapping[Condition, Study], centre: Condition, index: int) -> list[Condition]:
    """The conditions that differ from the centre in one key at most, by its value."""
    others = _without(centre, index)
    found = [condition for condition in conditions if _without(condition, index) == others]
    return sorted(found, key=lambda condition: _order(condition[index]))


def _without(condition: Condition, index: int) -> Condition:
    return condition[:index] + condition[index + 1 :]


def _order(text: str) -> tuple[int, Any]:
    """Numbers by value, then lists by their first number, then the rest by name."""
    value = json.loads(text)
    kind = {int: 0, float: 0, list: 1}.get(type(value), 2)
    return kind, value if kind < 2 else text


def name(keys: Sequence[str], condition: Condition) -> str:
    """``data.clutter=0, data.imbalance=6``."""
    return ", ".join(f"{key}={value}" for key, value in zip(keys, condition, strict=True))
