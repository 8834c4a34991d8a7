"""What the detections of runs say beyond their summaries.

This needs torch and the validation data; the rest of the report does not.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.report.errors import costs
from experiments.report.images import resampled
from experiments.report.matches import (
    AT_IOU,
    Matches,
    average_precision,
    match,
    mean_precision,
)
from experiments.report.runs import COST, Run, settings_file
from frcnn.build import dataset
from frcnn.errors import UserError
from frcnn.evaluation.coco import coco_evaluator
from frcnn.evaluation.inference import load_detections
from frcnn.evaluation.load import refuse_untrusted

DETECTIONS = "detections.npz"
# The errors of a file that is broken, missing or of another program.
UNUSABLE = (
    *(UserError, OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, yaml.YAMLError, OmegaConfBaseException),
)
CLOSE = 1e-6  # largest difference of equal AP, as a fraction


def looked_at(runs: Sequence[Run], folder: Path) -> list[Run]:
    """The runs below a folder with precision by recall and costs of errors, or why not."""
    return [_looked_at(run, folder / run.name)[0] for run in runs]


def with_draws(runs: Sequence[Run], folder: Path) -> tuple[list[Run], dict[str, np.ndarray]]:
    """The runs as ``looked_at``, and ``ap_of_draws`` by name where detections are usable."""
    found, draws = [], {}
    for run in runs:
        seen, evaluator, matches = _looked_at(run, folder / run.name)
        found.append(seen)
        if seen.precision:
            draws[run.name] = _drawn(evaluator, matches)
    return found, draws


def ap_of_draws(run: Path) -> np.ndarray:
    """float [DRAWS]: AP of a run on draws of its test images with replacement, as fractions.

    The draws depend on the images alone, so that all runs on a fold have the same.
    """
    evaluator = evaluator_of(run)
    return _drawn(evaluator, match(evaluator))


def _drawn(evaluator: Any, matches: Sequence[Matches]) -> np.ndarray:
    images = evaluator.cocoGt.dataset["images"]
    return resampled(matches, seed=seed_of([image["file_name"] for image in images]))


def seed_of(files: Sequence[str]) -> int:
    """A seed for the draws of these images."""
    return zlib.crc32("\n".join(files).encode())


def _looked_at(run: Run, folder: Path) -> tuple[Run, Any, list[Matches]]:
    """A run with what its detections say, its evaluator and its matches, where it has them."""
    if "AP" not in run.figures:
        return run, None, []
    if not (folder / DETECTIONS).exists():
        return _lacking(run, f"no {DETECTIONS}, which earlier versions did not write")
    try:
        evaluator = evaluator_of(folder)
    except UNUSABLE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _lacking(run, f"detections that cannot be judged ({reason})")
    matches = match(evaluator)
    ap, said = average_precision(matches), run.figures["AP"]
    if not abs(ap - said) < CLOSE:
        return _lacking(run, f"an AP of {said:.4f}, while today's validation data give {ap:.4f}")
    curve = mean_precision(matches).round(3)
    seen = replace(
        run,
        figures={**run.figures, **{COST + k: float(v) for k, v in costs(evaluator).items()}},
        precision={iou: tuple(curve[row].tolist()) for iou, row in AT_IOU.items()},
        made={**run.made, "images": str(len(matches[0].objects))},
    )
    return seen, evaluator, matches


def _lacking(run: Run, reason: str) -> tuple[Run, None, list[Matches]]:
    return replace(run, lacks=reason), None, []


def evaluator_of(folder: Path) -> Any:
    """pycocotools' evaluator of a run's detections and ground truth.

    Raises:
        one of ``UNUSABLE``.
    """
    detections = load_detections(folder / DETECTIONS)
    config = OmegaConf.load(settings_file(folder))
    # Resolved, since data.seed is ${seed}.
    data = OmegaConf.to_container(OmegaConf.select(config, "data"), resolve=True)
    truth, names = _truth(json.dumps(data))
    return coco_evaluator(truth, detections, names)


@cache
def _truth(node: str) -> tuple[dict[str, Any], list[str]]:
    """The ground truth of a data node's validation images, and the names of its classes."""
    data = json.loads(node)
    refuse_untrusted({"data": data}, "data")
    found = dataset(data, "val")
    return found.ground_truth(), found.class_names
