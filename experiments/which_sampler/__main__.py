"""``python -m experiments.which_sampler collect DIR``, ``choose`` or ``answer NAME NET``.

``collect`` adds the finished runs of a sweep's folder (runs/which_sampler/tuning) to the CSV of its
name here (tuning.csv), with the AP of each on 500 draws of its test images (tuning.npz). It can be
called while the sweep goes on. ``choose`` writes conf/case: each arm on each set, with the setting
that tuning.csv shows to be the best on the other sets. ``answer test slim`` compares the
arms of test.csv on a network once all its runs are there.
"""

import argparse
from pathlib import Path

from experiments.report.csv_files import read_csv

HERE = Path(__file__).parent


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("experiments.which_sampler", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folder", type=Path)
    commands.add_parser("choose")
    answering = commands.add_parser("answer")
    answering.add_argument("name")
    answering.add_argument("net")
    options = parser.parse_args()
    try:
        if options.command == "collect":
            _collect(options.folder)
        elif options.command == "choose":
            _choose()
        else:
            _answer(HERE / f"{options.name}.csv", options.net)
    except (LookupError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


def _collect(folder: Path) -> None:
    from experiments.which_sampler.collect import collect  # torch takes seconds to load

    out = HERE / f"{folder.name}.csv"
    print(f"{len(collect(folder, out))} runs added to {out}")


def _choose() -> None:
    from experiments.which_sampler.choose import chosen, surface, write_cases

    found = chosen(surface(read_csv(HERE / "tuning.csv")))
    write_cases(found, HERE / "conf/case")
    for (name, arm), setting in found.items():
        print(f"{name:8} {arm:13} {setting}")


def _answer(file: Path, net: str) -> None:
    from experiments.report.images import read_draws
    from experiments.which_sampler.answer import answer, lines

    print("\n".join(lines(*answer(read_csv(file), read_draws(file), net))))


if __name__ == "__main__":
    main()
