"""COCO's box metrics, computed by pycocotools or faster-coco-eval; LVIS's for its ground truth.

The detections of one image are a dict of tensors or arrays: ``boxes`` [D, 4] xyxy in pixels of the
original image, ``scores`` [D], ``labels`` [D] in 1..C, and the int ``image_id``. The ground truth
is a COCO dict with the category ids 1..C.

Shape letters of the evaluators' arrays: T = 10 IoU thresholds 0.50..0.95, R = 101 recall points,
K = classes, A = areas (all, small, medium, large), M = limits of detections per image and class.
"""

import contextlib
import io
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frcnn.data.federated import NEGATIVE, NOT_EXHAUSTIVE
from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.federated import (
    PER_CLASS_LIMIT,
    PER_IMAGE_LIMIT,
    best_of_each,
    is_federated,
    judged,
    lvis_figures,
    with_regions,
)
from frcnn.evaluation.frequency import GROUPS
from frcnn.runfolder.files import write_text

log = logging.getLogger(__name__)

Detection = Mapping[str, Any]

BACKENDS = ("faster_coco_eval", "pycocotools")  # "auto" tries them in this order
AT_IOU_50, AT_IOU_75, AT_IOU_90 = 0, 5, 8
PER_CLASS = ("AP", "AP50", "AP75", "AP90", "AR")
CLASS_ROWS = 40  # of a table: about a screenful
NAME_WIDTH = 30  # of a class in a table, in characters
MAX_DETECTIONS = 100  # COCO's, per image and class
OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_results(
    detections: Iterable[Detection], ground_truth_dict: Mapping[str, Any] | None = None
) -> list[dict]:
    """Detections as rows of COCO's results format; ``bbox`` is xywh, ``category_id`` the label.

    An image that occurs twice counts once (torch's ``DistributedSampler`` repeats images).
    Detections with a NaN or infinite box or score are left out, with one warning in total.

    The evaluators order equal scores by image id, so AP would depend on the order of the images.
    Here equal scores of a class are made different in their last bits, in the order of the boxes.

    Raises:
        UserError: an image id or a label is not in ``ground_truth_dict``.
    """
    if ground_truth_dict is None:
        return _untied(_rows(detections), {})
    files = {image["id"]: image.get("file_name", "") for image in ground_truth_dict["images"]}
    labels = {category["id"] for category in ground_truth_dict["categories"]}
    return _untied(_rows(detections, files.keys(), labels), files)


def coco_metrics(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Detection],
    class_names: Sequence[str],
    backend: str = "auto",
    max_detections: int | None = None,
) -> dict[str, Any]:
    """COCO's twelve box metrics, and ``per_class``: name -> its ``PER_CLASS`` metrics.

    AR of a class is at ``max_detections``; AP90 is at IoU 0.90. A federated ground truth
    (``frcnn.evaluation.federated``) is judged by LVIS's rules and adds ``lvis_figures``.

    Metrics are in [0, 1], or None if the ground truth has no such object. The arguments are not
    modified.

    Args:
        ground_truth: COCO dict; ``category_id`` c is ``class_names[c - 1]``. An annotation without
            ``area`` gets the area of its box; one without ``iscrowd`` is no crowd.
        detections: one dict per image, see the module; an image without a dict has no detections.
        backend: ``pycocotools``, ``faster_coco_eval``, or ``auto``: the faster one if installed.
        max_detections: number of detections that count per image and class, or per image where the
            ground truth is federated, best scores first; None = 100, or 300. The name ``AR100``
            stays the same for all values.

    Raises:
        UserError: the back end is unknown or not installed; or as ``coco_results``.
    """
    truth = _copy_of_truth(ground_truth, class_names)
    results = coco_results(detections, truth)
    average, recall = _evaluated(_evaluator(truth, results, backend, max_detections))
    metrics, per_class = _overall(average, recall), _per_class(average, recall, class_names)
    if is_federated(truth):
        fixed = _evaluated(_evaluator(truth, results, backend, max_detections, fixed=True))
        metrics |= lvis_figures(per_class, _per_class(*fixed, class_names), ground_truth)
    return metrics | {"per_class": per_class}


def coco_evaluator(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Detection],
    class_names: Sequence[str],
    backend: str = "pycocotools",
    max_detections: int | None = None,
) -> Any:
    """A back end's ``COCOeval`` before matching; arguments and errors as in ``coco_metrics``.

    Image ids are those of the ground truth. Category ids are 1..C. Annotations and detections are
    numbered from 1.
    """
    truth = _copy_of_truth(ground_truth, class_names)
    return _evaluator(truth, coco_results(detections, truth), backend, max_detections)


def write_results(
    folder: Path,
    detections: Iterable[Detection],
    ground_truth: Mapping[str, Any],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int | str],
    truth_name: str = "ground_truth.json",
) -> None:
    """Write ``results.json``, COCO results, and the ground truth that it belongs to.

    Plain pycocotools reads both, and finds the figures of ``coco_metrics``; for federated data the
    package lvis does.

    Args:
        ground_truth: COCO dict of the images 0..I - 1 and the labels 1..C.
        image_ids: [I] the original ids; the files have these, ``numbered``.
        category_ids: [C] likewise of the labels.

    Raises:
        UserError: an image or a label of a detection is not in ``ground_truth``.
    """
    images, categories = numbered(image_ids), numbered(category_ids)

    def with_ids(row: dict[str, Any]) -> dict[str, Any]:
        label = categories[row["category_id"] - 1]
        return row | {"image_id": images[row["image_id"]], "category_id": label}

    def image_with_ids(row: dict[str, Any]) -> dict[str, Any]:
        lists = {key: row[key] for key in (NEGATIVE, NOT_EXHAUSTIVE) if key in row}
        lists = {key: [categories[label - 1] for label in own] for key, own in lists.items()}
        return row | {"id": images[row["id"]]} | lists

    truth = {
        "images": [image_with_ids(row) for row in ground_truth["images"]],
        "annotations": [with_ids(row) for row in ground_truth["annotations"]],
        "categories": [
            row | {"id": categories[row["id"] - 1]} for row in ground_truth["categories"]
        ],
    }
    results = [with_ids(row) for row in coco_results(detections, ground_truth)]
    write_text(folder / truth_name, json.dumps(truth))
    write_text(folder / "results.json", json.dumps(results))


def numbered(ids: Sequence[int | str]) -> list[int]:
    """The ids if all are integers; otherwise, as in VOC, the numbers 1, 2, ... in their order."""
    if all(isinstance(one, int) for one in ids):
        return [int(one) for one in ids]
    return list(range(1, len(ids) + 1))


def format_table(metrics: Mapping[str, Any]) -> str:
    """The result of ``coco_metrics`` as two plain-text tables, in percent; ``-`` for None.

    Figures by frequency (``frcnn.evaluation.frequency``) stand in the first one, if there are any,
    and those of AP_fixed below the others.

    The second one has the classes in their order, as many as a screen shows.
    """
    classes = metrics["per_class"]
    rows = [
        (_shortened(name), [percent(figures[key]) for key in PER_CLASS])
        for name, figures in list(classes.items())[:CLASS_ROWS]
    ]
    names = [*OVERALL, *(name for name in GROUPS if name in metrics)]
    overall = [("", names), ("all", [percent(metrics[key]) for key in names])]
    if "AP_fixed" in metrics:
        fixed = [f"{key}_fixed" for key in names]
        overall.append(("fixed", [percent(metrics[k]) if k in metrics else "" for k in fixed]))
    lines = _aligned([*overall, ("", []), ("", PER_CLASS), *rows])
    if len(classes) > CLASS_ROWS:
        lines.append(f"({len(classes) - CLASS_ROWS} more classes)")
    return "\n".join(lines)


def percent(fraction: float | None) -> str:
    """A figure in percent; "–" where the ground truth has no such object."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    lines = [name.ljust(width) + "".join(cell.rjust(6) for cell in cells) for name, cells in rows]
    return [line.rstrip() for line in lines]


def _rows(
    detections: Iterable[Detection],
    images: Collection[int] | None = None,
    labels: Collection[int] | None = None,
) -> list[dict]:
    """COCO result rows of the finite detections; raises UserError for an id that is not listed."""
    rows: list[dict] = []
    dropped: list[int] = []
    for image, detection in {int(d["image_id"]): d for d in detections}.items():
        if images is not None and image not in images:
            raise UserError(
                f"detections of image id {image}, which the ground truth does not have; "
                "evaluate on the data set that the detections were made from"
            )
        image_rows, num_not_finite = _image_rows(image, detection)
        rows += image_rows
        dropped += [image] * num_not_finite
    unknown = {row["category_id"] for row in rows}.difference(labels) if labels else None
    if unknown:
        raise UserError(
            f"detections of label {min(unknown)}, which the data set does not have; "
            "use a model trained on the same classes"
        )
    if dropped:
        log.warning(
            "left out %d detections with a NaN or infinite box or score (first: image id %d)",
            len(dropped),
            dropped[0],
        )
    return rows


def _image_rows(image: int, detection: Detection) -> tuple[list[dict], int]:
    """The rows of one image, and the number of detections that are not finite."""
    boxes = _to_float64(detection["boxes"]).reshape(-1, 4)
    scores = _to_float64(detection["scores"])
    labels = _to_float64(detection["labels"]).astype(int)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    xywh = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    columns = xywh[finite].tolist(), scores[finite].tolist(), labels[finite].tolist()
    rows = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for box, score, label in zip(*columns, strict=True)
    ]
    return rows, int((~finite).sum())


def _untied(rows: list[dict], files: Mapping[int, str]) -> list[dict]:
    """Lower each of a class's equal scores by another number of float64's last bits.

    The order is that of the boxes, and of the image files where the boxes are equal too. Scores
    come in float32 at most, whose next value is half a billion such steps away.
    """
    if not rows:
        return rows
    scores = np.array([row["score"] for row in rows])
    labels = np.array([row["category_id"] for row in rows])
    boxes = np.array([row["bbox"] for row in rows])
    names = np.array([files.get(row["image_id"], "") for row in rows])
    order = np.lexsort((names, *boxes.T[::-1], scores, labels))
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = (np.diff(scores[order]) != 0) | (np.diff(labels[order]) != 0)
    position = np.arange(len(rows))
    steps = position - np.maximum.accumulate(np.where(is_first, position, 0))
    lowered = scores[order] - steps * np.spacing(scores[order])
    for row, score in zip(order.tolist(), lowered.tolist(), strict=True):
        rows[row]["score"] = score
    return rows


def _to_float64(values: Any) -> np.ndarray:
    """A tensor on any device, or an array, of any precision, as a float64 array."""
    return torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()


def _copy_of_truth(ground_truth: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, list]:
    """A copy with new annotation ids: the evaluators miscount id 0, and modify their input."""
    annotations = [
        {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": list(annotation["bbox"]),
            "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        for number, annotation in enumerate(ground_truth["annotations"], start=1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, start=1)]
    images = [dict(image) for image in ground_truth["images"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def installed_backend(backend: str) -> str:
    """The name of the back end that ``coco_metrics`` uses for ``backend``, also for "auto".

    Raises:
        UserError: the back end is unknown or not installed.
    """
    return _load_backend(backend)[0]


def _load_backend(backend: str) -> tuple[str, tuple[Any, Any]]:
    """The back end's name, and its classes ``COCO`` (index) and ``COCOeval`` (evaluator)."""
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"evaluation backend {backend!r}: choose auto, {' or '.join(BACKENDS)}")
    for name in BACKENDS if backend == "auto" else [backend]:
        with contextlib.suppress(ImportError):
            return name, _import_backend(name)
    package = "pycocotools" if backend == "auto" else backend.replace("_", "-")
    raise UserError(f"evaluation backend {backend}: not installed, run pip install {package}")


def _import_backend(name: str) -> tuple[Any, Any]:
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    from faster_coco_eval import COCO, COCOeval_faster

    # by default it logs its progress at level info, among the lines of the run's log
    return COCO, partial(COCOeval_faster, print_function=log.debug)


def _build_index(index: Any, dataset: dict) -> Any:
    index.dataset = dataset
    index.createIndex()
    return index


def _evaluator(
    truth: dict[str, Any],
    results: list[dict],
    backend: str,
    max_detections: int | None,
    fixed: bool = False,
) -> Any:
    """The evaluator of result rows; ``fixed`` = with the limit of AP_fixed (federated data)."""
    limit = max_detections or MAX_DETECTIONS
    if is_federated(truth):
        key, limit = "image_id", max_detections or PER_IMAGE_LIMIT
        if fixed:
            key, limit = "category_id", PER_CLASS_LIMIT
        results, truth = judged(best_of_each(results, key, limit), truth), with_regions(truth)
    _, (index_class, evaluator_class) = _load_backend(backend)
    # not loadRes(): it fails if there are no detections, and adds a polygon to each of them
    predicted = [
        row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index = _build_index(index_class(), truth)
        predicted_index = _build_index(index_class(), truth | {"annotations": predicted})
        evaluator = evaluator_class(truth_index, predicted_index, "bbox")
    # the evaluators sort the limits: min() keeps the limit last, also if it is below 10
    evaluator.params.maxDets = [1, min(10, limit), limit]
    return evaluator


def _evaluated(evaluator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, K, A] at the last limit and recall [T, K, A, M]; -1 = no object."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"]


def _per_class(
    average: np.ndarray, recall: np.ndarray, class_names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Name -> its metrics; arguments as ``_overall``."""
    return {
        name: _of_class(average[:, :, k, 0], recall[:, k, 0, -1])
        for k, name in enumerate(class_names)
    }


def _overall(average: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """The twelve metrics from precision [T, R, K, A] at the last limit and recall [T, K, A, M]."""
    # not summarize(): pycocotools looks for a limit of exactly 100, and reports AP -1 without one
    values = [
        average[..., 0],
        average[AT_IOU_50, ..., 0],
        average[AT_IOU_75, ..., 0],
        *(average[..., area] for area in (1, 2, 3)),
        *(recall[:, :, 0, limit] for limit in (0, 1, 2)),
        *(recall[:, :, area, -1] for area in (1, 2, 3)),
    ]
    return dict(zip(OVERALL, map(_mean, values), strict=True))


def _of_class(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """The metrics of a class from its precision [T, R] and recall [T]."""
    values = (
        precision,
        precision[AT_IOU_50],
        precision[AT_IOU_75],
        precision[AT_IOU_90],
        recall,
    )
    return dict(zip(PER_CLASS, map(_mean, values), strict=True))


def _mean(values: np.ndarray) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None
