"""Runs -> studies by condition, and what can be said of all of them together."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from experiments.report.runs import Run, is_condition
from experiments.report.statistics import (
    Difference,
    Verdict,
    compared,
    depends,
    failed,
    in_blocks,
    paired,
    steady,
    verdicts,
)
from experiments.report.study import Study, grouped, made_apart, named_run, usable_runs
from experiments.report.tables import differences

Condition = tuple[str, ...]  # of each key its value, as JSON


@dataclass(frozen=True)
class Map:
    """Studies by condition.

    Args:
        keys: the settings that make a condition.
        studies: by condition.
        axes: for each key the conditions that differ from ``centre`` in that key alone, and
            ``centre``, by the key's value.
        centre: the commonest value of each key.
        verdicts: by condition and method: the spread is that of the condition's runs, the
            correction for the number of all of them.
        overall: by method, on the mean over the conditions of each seed that has them all.
        changes: by the place of a key and method: the difference at the last value of the axis
            less that at the first.
        alone: as ``overall``, each method with the spread of its own differences.
        depends: p that the methods' differences are the same under all conditions; None if it
            cannot be said.
        steady: the methods that ``depends`` is of: those that all conditions have and that are
            about equally steady.
        problems: a sentence for each run, seed, method and condition that is left out.
    """

    keys: Sequence[str]
    studies: Mapping[Condition, Study]
    axes: Sequence[Sequence[Condition]]
    centre: Condition
    verdicts: Mapping[tuple[Condition, str], Verdict]
    overall: Mapping[str, Verdict]
    changes: Mapping[tuple[int, str], Verdict]
    alone: Mapping[str, Verdict]
    depends: float | None
    steady: Sequence[str]
    problems: Sequence[str]

    @property
    def baseline(self) -> str:
        """The method that all others are compared with."""
        return self.studies[self.centre].baseline or ""

    @property
    def methods(self) -> list[str]:
        """Those that are compared, the baseline not among them."""
        return list(dict.fromkeys(method for _, method in self.verdicts))

    @property
    def runs(self) -> list[Run]:
        """All that are compared."""
        return [run for study in self.studies.values() for run in study.runs]

    def values(self, condition: Condition, method: str) -> list[float]:
        """AP in percent, a value a seed."""
        return list(self.studies[condition].values(method, "AP").values())


def make(runs: Sequence[Run], keys: Sequence[str], baseline: str | None = None) -> Map:
    """Split the runs by condition and compare the methods under each.

    Raises:
        LookupError: no runs, or none to compare, all in all or under the centre; a key in which no
            two of them differ.
    """
    if not runs:
        raise LookupError("no run, which is a folder with a status.json")
    problems: list[str] = []
    usable = usable_runs(runs, problems, keys)
    found = _studies(usable, keys, baseline, problems)
    centre = tuple(Counter(column).most_common(1)[0][0] for column in zip(*found, strict=True))
    if centre not in found:
        missing = f"the centre {name(keys, centre)} has no baseline and a method"
        raise LookupError("\n".join([missing, *problems]))
    axes = [_axis(found, centre, place) for place in range(len(keys))]
    shown = {condition for axis in axes for condition in axis}
    problems += [f"{name(keys, c)}: lies on no axis: left out." for c in found if c not in shown]
    studies = {condition: study for condition, study in found.items() if condition in shown}
    problems += _absent(studies, keys)
    compared_runs = [run for study in studies.values() for run in study.runs]
    problems += [*_apart(compared_runs, keys), *made_apart(compared_runs)]
    tested = {(c, m): d for c, s in studies.items() for m, d in differences(s).items()}
    base = studies[centre].baseline or ""
    together = means(studies)
    overall = compared(together, base)
    chosen = _steady(together, base)
    alone = {method: paired(together[method], together[base]) for method in overall}
    changed = {
        (place, method): difference
        for place, axis in enumerate(axes)
        for method, difference in along(studies[axis[0]], studies[axis[-1]]).items()
    }
    return Map(
        keys=keys,
        studies=studies,
        axes=axes,
        centre=centre,
        verdicts=verdicts(tested),
        overall=verdicts(overall),
        changes=verdicts(changed),
        alone=verdicts(alone),
        depends=depends([{m: s.values(m, "AP") for m in chosen} for s in studies.values()]),
        steady=chosen,
        problems=problems,
    )


def _studies(
    runs: Sequence[Run], keys: Sequence[str], baseline: str | None, problems: list[str]
) -> dict[Condition, Study]:
    """Of the conditions in which something is compared."""
    groups: dict[Condition, list[Run]] = defaultdict(list)
    for run in runs:
        missing = [key for key in keys if key not in run.settings]
        if missing:
            _check(missing[0], runs)
            problems.append(f"{named_run(run)} has no {missing[0]}: left out.")
        else:
            groups[tuple(json.dumps(run.settings[key]) for key in keys)].append(run)
    found = {}
    for condition, group in groups.items():
        try:
            study = grouped(group, baseline)
        except LookupError as error:
            problems.append(f"{name(keys, condition)}: {error}: left out.")
            continue
        problems += [f"{name(keys, condition)}: {problem}" for problem in study.problems]
        if differences(study):
            found[condition] = study
        elif not study.problems:
            problems.append(f"{name(keys, condition)}: nothing to compare: left out.")
    if not found:
        raise LookupError("\n".join(["no condition has a baseline and a method", *problems]))
    return found


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


def means(studies: Mapping[Condition, Study]) -> dict[str, dict[int, float]]:
    """By method and seed the mean AP over the conditions, of the seeds that have them all.

    Many conditions tell more than one; runs of a seed share their initial weights under all of
    them, so it is the seeds that are independent, and their number that counts. The mean is that of
    these conditions, each as heavy as any other, and says nothing of others.
    """
    found: dict[str, dict[int, float]] = {}
    for method in dict.fromkeys(m for study in studies.values() for m in study.methods):
        under = [s.values(method, "AP") if method in s.methods else {} for s in studies.values()]
        seeds = set.intersection(*(set(own) for own in under))
        found[method] = {seed: fmean(own[seed] for own in under) for seed in sorted(seeds)}
    return found


def along(first: Study, last: Study) -> dict[str, Difference]:
    """How much more a method differs from the baseline at the last than at the first condition;
    with a spread of its own where it did not learn at one of them."""
    base = first.baseline or ""
    ends = [{m: s.values(m, "AP") for m in s.methods} for s in (first, last)]
    changes = {
        method: {seed: ends[1][method][seed] - own[seed] for seed in own.keys() & ends[1][method]}
        for method, own in ends[0].items()
        if method in ends[1]
    }
    if base not in changes or first is last:
        return {}
    return in_blocks(changes, base, set().union(*(failed(values, base) for values in ends)))


def _steady(together: Mapping[str, Mapping[int, float]], base: str) -> list[str]:
    """Of the methods' ``means`` those that learnt and are about equally steady."""
    apart = failed(together, base)
    return list(steady({m: own for m, own in together.items() if own and m not in apart}))


def _axis(conditions: Mapping[Condition, Study], centre: Condition, place: int) -> list[Condition]:
    def others(condition: Condition) -> Condition:
        return condition[:place] + condition[place + 1 :]

    found = [condition for condition in conditions if others(condition) == others(centre)]
    return sorted(found, key=lambda condition: _order(condition[place]))


def _order(text: str) -> tuple[int, Any]:
    """Numbers by size, then lists by their first, then the rest by name."""
    value = json.loads(text)
    kind = {int: 0, float: 0, list: 1}.get(type(value), 2)
    return kind, value if kind < 2 else text


def name(keys: Sequence[str], condition: Condition) -> str:
    """``data.clutter=0, data.imbalance=6``."""
    return ", ".join(f"{key}={value}" for key, value in zip(keys, condition, strict=True))
