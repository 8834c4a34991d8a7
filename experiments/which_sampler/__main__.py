"""``python -m experiments.which_sampler collect DIR``, ``choose`` or ``answer``.

``collect`` adds the finished runs of a sweep's folder (runs/which_sampler/tuning) to the CSV of its
name here (tuning.csv), with the AP of each on 500 draws of its test images (tuning.npz). It can be
called while the sweep goes on, from another clone: it changes files, and a run of a clone with
changes does not count. ``choose`` writes conf/case: each arm on each set, with the setting
that tuning.csv shows to be the best on the other sets. ``answer`` compares the arms of test.csv,
once all runs are there: over all, by network and by set. With ``--page README.md`` it writes the
tables there, between comments that name them (``comparison``, ``tuning``, ``cost``) and ``<!-- end
-->``, and draws differences.png beside it. DATA has to be the folder of the sets.
"""

import argparse
from pathlib import Path

from experiments.report.csv_files import read_csv
from experiments.which_sampler.choose import SETS

HERE = Path(__file__).parent


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("experiments.which_sampler", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folder", type=Path)
    commands.add_parser("choose")
    answering = commands.add_parser("answer")
    answering.add_argument("--page", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "collect":
            _collect(options.folder)
        elif options.command == "choose":
            _choose()
        else:
            _answer(options.page)
    except (LookupError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


def _collect(folder: Path) -> None:
    from experiments.which_sampler.collect import collect  # torch takes seconds to load

    out = HERE / f"{folder.name}.csv"
    print(f"{len(collect(folder, out))} runs added to {out}")


def _choose() -> None:
    from experiments.which_sampler.choose import chosen, surface, write_cases
    from experiments.which_sampler.protocol import check_tuning

    runs = read_csv(HERE / "tuning.csv")
    ap = surface(runs)
    check_tuning(runs)
    found = chosen(ap)
    write_cases(found, HERE / "conf/case")
    for (name, arm), setting in found.items():
        print(f"{name:8} {arm:13} {setting}")


def _answer(page: Path | None) -> None:
    from experiments.report.images import read_draws
    from experiments.which_sampler import answer
    from experiments.which_sampler.choose import PRESET, chosen, surface
    from experiments.which_sampler.page import write
    from experiments.which_sampler.protocol import check_test, check_tuning

    file = HERE / "test.csv"
    tuned = read_csv(HERE / "tuning.csv")
    settings = chosen(surface(tuned))
    check_tuning(tuned)
    runs = read_csv(file)
    check_test(runs, settings)
    same = {name for name in SETS if settings[name, answer.BASE] == PRESET}
    found = answer.by_stratum(runs, same)
    groups, cautious = answer.answers(found), answer.cautious(found)
    print("\n".join(answer.lines(groups | {"all x 1.5": cautious})))
    print(f"arms differ between sets: p {answer.interaction(found):.3f}")
    for arm, error in answer.images_alone(found, read_draws(file)).items():
        print(f"{arm:13} error of the images alone {error:.2f}")
    if page is not None:
        write(page, groups, cautious, tuned, runs)


if __name__ == "__main__":
    main()
