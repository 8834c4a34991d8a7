"""Finished runs of a sweep -> their rows in a CSV, and their AP on draws of the test images."""

import json
import math
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from experiments.report.csv_files import read_csv, write_csv
from experiments.report.detections import ap_of_draws, looked_at
from experiments.report.images import read_draws, write_draws
from experiments.report.runs import Run, read, settings_file
from experiments.which_sampler.choose import VALUES
from frcnn.errors import DIVERGED

# What the command line says beside a run's own settings.
# What an arm's case decides; protocol.py checks it.
NORM = "train/grad_norm"
KEPT = (*VALUES, "trainer.max_steps", "trainer.clip_norm", "seed")
ASIDE = ("run_name", "sweep", "data.root", "done", "wandb.mode")


def collect(folder: Path, out: Path) -> list[Run]:
    """Add the runs below a sweep's folder that finished or diverged to ``out``; returns the new.

    ``out`` is the CSV of ``experiments.report``, without curves. A run's ``settings`` are what its
    command line set, and ``KEPT``. The draws go to the ``.npz`` beside it (``read_draws``). Other
    rows stay.

    Raises:
        ValueError: some runs' detections do not give their AP; the others are added.
    """
    before = {run.name: run for run in (read_csv(out) if out.exists() else [])}
    draws = read_draws(out)
    new = [
        run for run in read(folder) if _ended(run) and not _same(run, before.get(run.name), draws)
    ]
    seen = [_slim(run, folder) for run in looked_at(new, folder)]
    rows = [run for run in seen if not run.lacks]
    measured = {run.name: ap_of_draws(folder / run.name) for run in rows if run.figures}
    together = before | {run.name: run for run in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_draws(out, draws | measured)  # first: a row without draws is collected again
    write_csv([together[name] for name in sorted(together)], out)
    lacking = [f"{run.name}: {run.lacks}" for run in seen if run.lacks]
    if lacking:
        raise ValueError("\n".join(lacking))
    return rows


def _ended(run: Run) -> bool:
    """Whether starting it again would change nothing."""
    diverged = run.status == "FAILED" and DIVERGED in run.error
    return diverged or (run.status == "COMPLETED" and bool(run.figures))


def _same(run: Run, other: Run | None, draws: Container[str]) -> bool:
    """Whether a row is of this very run, and its draws are there."""
    if other is None or (run.figures and run.name not in draws):
        return False
    made = all(run.made[key] == other.made[key] for key in run.made.keys() & other.made.keys())
    same = run.figures.get("AP") == other.figures.get("AP") and run.status == other.status
    return made and same


def _slim(run: Run, folder: Path) -> Run:
    said = json.loads((folder / run.name / "status.json").read_text())["overrides"]
    pairs = [text.lstrip("+").partition("=") for text in said]
    settings = {key: value for key, _, value in pairs if key not in ASIDE}
    config = OmegaConf.load(settings_file(folder / run.name))
    for key in KEPT:
        value = OmegaConf.select(config, key)
        settings[key] = f"{value:g}" if isinstance(value, int | float) else str(value)
    limit = OmegaConf.select(config, "trainer.clip_norm")
    if limit is not None:
        settings["clipped"] = f"{_clipped(folder / run.name, limit):.4f}"
    return replace(run, settings=settings, curve={}, precision={})


def _clipped(run: Path, limit: float) -> float:
    """The share of log lines whose gradient norm is above the limit; NaN without any."""
    file = run / "metrics.jsonl"
    records = map(json.loads, file.read_text().splitlines() if file.exists() else [])
    norms = [record[NORM] for record in records if NORM in record]
    return sum(norm > limit for norm in norms) / len(norms) if norms else math.nan
