"""A study as one self-contained HTML file."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from experiments.report.sentences import sentences
from experiments.report.study import Study
from experiments.report.tables import Table, tables
from experiments.style import DPI

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
code { font: 13px ui-monospace, monospace; background: #f3f3f3; padding: .1em .3em; }
li { margin: .25rem 0; }
.problems { background: #fff6e0; border-left: 4px solid #e69f00; padding: .2rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } tbody tr:hover { background: #f8f8f8; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; min-width: 11rem; max-width: 20rem; }
td code { background: none; padding: 0; }
p.note { color: #555; font-size: 13px; max-width: 75ch; } img { max-width: 100%; }
"""
# Title and caption by the figure's name.
CAPTIONS = {
    "differences": (
        "Differences",
        "Mean difference to the baseline with its interval. Blue: better, red: worse, grey: no "
        "difference shown, hollow: one seed. An arrow points to a mean outside of the picture.",
    ),
    "curves": (
        "Learning curves",
        "AP by epoch: the mean of the seeds with a band of one standard deviation.",
    ),
    "precision": (
        "Precision and recall",
        "Precision at every recall, mean of classes and seeds: solid at IoU 0.5, dashed at 0.75.",
    ),
    "errors": (
        "Kinds of errors",
        "The AP50 that each kind of error costs: the mean of the seeds with one standard "
        "deviation, and a grey line at the baseline's.",
    ),
}


def page(study: Study, figures: Mapping[str, bytes]) -> str:
    """The whole page: sentences, problems, figures (PNG by name) and tables."""
    body = ["<h1>Comparison</h1>", *_listed("What can be said", sentences(study))]
    body += _listed("What is wrong with the runs", study.problems, "problems")
    body += [_figure(name, png) for name, png in figures.items()]
    body += [_section(table) for table in tables(study)]
    head = f'<meta charset="utf-8"><title>Comparison</title><style>{CSS}</style>'
    lines = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{lines}\n</body></html>\n'
    )


def _listed(title: str, texts: Sequence[str], kind: str = "said") -> list[str]:
    items = "\n".join(f"<li>{_code(text)}</li>" for text in texts)
    return [f'<h2>{title}</h2>\n<div class="{kind}"><ul>\n{items}\n</ul></div>'] if texts else []


def _code(text: str) -> str:
    """Escaped text; names between backquotes become code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _figure(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    # Its size on paper: then its text is as large as the page's.
    width = int.from_bytes(png[16:20]) * 96 // DPI
    title, caption = CAPTIONS[name]
    image = f'<img alt="{caption}" width="{width}" src="data:image/png;base64,{data}">'
    return f'<h2>{title}</h2>\n{image}\n<p class="note">{caption}</p>'


def _section(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(_row(row) for row in table.rows)
    notes = "\n".join(f'<p class="note">{_code(note)}</p>' for note in table.notes)
    content = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return (
        f"<h2>{escape(table.title)}</h2>\n"
        f'<div class="wide"><table>\n{content}\n</table></div>\n{notes}'
    )


def _row(row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
    return f"<tr><td><code>{escape(row[0])}</code></td>{cells}</tr>"
