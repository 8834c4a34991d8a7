"""A map as plain sentences."""

from collections.abc import Sequence

from experiments.conditions.map import Condition, Map
from experiments.conditions.tables import ALL, ends, label
from experiments.report.statistics import ALPHA
from experiments.report.tables import interval, p_value


def sentences(found: Map) -> list[str]:
    """Of each method: over all conditions, and under which of them it differs from the baseline."""
    said = []
    for method in found.methods:
        own = {c: v for (c, name), v in found.verdicts.items() if name == method}
        own = {condition: verdict for condition, verdict in own.items() if verdict.p is not None}
        if not own:
            said.append(f"`{method}` has one seed: no comparison.")
            continue
        better = [c for c, v in own.items() if v.differs and v.difference.spread.mean > 0]
        worse = [c for c, v in own.items() if v.differs and c not in better]
        parts = [f"better at {_listed(found, better)}"] if better else []
        parts += [f"worse at {_listed(found, worse)}"] if worse else []
        rest = len(own) - len(better) - len(worse)
        parts += [f"no difference shown at {rest} of {len(own)} conditions"] if rest else []
        said.append(f"`{method}`: {_over_all(found, method)}{', '.join(parts)}.")
    return said + _changed(found)


def _changed(found: Map) -> list[str]:
    tested = {key: v for key, v in found.changes.items() if v.p is not None}
    said = []
    for (place, method), verdict in tested.items():
        if verdict.differs:
            key, (first, last) = found.keys[place], ends(found, place)
            mean = verdict.difference.spread.mean
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
        f"methods and conditions together{but}: p {_p(found.depends)})."
    ]


def _over_all(found: Map, method: str) -> str:
    verdict = found.overall.get(method)
    if verdict is None or verdict.p is None:
        return ""
    mean = verdict.difference.spread.mean
    how = ("better" if mean > 0 else "worse") if verdict.differs else "no difference shown"
    level, between = interval(verdict)
    alone = found.alone[method].p
    assert alone is not None
    return (
        f"{how} over {ALL} ({mean:+.2f} AP, {level} interval {between}, p {_p(verdict.p)}; "
        f"with the standard deviation of its own seeds alone p {_p(alone)}); "
    )


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _listed(found: Map, conditions: Sequence[Condition]) -> str:
    return " and ".join(label(found, condition) for condition in conditions)
