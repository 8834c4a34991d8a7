"""Finished runs of a sweep -> their rows in a CSV, and their AP on draws of the test images."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.report.csv_files import read_csv, write_csv
from experiments.report.detections import evaluator_of, looked_at
from experiments.report.images import resampled
from experiments.report.matches import match
from experiments.report.runs import Run, read

DRAWS = 500
UNIT = 1e-4  # of AP: the draws are kept as int16
NONE = -1  # a draw without objects
# What the command line says beside a run's own settings.
ASIDE = ("run_name", "sweep", "data.root", "done", "wandb.mode")


def collect(folder: Path, out: Path) -> list[Run]:
    """Add the runs below a sweep's folder that finished or diverged to ``out``; returns the new.

    ``out`` is the CSV of ``experiments.report``, without curves. A run's ``settings`` are what its
    command line set. The draws go to the ``.npz`` beside it: see ``read_draws``. Other rows stay.

    Raises:
        ValueError: a run's detections do not give its AP.
    """
    before = {run.name: run for run in (read_csv(out) if out.exists() else [])}
    new = [run for run in read(folder) if _ended(run) and not _same(run, before.get(run.name))]
    rows = [_slim(run, folder) for run in looked_at(new, folder)]
    lacking = [f"{run.name}: {run.lacks}" for run in rows if run.lacks]
    if lacking:
        raise ValueError("\n".join(lacking))
    measured = {run.name: ap_of_draws(folder / run.name) for run in rows if run.figures}
    together = before | {run.name: run for run in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv([together[name] for name in sorted(together)], out)
    write_draws(out, read_draws(out) | measured)
    return rows


def _ended(run: Run) -> bool:
    """Whether starting it again would change nothing."""
    diverged = run.status == "FAILED" and "not finite at step" in run.error
    return diverged or (run.status == "COMPLETED" and bool(run.figures))


def _same(run: Run, other: Run | None) -> bool:
    """Whether a row is of this very run."""
    if other is None:
        return False
    pairs = (run.figures.get("AP"), other.figures.get("AP")), (run.made, other.made)
    return all(own == row for own, row in pairs) and run.status == other.status


def _slim(run: Run, folder: Path) -> Run:
    said = json.loads((folder / run.name / "status.json").read_text())["overrides"]
    pairs = [text.lstrip("+").partition("=") for text in said]
    settings = {key: value for key, _, value in pairs if key not in ASIDE}
    return replace(run, settings=settings, curve={}, precision={})


def ap_of_draws(run: Path, draws: int = DRAWS) -> np.ndarray:
    """float [draws]: AP of a run on draws of its test images with replacement, as fractions.

    The draws depend on the images alone, so that all runs on a fold have the same.
    """
    evaluator = evaluator_of(run)
    images = evaluator.cocoGt.dataset["images"]
    return resampled(match(evaluator), draws, seed_of([image["file_name"] for image in images]))


def seed_of(files: Sequence[str]) -> int:
    """A seed for the draws of these images."""
    return zlib.crc32("\n".join(files).encode())


def read_draws(out: Path) -> dict[str, np.ndarray]:
    """By run, float [DRAWS]: AP as a fraction, NaN for a draw without objects."""
    file = out.with_suffix(".npz")
    if not file.exists():
        return {}
    with np.load(file) as stored:
        ap = np.where(stored["ap"] == NONE, np.nan, stored["ap"] * UNIT)
        return dict(zip(stored["run"].tolist(), ap, strict=True))


def write_draws(out: Path, draws: dict[str, np.ndarray]) -> None:
    """Write ``run`` [R] and ``ap`` int16 [R, DRAWS] in units of 1e-4."""
    names = sorted(draws)
    table = np.array([draws[name] for name in names]).reshape(len(names), -1)
    ap = np.where(np.isnan(table), NONE, (table / UNIT).round()).astype(np.int16)
    np.savez_compressed(out.with_suffix(".npz"), run=np.array(names, dtype=np.str_), ap=ap)
