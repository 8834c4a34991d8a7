"""What the commands that compare runs share: their arguments, and where they read and write."""

import argparse
from pathlib import Path


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
        "--planned-seeds", type=int, metavar="N", help="with fewer, this is an early look"
    )
    parser.add_argument(
        "--also", type=Path, metavar="FILE.csv", help="runs of an earlier report, without folders"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--page", type=Path, metavar="FILE")
    return parser


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
