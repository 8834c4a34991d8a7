"""The time of COCO's metrics with both back ends, on made-up detections."""

import math
from functools import partial
from typing import Any

import torch

from experiments.benchmark import scenes
from experiments.benchmark.report import WHY, table
from experiments.benchmark.timing import interleaved, ratio, spread
from frcnn.errors import UserError
from frcnn.evaluation.coco import BACKENDS, OVERALL, coco_metrics

IMAGES, CLASSES, OBJECTS, DETECTIONS = 150, 20, 7, 100
SAME = 1e-9  # largest difference between the back ends


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """The back ends' table.

    Raises:
        ValueError: they disagree.
    """
    truth, detections = made_up()
    names = [category["name"] for category in truth["categories"]]
    calls = {name: partial(coco_metrics, truth, detections, names, name) for name in BACKENDS[::-1]}
    title = f"Evaluation: {IMAGES:,} images, {IMAGES * DETECTIONS:,} detections"
    try:
        figures = [call() for call in calls.values()]
    except UserError as error:
        return {"tables": [table(title, [{"back end": " and ".join(calls), WHY: str(error)}])]}
    refuse_different(*figures)
    found = interleaved(calls, seconds)
    first = next(iter(found))
    rows = [
        {
            "back end": name,
            f"times as fast as {first}": ratio(found[first], values),
            "seconds": spread(values),
            "AP": result["AP"],
        }
        for (name, values), result in zip(found.items(), figures, strict=True)
    ]
    return {"tables": [table(title, rows)], "seconds": found}


def refuse_different(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise ValueError unless all twelve metrics are equal."""
    for key in OVERALL:
        if not math.isclose(one[key], other[key], abs_tol=SAME):
            raise ValueError(f"the back ends disagree: {key} {one[key]} and {other[key]}")


def made_up() -> tuple[dict[str, list], list[dict[str, Any]]]:
    """Ground truth, and detections near its objects and elsewhere, with random scores."""
    g = torch.Generator().manual_seed(0)
    truth: dict[str, list] = {
        "images": [{"id": i, "width": scenes.WIDTH, "height": scenes.HEIGHT}
                   for i in range(IMAGES)],
        "annotations": [],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)],
    }  # fmt: skip
    detections = []
    for number in range(IMAGES):
        found, objects = scenes.image(scenes.PROPOSALS, DETECTIONS, OBJECTS, g)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=g)
        objects[:, 2:] -= objects[:, :2]
        truth["annotations"] += [
            {"image_id": number, "category_id": label, "bbox": box}
            for label, box in zip(labels.tolist(), objects.tolist(), strict=True)
        ]
        guessed = labels[torch.randint(OBJECTS, (DETECTIONS,), generator=g)]
        scores = torch.rand(DETECTIONS, generator=g)
        detections.append({"image_id": number, "boxes": found, "labels": guessed, "scores": scores})
    return truth, detections
