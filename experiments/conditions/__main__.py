"""Where does a method pay? Its difference to the baseline, condition by condition.

``python -m experiments.conditions DIR|FILE.csv --by KEY... [--baseline TEXT] [--out FOLDER]
[--page FILE]``

DIR is the folder of a sweep over methods, seeds and settings of the data; the KEYs are those
settings, such as ``data.clutter``. Writes conditions.md and conditions.png to DIR/report, or beside
the CSV. From a folder it also writes conditions.csv (one row per run), which is enough to make both
again. ``--page`` puts the table into a page, between a comment that names the CSV and
``<!-- end -->``.
"""

try:
    from experiments.conditions.figure import figure
    from experiments.conditions.map import Map, make
    from experiments.conditions.sentences import sentences
    from experiments.conditions.tables import changes, scale, table
    from experiments.report.command import arguments, places
    from experiments.report.csv_files import read_csv, write_csv
    from experiments.report.markdown import markdown
    from experiments.report.runs import LOSS, read
    from experiments.report.tables import figures_named, made
    from experiments.style import png
    from experiments.table import put
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error


def page(found: Map, picture: str) -> str:
    """Sentences, problems, the figure's file and the table as Markdown."""
    own = table(found)
    parts = ["# Conditions", "\n".join(f"- {text}" for text in sentences(found))]
    if found.problems:
        parts += ["## What is wrong with the runs", "\n".join(f"- {p}" for p in found.problems)]
    parts.append(f"![{own.title}]({picture})")
    more = [changes(found)] if found.changes else []
    more += [scale(found)] if figures_named(found.runs, LOSS) else []
    for shown in (own, *more):
        parts += [f"## {shown.title}", markdown(shown), *shown.notes]
    return "\n\n".join([*parts, f"{len(found.runs)} runs{made(found.runs)}."]) + "\n"


def main() -> None:
    """Entry point."""
    parser = arguments("experiments.conditions", __doc__)
    parser.add_argument("--by", nargs="+", required=True, metavar="KEY")
    options = parser.parse_args()
    source, out = places(options)
    try:
        runs = read(source) if source.is_dir() else read_csv(source)
        found = make(runs, options.by, options.baseline)
    except LookupError as error:
        raise SystemExit(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        write_csv(runs, out / "conditions.csv")
    (out / "conditions.png").write_bytes(png(figure(found)))
    (out / "conditions.md").write_text(page(found, "conditions.png"))
    if options.page:
        put(markdown(table(found)) + "\n", (out / "conditions.csv").as_posix(), options.page)
    print("\n".join([*found.problems, *sentences(found), str(out / "conditions.md")]))


if __name__ == "__main__":
    main()
