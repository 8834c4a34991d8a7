"""LVIS's rules of evaluation, as a rewrite of ground truth and detections for COCO's evaluators.

LVIS (Gupta et al., arXiv 1908.03195, section 5; lvis-api) judges a class only in images that were
searched for it. Three rules differ from COCO's:

- Of each image the 300 best detections count, over all classes.
- A detection of a class that is neither annotated in its image nor listed as absent is dropped.
- Of a class whose objects in the image are not all annotated, a detection that finds no annotated
  one is ignored. Here such a class gets a crowd region that holds every box: COCO's evaluators
  match objects first, then ignore what lies in a crowd.

The limit of 300 makes AP depend on how scores of different classes compare. AP_fixed (Dave et al.,
arXiv 2102.01066) has a limit per class instead: the 10,000 best detections on all images count.
They are chosen from the detections that there are. A network that returns 300 boxes per image
(``model.box_detections_per_img``) has cut the others by comparing classes, and AP_fixed is that of
the rest. To lift this limit, return more boxes and keep ``evaluation.max_detections`` at 300.

A ground truth is federated if its images list ``neg_category_ids``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from frcnn.data.federated import NEGATIVE, NOT_EXHAUSTIVE
from frcnn.evaluation.frequency import group_means

PER_IMAGE_LIMIT = 300  # detections of all classes that count
PER_CLASS_LIMIT = 10_000  # detections on all images that count for AP_fixed
EVERYWHERE = [-1e6, -1e6, 3e6, 3e6]  # xywh
GROUP_OF = {"r": "APr", "c": "APc", "f": "APf"}

Row = dict[str, Any]
PerClass = Mapping[str, Mapping[str, float | None]]


def is_federated(truth: Mapping[str, Any]) -> bool:
    """Whether a COCO dict says which classes its images were searched for."""
    return any(NEGATIVE in image for image in truth["images"])


def best_of_each(rows: Sequence[Row], key: str, limit: int) -> list[Row]:
    """The ``limit`` result rows of the highest scores for each value of ``key``."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return [
        row
        for group in groups.values()
        for row in sorted(group, key=lambda row: row["score"], reverse=True)[:limit]
    ]


def judged(rows: Sequence[Row], truth: Mapping[str, Any]) -> list[Row]:
    """The result rows whose class is annotated in their image or listed as absent there.

    Boxes without area are dropped too, as in lvis-api.
    """
    known = _listed(truth, NEGATIVE)
    known |= {(one["image_id"], one["category_id"]) for one in truth["annotations"]}
    return [
        row
        for row in rows
        if (row["image_id"], row["category_id"]) in known and row["bbox"][2] * row["bbox"][3] > 0
    ]


def with_regions(truth: Mapping[str, Any]) -> dict[str, Any]:
    """The ground truth with a crowd region for each class that is not exhaustive in an image."""
    regions = [
        {"image_id": image, "category_id": label, "bbox": EVERYWHERE, "area": 9e12, "iscrowd": 1}
        for image, label in sorted(_listed(truth, NOT_EXHAUSTIVE))
    ]
    annotations = [*truth["annotations"], *regions]
    numbered = [row | {"id": number} for number, row in enumerate(annotations, start=1)]
    return {**truth, "annotations": numbered}


def lvis_figures(
    per_class: PerClass, fixed: PerClass, truth: Mapping[str, Any]
) -> dict[str, float | None]:
    """APr, APc and APf, and the same with AP under AP_fixed's limit: AP_fixed, APr_fixed, ...

    Args:
        per_class, fixed: name -> its metrics, in the order of the labels, under either limit.
        truth: its categories have a ``frequency``.
    """
    groups = [GROUP_OF.get(category.get("frequency")) for category in truth["categories"]]
    of_all = group_means(fixed, ["AP"] * len(groups), ["AP"]) | group_means(fixed, groups)
    return group_means(per_class, groups) | {f"{key}_fixed": ap for key, ap in of_all.items()}


def _listed(truth: Mapping[str, Any], key: str) -> set[tuple[int, int]]:
    """The pairs (image id, label) of the images' lists."""
    return {(image["id"], label) for image in truth["images"] for label in image.get(key, ())}
