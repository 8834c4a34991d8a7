"""COCO's matches of the detections, and the average precision of any draw of images.

COCO's evaluator matches once. The weights of the images enter only afterwards: a thousand draws of
images cost a thousand sums, and not a thousand evaluations.

Shape letters: I images, D detections of a class, T = 10 IoU thresholds 0.50..0.95, C classes,
R = 101 recalls 0.00..1.00.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RECALLS = np.linspace(0, 1, 101)
AT_IOU = {"50": 0, "75": 5}


@dataclass(frozen=True)
class Matches:
    """The detections of one class, the best score first, and how many objects it has.

    Args:
        image: int [D], index of each detection's image.
        true, false: bool [T, D]; a detection that is neither is ignored (it lies on a crowd).
        objects: int [I], number in each image, without crowds and other ignored ones.
    """

    image: np.ndarray
    true: np.ndarray
    false: np.ndarray
    objects: np.ndarray


def match(evaluator: Any) -> list[Matches]:
    """Run a pycocotools ``COCOeval`` and return its matches by class.

    ``evaluator.evalImgs`` then has one entry for every class and image, class by class.
    """
    evaluator.params.areaRng = evaluator.params.areaRng[:1]  # objects of all sizes
    evaluator.params.areaRngLbl = evaluator.params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    images = len(evaluator.params.imgIds)
    found = evaluator.evalImgs
    parts = [found[first : first + images] for first in range(0, len(found), images)]
    return [_of_class(part, len(evaluator.params.iouThrs)) for part in parts]


def _of_class(entries: Sequence[dict[str, Any] | None], thresholds: int) -> Matches:
    """From one entry per image; None for an image with neither objects nor detections."""
    objects = [0 if e is None else int(np.sum(np.equal(e["gtIgnore"], 0))) for e in entries]
    shown = [(image, e) for image, e in enumerate(entries) if e is not None]
    counts = [len(e["dtScores"]) for _, e in shown]
    image = np.repeat(np.array([i for i, _ in shown], dtype=int), counts)
    scores = np.concatenate([[], *(e["dtScores"] for _, e in shown)])
    nothing = np.zeros((thresholds, 0), dtype=bool)
    matched = np.hstack([nothing, *(e["dtMatches"] > 0 for _, e in shown)])
    ignored = np.hstack([nothing, *(e["dtIgnore"] > 0 for _, e in shown)])
    order = np.argsort(-scores, kind="stable")  # ties keep the order of the images, as in COCO
    true, false = matched & ~ignored, ~matched & ~ignored
    return Matches(image[order], true[:, order], false[:, order], np.array(objects))


def precision(true: np.ndarray, false: np.ndarray, objects: float) -> np.ndarray:
    """COCO's interpolated precision: the highest at this or a higher recall; 0 beyond the last.

    Args:
        true, false: [T, D], the best score first: the weight of each detection as true or false.
        objects: their number, above 0.

    Returns:
        [T, R].
    """
    hits = np.cumsum(true, axis=1, dtype=float)
    shown = hits + np.cumsum(false, axis=1, dtype=float)
    best = np.maximum.accumulate((hits / np.maximum(shown, 1))[:, ::-1], axis=1)[:, ::-1]
    padded = np.hstack([best, np.zeros((len(best), 1))])
    first = np.stack([np.searchsorted(row, RECALLS) for row in hits / objects])
    return np.take_along_axis(padded, first, axis=1)


def mean_precision(matches: Sequence[Matches], weights: np.ndarray | None = None) -> np.ndarray:
    """The mean over the classes that have objects; NaN if none has.

    Args:
        weights: [I] whole numbers, how often each image counts; by default once. Where scores tie,
            the copies of an image follow each other.

    Returns:
        [T, R]; the mean of all is COCO's AP as a fraction.
    """
    found = []
    for own in matches:
        often = np.ones(len(own.objects)) if weights is None else weights
        if objects := float(own.objects @ often):
            each = often[own.image]
            found.append(precision(own.true * each, own.false * each, objects))
    size = len(matches[0].true), len(RECALLS)
    return np.mean(found, axis=0) if found else np.full(size, np.nan)


def average_precision(matches: Sequence[Matches], weights: np.ndarray | None = None) -> float:
    """COCO's AP as a fraction; NaN without objects. Arguments as ``mean_precision``."""
    return float(mean_precision(matches, weights).mean())
