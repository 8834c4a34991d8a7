"""Collect finished runs into a CSV, and the CSV into a Markdown table.

``python -m experiments.table RUN... --csv FILE [--add]`` reads each run folder's ``summary.json``
and ``status.json``, and with ``--add`` keeps the CSV's rows of other commands. ``python -m
experiments.table --csv FILE`` prints the table of a CSV, and with ``--page README.md`` writes it
there, where a comment names the CSV.
"""

import argparse
import csv
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

FIGURES = ("AP", "AP50", "AP75")
BY_FREQUENCY = ("APr", "APc", "APf", "AP_fixed")  # as in experiments.report
# Names, folders and workers of a run change nothing in its numbers.
PRIVATE = ("run_name", "hydra.", "wandb.", "data.root", "trainer.workers")
NONE = "–"


def row(folder: Path) -> dict[str, str]:
    """One CSV row: the command, the figures as fractions, the classes' AP, steps, seed.

    A figure is empty where the run had no such object.
    """
    summary = json.loads((folder / "summary.json").read_text())
    status = json.loads((folder / "status.json").read_text())
    if status["status"] != "COMPLETED":
        raise SystemExit(f"{folder}: the run is {status['status']}")
    shown = [text for text in status["overrides"] if not text.startswith(PRIVATE)]
    return {
        "command": shlex.join(["python", "-m", "frcnn.train", *shown]),
        **{name: _fraction(summary[name]) for name in FIGURES},
        **{name: _fraction(summary[name]) for name in BY_FREQUENCY if name in summary},
        **{f"AP {name}": _fraction(c["AP"]) for name, c in summary["per_class"].items()},
        "steps": str(summary["steps"]),
        "seed": str(summary["seed"]),
    }


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a table, AP in percent with one decimal, and a dash where there is none."""
    columns = list(rows[0])
    return grid(columns, [[_shown(name, cells[name]) for name in columns] for cells in rows]) + "\n"


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end."""
    return "\n".join([_line(columns), "|" + "---|" * len(columns), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """A cell's text, in which | does not end the cell."""
    return text.replace("|", "\\|")


def _shown(column: str, text: str) -> str:
    if not text:
        return NONE
    if column == "command":
        return f"`{text}`"
    return f"{100 * float(text):.1f}" if column.startswith("AP") else text


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def others(path: Path, found: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a CSV that are of another command or seed than those found."""
    own = {(cells["command"], cells["seed"]) for cells in found}
    return [cells for cells in read(path) if (cells["command"], cells["seed"]) not in own]


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the rows as a CSV; a cell is empty where a run has no such class."""
    columns = dict.fromkeys(name for cells in rows for name in cells)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def put(table: str, csv_name: str, page: Path) -> None:
    """Write a table into a page, between ``<!-- csv_name -->`` and ``<!-- end -->``."""
    block = re.compile(rf"(<!-- {re.escape(csv_name)} -->\n).*?(<!-- end -->)", re.S)
    text, places = block.subn(lambda found: found[1] + table + found[2], page.read_text())
    if not places:
        raise SystemExit(f"{page}: no place for {csv_name}")
    page.write_text(text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--csv", required=True, type=Path)
    parser.add_argument("--add", action="store_true", help="keep the rows of other commands")
    parser.add_argument("--page", action="append", default=[], type=Path)
    options = parser.parse_args()
    if options.runs:
        found = [row(folder) for folder in options.runs]
        write(options.csv, [*(others(options.csv, found) if options.add else ()), *found])
    table = markdown(read(options.csv))
    for page in options.page:
        put(table, options.csv.as_posix(), page)
    print(table, end="")


if __name__ == "__main__":
    main()
