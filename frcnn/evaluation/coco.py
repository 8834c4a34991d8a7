"""COCO's box metrics, computed by pycocotools or faster-coco-eval.

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

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.files import write_text

log = logging.getLogger(__name__)

Detection = Mapping[str, Any]

BACKENDS = ("faster_coco_eval", "pycocotools")  # "auto" tries them in this order
AT_IOU_50, AT_IOU_75 = 0, 5
OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_results(
    detections: Iterable[Detection], ground_truth_dict: Mapping[str, Any] | None = None
) -> list[dict]:
    """Detections as rows of COCO's results format; ``bbox`` is xywh, ``category_id`` the label.

    An image that occurs twice counts once (torch's ``DistributedSampler`` repeats images).
    Detections with a NaN or infinite box or score are left out, with one warning in total.

    Raises:
        UserError: an image id or a label is not in ``ground_truth_dict``.
    """
    if ground_truth_dict is None:
        return _rows(detections)
    images = {image["id"] for image in ground_truth_dict["images"]}
    labels = {category["id"] for category in ground_truth_dict["categories"]}
    return _rows(detections, images, labels)


def coco_metrics(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Detection],
    class_names: Sequence[str],
    backend: str = "auto",
    max_detections: int = 100,
) -> dict[str, Any]:
    """COCO's twelve box metrics, and ``per_class``: name -> ``{"AP", "AP50"}``.

    Metrics are in [0, 1], or None if the ground truth has no such object. The arguments are not
    modified.

    Args:
        ground_truth: COCO dict; ``category_id`` c is ``class_names[c - 1]``. An annotation without
            ``area`` gets the area of its box; one without ``iscrowd`` is no crowd.
        detections: one dict per image, see the module; an image without a dict has no detections.
        backend: ``pycocotools``, ``faster_coco_eval``, or ``auto``: the faster one if installed.
        max_detections: number of detections that count per image and class, best scores first;
            COCO's is 100. The name ``AR100`` stays the same for other values.

    Raises:
        UserError: the back end is unknown or not installed; or as ``coco_results``.
    """
    evaluator = coco_evaluator(ground_truth, detections, class_names, backend, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    # [T, R, K, A, M] and [T, K, A, M]; -1 where the ground truth has no object
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    average = precision[:, :, :, :, -1]
    per_class = {
        name: {"AP": _mean(average[:, :, k, 0]), "AP50": _mean(average[AT_IOU_50, :, k, 0])}
        for k, name in enumerate(class_names)
    }
    return _overall(average, recall) | {"per_class": per_class}


def coco_evaluator(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Detection],
    class_names: Sequence[str],
    backend: str = "pycocotools",
    max_detections: int = 100,
) -> Any:
    """A back end's ``COCOeval`` before matching; arguments and errors as in ``coco_metrics``.

    Image ids are those of the ground truth. Category ids are 1..C. Annotations and detections are
    numbered from 1.
    """
    truth = _copy_of_truth(ground_truth, class_names)
    results = coco_results(detections, truth)
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
    # the evaluators sort the limits: min() keeps max_detections last, also if it is below 10
    evaluator.params.maxDets = [1, min(10, max_detections), max_detections]
    return evaluator


def write_results(
    path: str | Path,
    detections: Iterable[Detection],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int | str],
) -> None:
    """Write a COCO results file with the data set's original ids.

    ``image_ids[i]`` is the original id of image i; ``category_ids[c - 1]`` that of label c.

    Raises:
        UserError: an image or a label is outside these lists.
    """
    rows = _rows(detections, range(len(image_ids)), range(1, len(category_ids) + 1))
    for row in rows:
        row["image_id"] = image_ids[row["image_id"]]
        row["category_id"] = category_ids[row["category_id"] - 1]
    write_text(Path(path), json.dumps(rows))


def format_table(metrics: Mapping[str, Any]) -> str:
    """The result of ``coco_metrics`` as a plain-text table, in percent; ``-`` for None."""
    rows = {"": list(OVERALL), "all": [_percent(metrics[key]) for key in OVERALL]}
    for name, figures in metrics["per_class"].items():
        rows[name] = [_percent(figures["AP"]), _percent(figures["AP50"])]
    width = max(map(len, rows))
    return "\n".join(
        name.ljust(width) + "".join(cell.rjust(6) for cell in cells) for name, cells in rows.items()
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


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


def _mean(values: np.ndarray) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None
