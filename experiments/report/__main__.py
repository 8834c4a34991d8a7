"""``python -m experiments.report DIR [--also FILE.csv] [--baseline TEXT] [--family KEY]
[--equivalent AP] [--planned-seeds N] [--common] [--out FOLDER] [--page FILE]``.

DIR is the folder of a sweep, or the runs.csv of an earlier report. Writes report.md, report.html
(self-contained) and the figures to DIR/report, or beside the CSV. From a folder it also writes what
is enough to make the report again: runs.csv, with one row per run, and runs.npz, with the AP of
each run on draws of its test images. ``--page`` puts the first table into a page, between a comment
that names runs.csv and ``<!-- end -->``. ``--also`` adds the runs of an earlier report's runs.csv
that have no folder below DIR.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

try:
    from experiments.report import html, markdown
    from experiments.report.command import arguments, places, plan_of
    from experiments.report.csv_files import merged, read_csv, write_csv
    from experiments.report.figures import figures
    from experiments.report.images import read_draws, write_draws
    from experiments.report.runs import Run, read
    from experiments.report.sentences import sentences
    from experiments.report.study import Study, study
    from experiments.report.tables import tables
    from experiments.table import put
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error


RUNS = "runs.csv"


def main() -> None:
    """Entry point."""
    parser = arguments("experiments.report", __doc__)
    parser.add_argument(
        "--family", metavar="KEY", help="the methods with KEY=... are variants, shown apart"
    )
    parser.add_argument(
        "--common", action="store_true", help="one spread: all methods are equally steady"
    )
    options = parser.parse_args()
    source, out = places(options)
    try:
        if source.is_dir():
            found = study_of_folder(source, options.also, options.baseline, out)
        else:
            found = study_of_csv(source, options.baseline, out)
        plan = plan_of(options, bool(found.folds), options.common)
        found = replace(_with_family(found, options.family), plan=plan)
    except LookupError as error:
        raise SystemExit(str(error)) from error
    _write(found, out)
    if options.page and not found.compared:
        raise SystemExit(f"{source}: nothing is compared, so {options.page} stays as it is")
    if options.page:
        first = markdown.markdown(tables(found)[0]) + "\n"
        put(first, (out / RUNS).as_posix(), options.page)
    print("\n".join([*found.problems, *sentences(found), str(out / "report.html")]))


def study_of_folder(folder: Path, also: Path | None, baseline: str | None, out: Path) -> Study:
    """The study of run folders, and of the runs of a CSV that have none; writes runs.csv."""
    from experiments.report.detections import with_draws  # torch takes seconds to load

    before = read_csv(also) if also else []
    here, draws = with_draws(read(folder, before), folder)
    runs = merged(here, before)
    found = _study(runs, baseline, folder)
    draws = (read_draws(also) if also else {}) | draws
    out.mkdir(parents=True, exist_ok=True)
    write_csv(runs, out / RUNS)
    if draws:
        write_draws(out / RUNS, draws)
        draws = read_draws(out / RUNS)  # as rounded as for a report from these files
    return replace(found, draws=draws)


def study_of_csv(file: Path, baseline: str | None, out: Path) -> Study:
    """The study of a runs.csv, and of the draws beside it."""
    found = _study(read_csv(file), baseline, file)
    out.mkdir(parents=True, exist_ok=True)
    return replace(found, draws=read_draws(file))


def _study(runs: Sequence[Run], baseline: str | None, source: Path) -> Study:
    if not runs:
        raise LookupError(f"{source}: no run, which is a folder with a status.json")
    found = study(runs, baseline)
    if not found.methods:
        raise LookupError("\n".join([f"{source}: no finished run", *found.problems]))
    return found


def _with_family(found: Study, key: str | None) -> Study:
    found = replace(found, family=key)
    if key is not None and not any(map(found.in_family, found.compared)):
        raise LookupError(f"--family {key}: no compared method has {key}=...")
    return found


def _write(found: Study, out: Path) -> None:
    drawn = figures(found)
    for name, png in drawn.items():
        (out / f"{name}.png").write_bytes(png)
    (out / "report.md").write_text(markdown.page(found, list(drawn)))
    (out / "report.html").write_text(html.page(found, drawn))


if __name__ == "__main__":
    main()
