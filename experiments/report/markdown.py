"""A study as a Markdown page."""

from collections.abc import Sequence

from experiments.report.sentences import sentences
from experiments.report.study import Study
from experiments.report.tables import Table, tables


def page(study: Study, figures: Sequence[str] = ()) -> str:
    """Sentences, problems, figures (by name, ``NAME.png`` beside the page) and tables."""
    parts = ["# Comparison", *_listed("What can be said", sentences(study))]
    parts += _listed("What is wrong with the runs", study.problems)
    parts += [f"![{name}]({name}.png)" for name in figures]
    for table in tables(study):
        parts += [f"## {table.title}", markdown(table), *table.notes]
    return "\n\n".join(parts) + "\n"


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {_cell(text)}" for text in texts)] if texts else []


def markdown(table: Table) -> str:
    """The rows without title and notes."""
    lines = [_line(table.columns), "|" + "---|" * len(table.columns)]
    lines += [_line([f"`{row[0]}`", *row[1:]]) for row in table.rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
