"""What the detections of runs say beyond their summaries.

This needs torch and the validation data; the rest of the report does not.
"""

import json
import zipfile
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
from experiments.report.images import Interval, interval, resampled
from experiments.report.matches import AT_IOU, Matches, average_precision, match, mean_precision
from experiments.report.runs import COST, Run, settings_file
from experiments.report.study import Study
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
    return [_looked_at(run, folder / run.name) if "AP" in run.figures else run for run in runs]


def intervals(study: Study, folder: Path) -> dict[str, Interval]:
    """By method the interval of its difference to the baseline over the validation images.

    It is of the first seed (and fold) whose detections both have below the folder. A method without
    such a seed, or validated on other images than the baseline, has none.
    """
    baselines: dict[str, tuple[list[Matches], np.ndarray]] = {}  # matches and draws, by run
    found = {}
    for method in study.compared:
        pair = _first_pair(study, method, folder)
        if pair is None:
            continue
        own, base = (folder / run.name for run in pair)
        if str(base) not in baselines:
            matches = match(evaluator_of(base))
            baselines[str(base)] = matches, resampled(matches)
        usual, draws = baselines[str(base)]
        matches = match(evaluator_of(own))
        if _objects(matches) == _objects(usual):
            found[method] = interval(pair[0].seed or 0, matches, usual, resampled(matches) - draws)
    return found


def _first_pair(study: Study, method: str, folder: Path) -> tuple[Run, Run] | None:
    for pair in study.pairs(method).values():
        if all(run.precision and (folder / run.name / DETECTIONS).exists() for run in pair):
            return pair
    return None


def _objects(matches: Sequence[Matches]) -> list[list[int]]:
    return [own.objects.tolist() for own in matches]


def _looked_at(run: Run, folder: Path) -> Run:
    if not (folder / DETECTIONS).exists():
        return replace(run, lacks=f"no {DETECTIONS}, which earlier versions did not write")
    try:
        evaluator = evaluator_of(folder)
    except UNUSABLE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return replace(run, lacks=f"detections that cannot be judged ({reason})")
    matches = match(evaluator)
    ap, said = average_precision(matches), run.figures["AP"]
    if not abs(ap - said) < CLOSE:
        lacks = f"an AP of {said:.4f}, while today's validation data give {ap:.4f}"
        return replace(run, lacks=lacks)
    curve = mean_precision(matches).round(3)
    return replace(
        run,
        figures={**run.figures, **{COST + k: float(v) for k, v in costs(evaluator).items()}},
        precision={iou: tuple(curve[row].tolist()) for iou, row in AT_IOU.items()},
    )


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
