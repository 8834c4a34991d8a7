"""A map as plain sentences."""

from collections.abc import Sequence

from experiments.conditions.map import Condition, Map
from experiments.conditions.tables import ALL, ends, label
from experiments.report.sentences import OF_FOLDS, code, counted, setting
from experiments.report.tables import equals, interval, p_value
from experiments.report.verdicts import ALPHA, BETTER, EQUIVALENT, FAILED, WORSE


def facts(found: Map) -> str:
    """What was compared."""
    runs = found.runs
    parts = [f"{len(found.studies)} conditions", f"{len(runs)} runs"]
    return "; ".join([*setting(runs), *parts, *code(runs)])


def headline(found: Map) -> str:
    """The answers over all conditions in one sentence."""
    own = list(found.overall.values())
    tested = [v for v in found.verdicts.values() if v.p is not None]
    shown = sum(v.differs for v in tested)
    return (
        f"Over {ALL}, of {len(own)} methods {counted(own)}. Under a single condition "
        f"{shown or 'none'} of {len(tested)} tested differences {'is' if shown < 2 else 'are'} "
        "shown."
    )


def sentences(found: Map) -> list[str]:
    """Of each method: over all conditions, and under which of them it differs from the baseline."""
    said = [headline(found), *([OF_FOLDS.format(len(found.folds))] if found.folds else [])]
    for method in found.methods:
        own = {c: v for (c, name), v in found.verdicts.items() if name == method}
        tested = {condition: v for condition, v in own.items() if v.p is not None}
        if not tested:
            said.append(f"`{method}` has one seed: no comparison.")
            continue
        parts, rest = [], len(tested)
        for answer in (BETTER, WORSE, EQUIVALENT):
            there = [c for c, v in tested.items() if v.answer == answer]
            parts += [f"{answer} at {_listed(found, there)}"] if there else []
            rest -= len(there)
        parts += [f"undecided at {rest} of {len(own)} conditions"] if rest else []
        failed = sum(v.answer == FAILED for v in own.values())
        parts += [f"did not learn at {failed}"] if failed else []
        said.append(f"`{method}`: {_over_all(found, method)}{', '.join(parts)}.")
    return [*said, *_changed(found), found.plan.said(found.seeds, found.alpha)]


def _changed(found: Map) -> list[str]:
    tested = {key: v for key, v in found.changes.items() if v.p is not None}
    said = []
    for (place, method), verdict in tested.items():
        if verdict.differs:
            key, (first, last) = found.keys[place], ends(found, place)
            mean = verdict.difference.mean
            how = "more" if mean > 0 else "less"
            said.append(f"`{method}` gains {how} at {key}={last} than at {first}: {mean:+.1f} AP.")
    none = "No method's difference is shown to change between the ends of an axis."
    return (said or ([none] if tested else [])) + _depends(found)


def _depends(found: Map) -> list[str]:
    if found.depends is None:
        return []
    without = [f"`{m}`" for m in (found.baseline, *found.methods) if m not in found.steady]
    but = f", without {' and '.join(without)}" if without else ""
    how = "do" if found.depends <= ALPHA else "are not shown to"
    return [
        f"The methods' differences {how} depend on the condition (analysis of variance of all "
        f"methods and conditions together{but}: p {equals(p_value(found.depends))})."
    ]


def _over_all(found: Map, method: str) -> str:
    verdict = found.overall.get(method)
    if verdict is None or verdict.p is None:
        return ""
    return (
        f"{verdict.answer} over {ALL} ({verdict.difference.mean:+.2f} AP, interval "
        f"{interval(verdict)}, p {equals(p_value(verdict.p))}); "
    )


def _listed(found: Map, conditions: Sequence[Condition]) -> str:
    return " and ".join(label(found, condition) for condition in conditions)
