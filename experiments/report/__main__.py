"""``python -m experiments.report DIR [--baseline TEXT] [--out FOLDER]``.

DIR is a sweep's folder, or a CSV that the report of one wrote. Writes runs.csv (one row a run; all
else can be made from it), report.md, report.html (which needs no other file) and its figures to
DIR/report, or beside the CSV.
"""

import argparse
from pathlib import Path

try:
    from experiments.report import html, markdown
    from experiments.report.figures import figures
    from experiments.report.runs import Run, read, read_csv, write_csv
    from experiments.report.study import Study, study
    from experiments.report.tables import sentences
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("source", type=Path, metavar="DIR|FILE.csv")
    parser.add_argument("--baseline", metavar="TEXT", help="as in sampler=all, or a part of it")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    runs, out = load(options.source, options.out)
    try:
        found = study(runs, options.baseline)
    except LookupError as error:
        raise SystemExit(str(error)) from error
    _write(found, out)
    print("\n".join([*found.problems, *sentences(found), str(out / "report.html")]))


def load(source: Path, out: Path | None) -> tuple[list[Run], Path]:
    """The runs of a folder or a CSV, and the folder for what is made of them; runs.csv is there."""
    if not source.exists():
        raise SystemExit(f"{source}: no such folder or file")
    runs = read(source) if source.is_dir() else read_csv(source)
    if not runs:
        raise SystemExit(f"{source}: no run, which is a folder with a status.json")
    out = out or (source / "report" if source.is_dir() else source.parent)
    out.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        write_csv(runs, out / "runs.csv")
    return runs, out


def _write(found: Study, out: Path) -> None:
    drawn = figures(found)
    for name, png in drawn.items():
        (out / f"{name}.png").write_bytes(png)
    (out / "report.md").write_text(markdown.page(found, list(drawn)))
    (out / "report.html").write_text(html.page(found, drawn))


if __name__ == "__main__":
    main()
