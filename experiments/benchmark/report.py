"""Results as a JSON file, and a Markdown page that is made from that file alone.

A part's result is ``{"tables": [table, ...], ...}``; a table has a title, notes and rows. A row
maps columns to values: text, a number, or a spread ``{"median", "q1", "q3"}``. A row with
"not measured" gives the reason instead of figures.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.table import grid

WHY = "not measured"
INTRODUCTION = (
    "Made by `python -m experiments.benchmark`. `2.00 (1.90 to 2.10)` is the median with the "
    "quartiles. The candidates of a comparison take turns, round by round; a ratio is computed in "
    "each round, and the median is over the rounds."
)

Row = dict[str, Any]
# The figures for the README: (words, (part, beginning of the table's title, first cell, column)).
HEADLINES = (
    (
        "a training step, times as fast as torchvision's own detector (fp32)",
        ("step", "Training step", "ours, fp32", "times as fast as stock torchvision, fp32"),
    ),
    (
        "the same in bf16, times as fast as torchvision's own in fp32",
        ("step", "Training step", "ours, bf16", "times as fast as stock torchvision, fp32"),
    ),
    (
        "a step with OHEM at the head, times one with random sampling",
        ("samplers", "A step", "sampler=ohem", "times random"),
    ),
    (
        "a step with PISA at the head, times one with random sampling",
        ("samplers", "A step", "sampler=pisa", "times random"),
    ),
    (
        "share of the training time spent waiting for images, %",
        ("data", "Waiting", "", "share of time waiting, %"),
    ),
)


def table(title: str, rows: Sequence[Row], *notes: str) -> dict[str, Any]:
    """A table of a part."""
    return {"title": title, "notes": list(notes), "rows": list(rows)}


def store(file: Path, machine: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Write ``file`` (JSON) and its page beside it (.md).

    Parts that were measured earlier on the same machine stay.
    """
    kept: dict[str, Any] = {}
    if file.exists():
        before = json.loads(file.read_text())
        kept = before["parts"] if before["machine"] == dict(machine) else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": dict(machine), "parts": kept | dict(parts)}
    file.write_text(json.dumps(results, indent=1) + "\n")
    file.with_suffix(".md").write_text(page(results))


def page(results: Mapping[str, Any]) -> str:
    """The Markdown page of a result file's content."""
    lines = ["# Benchmark", "", INTRODUCTION, ""]
    lines += [f"- {key}: {shown(value)}" for key, value in results["machine"].items()]
    for name, part in results["parts"].items():
        lines += ["", f"## {name}", "", f"commit {part['commit']}, {part['date']}"]
        for content in part["tables"]:
            lines += ["", markdown(content)]
    return "\n".join(lines) + "\n"


def headlines(results: Mapping[str, Any]) -> str:
    """The few figures for the README, as a Markdown table."""
    figures = [(words, found(results, *place)) for words, place in HEADLINES]
    rows = [[words, WHY if figure is None else shown(figure)] for words, figure in figures]
    return grid(["what", "measured"], rows) + "\n"


def found(results: Mapping[str, Any], part: str, title: str, name: str, column: str) -> Any:
    """The figure of a part, table (the beginning of its title), row (its first cell) and column.

    The first cell must be equal, since one method's name may begin another's; "" matches any.

    Returns:
        None if there is no such figure.
    """
    for content in results["parts"].get(part, {"tables": []})["tables"]:
        for row in content["rows"] if content["title"].startswith(title) else []:
            if column in row and name in ("", next(iter(row.values()))):
                return row[column]
    return None


def markdown(content: Mapping[str, Any]) -> str:
    """One table with its title above and its notes below."""
    columns = _columns(content["rows"])
    rows = []
    for row in content["rows"]:
        cells = [shown(row.get(column, "")) for column in columns]
        if WHY in row:
            cells[1] = f"{WHY}: {row[WHY]}"
        rows.append(cells)
    return "\n\n".join([f"**{content['title']}**", grid(columns, rows), *content["notes"]])


def _columns(rows: Sequence[Row]) -> list[str]:
    """The columns in the order in which the rows name them, at least two."""
    found = list(dict.fromkeys(key for row in rows for key in row if key != WHY))
    return found if len(found) > 1 else [*found, ""]


def shown(value: Any) -> str:
    """A cell's text."""
    if isinstance(value, dict):
        low, high = _number(value["q1"]), _number(value["q3"])
        return f"{_number(value['median'])} ({low} to {high})"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _number(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
