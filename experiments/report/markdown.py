"""A study as a Markdown page."""

from collections.abc import Sequence

from experiments.report.html import CAPTIONS
from experiments.report.sentences import facts, page_title, sentences
from experiments.report.study import Study
from experiments.report.tables import Table, tables
from experiments.table import escaped, grid


def page(study: Study, figures: Sequence[str] = ()) -> str:
    """In the order of the HTML page; a figure NAME is ``NAME.png`` beside the page."""
    parts = [f"# {page_title(study)}", facts(study)]
    said = sentences(study)
    if study.compared:
        parts.append(f"**{said.pop(0)}**")
    parts += ["![differences](differences.png)"] if "differences" in figures else []
    parts += _listed("Conclusions", said)
    parts += _listed("Problems with the runs", study.problems)
    for table in tables(study):
        parts += [f"## {table.title}", markdown(table), *table.notes]
        if table.title == "Cost":
            parts += [_folded(name) for name in figures if name in CAPTIONS]
    return "\n\n".join(parts) + "\n"


def _folded(name: str) -> str:
    title, caption = CAPTIONS[name]
    picture = f"![{name}]({name}.png)"
    return f"<details><summary>{title}</summary>\n\n{picture}\n\n{caption}\n\n</details>"


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {escaped(text)}" for text in texts)] if texts else []


def markdown(table: Table) -> str:
    """The rows without title and notes."""
    return grid(table.columns, [[f"`{row[0]}`", *row[1:]] for row in table.rows])
