"""Where does a method pay? Its difference to the baseline, condition by condition.

``python -m experiments.conditions DIR|FILE.csv --by KEY... [--baseline TEXT] [--equivalent AP]
[--planned-seeds N] [--also FILE.csv] [--out FOLDER] [--page FILE]``

DIR is the folder of a sweep over methods, seeds and settings of the data; the KEYs are those
settings, such as ``data.clutter``. Writes conditions.html (self-contained), conditions.md,
conditions.png and conditions_curves.png to DIR/report, or beside the CSV. From a folder it also
writes conditions.csv (one row per run), which is enough to make all again. ``--also`` adds the runs
of such a CSV that have no folder below DIR. ``--page`` puts the table into a page, between a
comment that names the CSV and ``<!-- end -->``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

try:
    from experiments.conditions.figure import curves, figure
    from experiments.conditions.map import Map, make
    from experiments.conditions.sentences import facts, sentences
    from experiments.conditions.tables import changes, scale, table
    from experiments.html import figure as html_figure
    from experiments.report.command import arguments, places, plan_of
    from experiments.report.csv_files import merged, read_csv, write_csv
    from experiments.report.markdown import markdown
    from experiments.report.runs import LOSS, Run, read
    from experiments.report.tables import Table, figures_named, made
    from experiments.style import png
    from experiments.table import put
    from frcnn.survey import html
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error


TITLE = "Where a method pays"
# The files of the figures, and what they show.
PICTURES = {"conditions": TITLE, "conditions_curves": "AP under each condition"}


def page(found: Map) -> str:
    """The answer, the files of the figures, sentences, problems and tables, as Markdown."""
    first, *said = sentences(found)
    parts = ["# Conditions", facts(found), f"**{first}**"]
    parts += [f"![{what}]({name}.png)" for name, what in PICTURES.items()]
    parts.append("\n".join(f"- {text}" for text in said))
    if found.problems:
        parts += ["## Problems with the runs", "\n".join(f"- {p}" for p in found.problems)]
    for shown in shown_tables(found):
        parts += [f"## {shown.title}", markdown(shown), *shown.notes]
    return "\n\n".join([*parts, f"{len(found.runs)} runs{made(found.runs)}."]) + "\n"


def html_page(found: Map, pictures: Mapping[str, bytes]) -> str:
    """The same as one self-contained HTML file; ``pictures`` are PNG by name."""
    first, *said = sentences(found)
    parts = [f'<p class="facts">{html.code(facts(found))}</p>']
    parts += [f'<p class="headline">{html.code(first)}</p>']
    parts += [_picture(PICTURES[name], picture) for name, picture in pictures.items()]
    parts += html.listed("Conclusions", said)
    if found.problems:
        title = f"Problems with the runs ({len(found.problems)})"
        parts.append(html.folded(title, html.listed("", found.problems, "problems")[0]))
    own, *more = shown_tables(found)
    parts.append(html.table(own.title, own.columns, own.rows, own.notes))
    parts += [html.folded(t.title, html.table("", t.columns, t.rows, t.notes)) for t in more]
    return html.document("Conditions", parts)


def _picture(what: str, png: bytes) -> str:
    """A figure, which a narrow screen scrolls."""
    return f'<div class="wide whole">{html_figure("", what, png)}</div>'


def shown_tables(found: Map) -> list[Table]:
    """All tables of a map."""
    more = [changes(found)] if found.changes else []
    return [table(found), *more, *([scale(found)] if figures_named(found.runs, LOSS) else [])]


def main() -> None:
    """Entry point."""
    parser = arguments("experiments.conditions", __doc__)
    parser.add_argument("--by", nargs="+", required=True, metavar="KEY")
    options = parser.parse_args()
    source, out = places(options)
    try:
        runs = runs_of(source, options.also)
        found = make(runs, options.by, options.baseline)
        found = replace(found, plan=plan_of(options, bool(found.folds)))
    except LookupError as error:
        raise SystemExit(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        write_csv(runs, out / "conditions.csv")
    drawn = zip(PICTURES, (figure(found), curves(found)), strict=True)
    pictures = {name: png(one) for name, one in drawn}
    for name, picture in pictures.items():
        (out / f"{name}.png").write_bytes(picture)
    (out / "conditions.html").write_text(html_page(found, pictures))
    (out / "conditions.md").write_text(page(found))
    if options.page:
        put(markdown(table(found)) + "\n", (out / "conditions.csv").as_posix(), options.page)
    print("\n".join([*found.problems, *sentences(found), str(out / "conditions.html")]))


def runs_of(source: Path, also: Path | None) -> list[Run]:
    """The runs of a CSV, or of a folder and of a CSV of runs without one.

    Raises:
        LookupError: a CSV cannot be read.
    """
    if not source.is_dir():
        return read_csv(source)
    before = read_csv(also) if also else []
    return merged(read(source, before), before)


if __name__ == "__main__":
    main()
