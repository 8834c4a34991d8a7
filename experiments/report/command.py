"""What the commands that compare runs share: their arguments, and where they read and write."""

import argparse
from pathlib import Path

from experiments.report.plan import Plan


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the runs (folder or CSV), the baseline, the plan, and where the result goes."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("source", type=Path, metavar="DIR|FILE.csv")
    parser.add_argument(
        "--baseline", metavar="TEXT", help="a method or a part of its label: sampler=all"
    )
    parser.add_argument(
        "--equivalent", type=float, metavar="AP", help="smaller differences do not matter: 1.0"
    )
    parser.add_argument(
        "--planned-seeds",
        type=int,
        metavar="N",
        help="number of seeds planned per method; with fewer, a stricter level applies",
    )
    parser.add_argument(
        "--also", type=Path, metavar="FILE.csv", help="runs of an earlier report, without folders"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--page", type=Path, metavar="FILE")
    return parser


def plan_of(options: argparse.Namespace, folds: bool, common: bool = False) -> Plan:
    """What was decided before the runs were looked at.

    Args:
        folds: whether runs are of several folds, so that one seed can be compared.

    Raises:
        LookupError: fewer seeds are planned than can be compared.
    """
    seeds, fewest = options.planned_seeds, 1 if folds else 2
    if seeds is not None and seeds < fewest:
        raise LookupError(f"--planned-seeds {seeds}: a comparison takes at least {fewest}")
    return Plan(options.equivalent, seeds, common)


def places(options: argparse.Namespace) -> tuple[Path, Path]:
    """The source, and the folder to write to: by default DIR/report, or the CSV's own.

    Raises:
        SystemExit: there is no such source, or ``--also`` has no folder to add to.
    """
    source = options.source
    if not source.exists():
        raise SystemExit(f"{source}: no such folder or file")
    if options.also and not source.is_dir():
        raise SystemExit("--also adds to a folder of runs")
    return source, options.out or (source / "report" if source.is_dir() else source.parent)
