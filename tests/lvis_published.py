"""Prints ``PUBLISHED`` and ``FIXED`` of test_lvis_evaluation.py, by the package lvis itself.

``pip install --no-deps lvis==0.5.3``, then ``PYTHONPATH=.:tests python tests/lvis_published.py``.
The package needs two patches: an empty module in the place of cv2, which it imports for masks, and
``np.float``, which NumPy no longer has.
"""

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from test_lvis_evaluation import federated_set

from frcnn.evaluation.coco import write_results

PER_CLASS = 40  # detections of each class that FIXED takes


def evaluated(folder: Path, detections: list[dict[str, Any]], limit: int) -> dict[str, float]:
    """The package's figures of the set's truth; ``limit`` per image, -1: none."""
    from lvis import LVIS, LVISEval, LVISResults  # the tests do without the package

    truth, _ = federated_set(0)
    images, categories = (range(len(truth[key])) for key in ("images", "categories"))
    write_results(folder, detections, truth, list(images), [k + 1 for k in categories])
    annotations = LVIS(str(folder / "ground_truth.json"))
    results = LVISResults(annotations, str(folder / "results.json"), max_dets=limit)
    judge = LVISEval(annotations, results, "bbox")
    if limit < 0:
        judge.params.max_dets = limit
    judge.run()
    return {name: float(value) for name, value in judge.get_results().items()}


def best_of_each_class(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``PER_CLASS`` best detections of each class over all images."""
    rows = [
        (label, -score, place, row)
        for place, found in enumerate(detections)
        for row, (label, score) in enumerate(zip(found["labels"], found["scores"], strict=True))
    ]
    kept: dict[int, list[int]] = {place: [] for place in range(len(detections))}
    taken: dict[int, int] = {}
    for label, _, place, row in sorted(rows):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= PER_CLASS:
            kept[place].append(row)
    keys = ("boxes", "scores", "labels")
    return [
        {**found, **{key: found[key][sorted(kept[place])] for key in keys}}
        for place, found in enumerate(detections)
    ]


def main() -> None:
    """Entry point."""
    sys.modules["cv2"] = ModuleType("cv2")
    np.float = float  # type: ignore[attr-defined]
    _, detections = federated_set(0)
    with tempfile.TemporaryDirectory() as folder:
        print("PUBLISHED", evaluated(Path(folder), detections, 300))
        print("FIXED", evaluated(Path(folder), best_of_each_class(detections), -1))


if __name__ == "__main__":
    main()
