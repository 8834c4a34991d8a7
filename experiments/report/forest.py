"""The forest plot of a study: each method's difference with its interval, by answer.

Once as a figure for Markdown, and once as HTML that any width of a screen can show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.sentences import least_seen
from experiments.report.study import Study
from experiments.report.tables import compare, groups
from experiments.report.verdicts import (
    BETTER,
    EQUIVALENT,
    FAILED,
    UNDECIDED,
    UNTESTED,
    WORSE,
    Verdict,
)
from experiments.style import BLUE, GREEN, GREY, STYLE, VERMILLION, plain, wrapped

WILD = 3  # times the typical standard error: such an interval does not set the scale
# By answer: colour, matplotlib's marker, and the character in HTML.
LOOKS = {
    BETTER: (BLUE, "^", "▲"),
    WORSE: (VERMILLION, "v", "▼"),
    EQUIVALENT: (GREEN, "D", "◆"),
    UNDECIDED: (GREY, "o", "●"),
    UNTESTED: (GREY, "s", "?"),
    FAILED: ("black", "x", "✕"),
}


@dataclass(frozen=True)
class Forest:
    """What is drawn.

    Args:
        groups: the methods by group, sorted by difference.
        verdicts: by method.
        low, high: the ends of the axis; what lies beyond is cut.
        equivalent: the region of equivalence reaches from minus this to this, or None.
        seen: the true difference that the typical comparison would have shown, or None.
        labels: of methods whose key is not what a reader is shown.
    """

    groups: list[tuple[str, list[str]]]
    verdicts: Mapping[str, Verdict]
    low: float
    high: float
    equivalent: float | None
    seen: float | None
    labels: Mapping[str, str] = field(default_factory=dict)

    def label(self, method: str) -> str:
        """What stands beside a method's row."""
        return self.labels.get(method, method)

    def cut(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)


def forest(study: Study) -> Forest:
    """The forest of a study in which something is compared."""
    found = compare(study)
    return grown(groups(study, found), found, study.plan.equivalent, least_seen(found))


def grown(
    named: Sequence[tuple[str, list[str]]],
    found: Mapping[str, Verdict],
    equivalent: float | None,
    seen: float | None,
    labels: Mapping[str, str] | None = None,
) -> Forest:
    """The forest of any verdicts, with an axis that shows all usual intervals whole."""
    ends = [0.0, *_ends(found)]
    for beside in (equivalent, seen):
        ends += [] if beside is None else [beside, -beside]
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - margin, max(ends) + margin
    return Forest(list(named), found, low, high, equivalent, seen, labels or {})


def _ends(found: Mapping[str, Verdict]) -> list[float]:
    """The ends of the intervals that set the scale, or the means where there are none."""
    scales = [v.difference.scale for v in found.values() if v.difference.scale is not None]
    if not scales:
        return [v.difference.mean for v in found.values() if v.difference.learnt]
    usual = [
        v.interval
        for v in found.values()
        if v.interval is not None and (v.difference.scale or 0.0) <= WILD * median(scales)
    ]
    return [end for interval in usual for end in interval]


def figure(drawn: Forest, baseline: str) -> Figure:
    """One row per method, one panel per group."""
    sizes = [len(own) for _, own in drawn.groups]
    height = 1.2 + 0.3 * sum(sizes) + 0.4 * len(sizes)
    found = Figure(figsize=(8, height), layout="constrained")
    panels = found.subplots(len(sizes), 1, sharex=True, height_ratios=sizes, squeeze=False)[:, 0]
    for axes, (name, own) in zip(panels, drawn.groups, strict=True):
        _beside(axes, drawn)
        for row, method in enumerate(own):
            _row(axes, row, drawn, drawn.verdicts[method])
        axes.set_yticks(range(len(own)), [wrapped(drawn.label(m)) for m in own], **STYLE)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_xlim(drawn.low, drawn.high)
        axes.grid(axis="x", alpha=0.3)
        if len(sizes) > 1:
            axes.set_title(name, **STYLE)
        plain(axes)
    panels[-1].set_xlabel(f"difference in AP (percent) to {baseline}", **STYLE)
    return found


def _beside(axes, drawn: Forest) -> None:  # type: ignore[no-untyped-def]
    """Zero, the region of equivalence and what could be seen."""
    axes.axvline(0, color="black", linewidth=0.8)
    if drawn.equivalent is not None:
        axes.axvspan(-drawn.equivalent, drawn.equivalent, color=GREEN, alpha=0.12, linewidth=0)
    for sign in (1, -1) if drawn.seen is not None else ():
        axes.axvline(sign * (drawn.seen or 0.0), color=GREY, linewidth=0.8, linestyle=":")


def _row(axes, row: int, drawn: Forest, verdict: Verdict) -> None:  # type: ignore[no-untyped-def]
    colour, marker, _ = LOOKS[verdict.answer]
    mean = verdict.difference.mean
    if verdict.interval is not None:
        axes.plot([drawn.cut(end) for end in verdict.interval], [row, row], color=colour, lw=2)
    if drawn.cut(mean) == mean:
        axes.plot(mean, row, marker, color=colour)
        return
    left = mean < 0
    text = f"← {mean:.1f}" if left else f"{mean:.1f} →"
    side = "left" if left else "right"
    axes.text(drawn.cut(mean), row, text, color=colour, ha=side, va="center", **STYLE)


def html(drawn: Forest, baseline: str) -> str:
    """One row per method: its name, its interval and its difference."""
    lines = []
    for name, own in drawn.groups:
        lines += [f'<div class="group">{escape(name)}</div>'] if len(drawn.groups) > 1 else []
        lines += [_html_row(method, drawn) for method in own]
    ticks = (_at("tick", drawn, value, f"{value:+g}" if value else "0") for value in _ticks(drawn))
    axis = f'<span class="axis">{"".join(ticks)}</span>'
    rows = "\n".join([*lines, f'<div class="row"><span></span>{axis}<span></span></div>'])
    return (
        f'<div class="forest">\n{rows}\n</div>\n'
        f'<p class="note">Difference in AP (percent) to {escape(baseline)}, and the interval that '
        f"holds for all together. {_legend(drawn)}</p>"
    )


def _html_row(method: str, drawn: Forest) -> str:
    verdict = drawn.verdicts[method]
    colour, _, mark = LOOKS[verdict.answer]
    mean = verdict.difference.mean
    parts = _html_beside(drawn)
    if verdict.interval is not None:
        parts += _span("bar", drawn, *verdict.interval, f"background:{colour}")
    if drawn.cut(mean) != mean:
        mark = "←" if mean < 0 else "→"  # it lies beyond the axis
    parts += _at("mark", drawn, mean, mark, f"color:{colour}")
    label = escape(drawn.label(method))
    return (
        f'<div class="row" title="{escape(verdict.answer)}"><code>{label}</code>'
        f'<span class="track">{parts}</span><span class="value">{mean:+z.1f}</span></div>'
    )


def _html_beside(drawn: Forest) -> str:
    parts = _at("zero", drawn, 0.0)
    if drawn.equivalent is not None:
        parts = _span("region", drawn, -drawn.equivalent, drawn.equivalent) + parts
    if drawn.seen is not None:
        parts += _at("seen", drawn, drawn.seen) + _at("seen", drawn, -drawn.seen)
    return parts


def _legend(drawn: Forest) -> str:
    answers = {verdict.answer for verdict in drawn.verdicts.values()}
    marks = [
        f'<span style="color:{colour}">{mark}</span> {answer}'
        for answer, (colour, _, mark) in LOOKS.items()
        if answer in answers
    ]
    region = f" Green: within ±{drawn.equivalent:g} AP." if drawn.equivalent is not None else ""
    seen = ""
    if drawn.seen is not None:
        seen = f" Dotted: ±{drawn.seen:.1f} AP, which would have been seen four times in five."
    return f"{', '.join(marks)}.{region}{seen}"


def _percent(drawn: Forest, value: float) -> float:
    return 100 * (drawn.cut(value) - drawn.low) / (drawn.high - drawn.low)


def _at(kind: str, drawn: Forest, value: float, text: str = "", style: str = "") -> str:
    return f'<i class="{kind}" style="left:{_percent(drawn, value):.2f}%;{style}">{text}</i>'


def _span(kind: str, drawn: Forest, low: float, high: float, style: str = "") -> str:
    left, right = _percent(drawn, low), _percent(drawn, high)
    return f'<i class="{kind}" style="left:{left:.2f}%;width:{right - left:.2f}%;{style}"></i>'


def _ticks(drawn: Forest) -> list[float]:
    """Round values, at most nine."""
    ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(drawn.low, drawn.high)
    return [float(tick) for tick in ticks if drawn.low <= tick <= drawn.high]
