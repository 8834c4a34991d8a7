"""The CSV that a report is made from: one row per run."""

import csv
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.runs import (
    BY_CLASS,
    BY_FREQUENCY,
    COST,
    LOSS,
    MEMORY,
    METRICS,
    NORM,
    STEP,
    Run,
    terms,
)

FIRST = ("run", "status", "error", "method", "seed", "steps", "seconds")
# IoU in percent, by column.
PRECISION = {f"precision{iou}": iou for iou in ("50", "75")}


def write_csv(runs: Sequence[Run], file: Path) -> None:
    """Write one row per run."""
    figures = list(dict.fromkeys(name for run in runs for name in run.figures))
    columns = [
        *FIRST,
        STEP,
        MEMORY,
        NORM,
        *figures,
        "curve",
        *PRECISION,
        "lacks",
        "made",
        "settings",
    ]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(run) for run in runs)


def _row(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "status": run.status,
        "error": run.error,
        "method": shlex.join(f"{key}={value}" for key, value in run.method.items()),
        "seed": run.seed,
        "steps": run.steps,
        "seconds": run.seconds,
        STEP: run.step_seconds,
        MEMORY: run.memory,
        NORM: run.grad_norm,
        **{name: "" if math.isnan(value) else value for name, value in run.figures.items()},
        "curve": " ".join(f"{epoch}:{value}" for epoch, value in run.curve.items()),
        **{name: _listed(run.precision.get(iou, ())) for name, iou in PRECISION.items()},
        "lacks": run.lacks,
        "made": json.dumps(run.made),
        "settings": json.dumps(run.settings),
    }


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def read_csv(file: Path) -> list[Run]:
    """The runs of a CSV of ``write_csv``. CSVs of earlier versions may have fewer columns.

    Raises:
        LookupError: it cannot be read, or it is another CSV.
    """
    try:
        rows = file.open(newline="")
    except OSError as error:
        raise LookupError(f"{file}: {error.strerror}") from error
    with rows:
        found = csv.DictReader(rows)
        missing = [name for name in FIRST if name not in (found.fieldnames or ())]
        if missing:
            raise LookupError(f"{file}: not the CSV of a report: it has no column {missing[0]}")
        return [_from_row(row) for row in found]


def merged(here: Sequence[Run], before: Sequence[Run]) -> list[Run]:
    """The runs that have folders and those of an earlier report, by name.

    Of two with one name the folder's counts, unless only the other is completed.
    """
    found = {run.name: run for run in before}
    for run in here:
        finished = run.name in found and found[run.name].status == "COMPLETED"
        if run.status == "COMPLETED" or not finished:
            found[run.name] = run
    return [found[name] for name in sorted(found)]


def _from_row(row: Mapping[str, str]) -> Run:
    named = (*METRICS, *BY_FREQUENCY)
    figures = {k: v for k, v in row.items() if k in named or k.startswith((*BY_CLASS, COST, LOSS))}
    precision = {iou: row[name].split() for name, iou in PRECISION.items() if row.get(name)}
    has_figures = row["status"] == "COMPLETED"
    return Run(
        name=row["run"],
        status=row["status"],
        error=row["error"],
        method=terms(row["method"]),
        settings=json.loads(row["settings"]),
        seed=int(row["seed"]) if row["seed"] else None,
        steps=int(row["steps"]) if row["steps"] else None,
        seconds=_number(row["seconds"]),
        step_seconds=_number(row.get(STEP)),
        memory=_number(row.get(MEMORY)),
        grad_norm=_number(row.get(NORM)),
        figures={k: float(v or math.nan) for k, v in figures.items()} if has_figures else {},
        curve={int(e): float(v) for e, v in (pair.split(":") for pair in row["curve"].split())},
        precision={iou: tuple(map(float, values)) for iou, values in precision.items()},
        lacks=row.get("lacks", ""),
        made=json.loads(row.get("made") or "{}"),
    )


def _number(text: str | None) -> float | None:
    return float(text) if text else None
