"""Scores of each site against AP: ``python -m experiments.figures.training DIR [--out FOLDER]``.

DIR is a run's folder, or that of a sweep. Writes scores_and_ap.png to DIR/report.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

try:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from experiments.report.runs import Run, read
    from experiments.style import BLUE, GREEN, GREY, PURPLE, STYLE, VERMILLION, named, panels, png
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -e '.[report]'") from error

NAMES = {
    "accuracy_positive": "accuracy, sampled positives",
    "accuracy_negative": "accuracy, sampled negatives",
    "score_iou_correlation": "Spearman of score and IoU",
    "best_is_best": "best-scored is best-placed",
}
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, GREY)
Points = dict[str, list[tuple[float, float]]]  # of a metric, with AP in percent


def scores_and_ap(runs: Mapping[str, Sequence[Points]]) -> Figure:
    """AP over each number, a row per site: a line per run, a dot per validation, the last large.

    Args:
        runs: by method, the points of each of its runs.
    """
    keys = (key for found in runs.values() for one in found for key in one)
    sites = list(dict.fromkeys(key.split("/")[1] for key in keys))
    figure, axes = panels(len(NAMES) * len(sites), columns=len(NAMES), sharey=True)
    cells = [(site, name) for site in sites for name in NAMES]
    coloured = list(zip(runs, runs.values(), cycle(COLOURS), strict=False))
    for (site, name), here in zip(cells, axes, strict=True):
        for _, found, colour in coloured:
            for one in found:
                own = one.get(f"sampling/{site}/{name}", [])
                values, aps = [value for value, _ in own], [ap for _, ap in own]
                here.plot(values, aps, ".-", color=colour, linewidth=0.7)
                here.plot(values[-1:], aps[-1:], "o", color=colour)
        named(here, site, NAMES[name], "AP in percent" if name == next(iter(NAMES)) else "")
        here.locator_params(axis="x", nbins=5)
    handles = [Line2D([], [], color=c, marker="o", label=method) for method, _, c in coloured]
    figure.legend(handles=handles, loc="outside lower center", **STYLE)
    return figure


def points(records: Iterable[Mapping[str, Any]]) -> Points:
    """Mean of each number since the validation before, and AP in percent, by validation."""
    found: Points = defaultdict(list)
    since: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            if key.startswith("sampling/") and key.rpartition("/")[2] in NAMES:
                since[key].append(value)
        if record.get("val/AP") is not None:
            for key, values in since.items():
                found[key].append((fmean(values), 100 * record["val/AP"]))
            since.clear()
    return dict(found)


def by_method(folder: Path, runs: Iterable[Run]) -> dict[str, list[Points]]:
    """The points of the runs that have any, by what distinguishes the runs."""
    found: dict[str, list[Points]] = defaultdict(list)
    for run in runs:
        file = folder / run.name / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        if own := points(map(json.loads, lines)):
            method = " ".join(f"{key}={value}" for key, value in run.method.items())
            found[method or run.name].append(own)
    return dict(found)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("python -m experiments.figures.training", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    found = by_method(options.folder, read(options.folder))
    if not found:
        raise SystemExit(f"{options.folder}: no run with a validation and records of its sampling")
    out = options.out or options.folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores_and_ap.png").write_bytes(png(scores_and_ap(found)))
    print(out / "scores_and_ap.png")


if __name__ == "__main__":
    main()
