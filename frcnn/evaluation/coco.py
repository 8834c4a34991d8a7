"""COCO's box metrics, from whichever COCO evaluator is installed.

A detection of one image is a dict, of tensors or arrays: ``boxes`` [D, 4] xyxy in pixels of the
original image, ``scores`` [D], ``labels`` [D] in 1..C, and the int ``image_id``. The ground truth
is a COCO dict whose category ids are those same 1..C.

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

BACKENDS = ("faster_coco_eval", "pycocotools")  # in the order in which "auto" tries them
AT_IOU_50, AT_IOU_75 = 0, 5
OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def coco_results(
    detections: Iterable[Detection], ground_truth_dict: Mapping[str, Any] | None = None
) -> list[dict]:
    """Detections as rows of COCO's results format; ``bbox`` is xywh, ``category_id`` the label.

    An image that comes twice counts once (samplers that share images between processes pad).
    Detections with a NaN or infinite box or score are left out, with one warning for all.

    Raises:
        UserError: an image id or a label that ``ground_truth_dict`` does not list.
    """
    if ground_truth_dict is None:
        return _rows(detections)
    images = {image["id"] for image in ground_truth_dict["images"]}
    labels = {category["id"] for category in ground_truth_dict["categories"]}
    return _rows(detections, images, labels)


def evaluate(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Detection],
    class_names: Sequence[str],
    backend: str = "auto",
    max_detections: int = 100,
) -> dict[str, Any]:
    """COCO's twelve box metrics, and ``per_class``: name -> ``{"AP", "AP50"}``.

    Figures are fractions of 1; None where the ground truth has no such object. Annotations may
    lack ``area`` (taken from the box) and ``iscrowd`` (0); nothing handed over is modified.

    Args:
        ground_truth: COCO dict; ``category_id`` c is ``class_names[c - 1]``.
        detections: one dict per image, see the module; images without one count as empty.
        backend: ``pycocotools``, ``faster_coco_eval`` or ``auto`` (the faster where installed).
        max_detections: best detections per image and class that count; COCO's is 100. ``AR100``
            keeps its name under another limit.

    Raises:
        UserError: a back end that is unknown or not installed, and as ``coco_results``.
    """
    evaluator = coco_evaluator(ground_truth, detections, class_names, backend, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    # [T, R, K, A, M] and [T, K, A, M], -1 where there is nothing to find
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
    """A back end's ``COCOeval`` that has matched nothing yet; takes and raises as ``evaluate``.

    Image ids are the ground truth's, category ids 1..C, those of annotations and detections count
    from 1.
    """
    truth = _sanitised(ground_truth, class_names)
    results = coco_results(detections, truth)
    _, (index_class, evaluator_class) = _loaded(backend)
    # instead of loadRes, which fails on no detections at all and adds a polygon to each
    found = [
        row | {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index = _indexed(index_class(), truth)
        found_index = _indexed(index_class(), truth | {"annotations": found})
        evaluator = evaluator_class(truth_index, found_index, "bbox")
    # below 10 the evaluators would sort the limits and the last would no longer be ours
    evaluator.params.maxDets = [1, min(10, max_detections), max_detections]
    return evaluator


def write_results(
    path: str | Path,
    detections: Iterable[Detection],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int | str],
) -> None:
    """Write a COCO results file in the data set's own ids.

    ``image_ids[i]`` is the original id of image i, ``category_ids[c - 1]`` that of label c.

    Raises:
        UserError: an image or a label beyond these lists.
    """
    rows = _rows(detections, range(len(image_ids)), range(1, len(category_ids) + 1))
    for row in rows:
        row["image_id"] = image_ids[row["image_id"]]
        row["category_id"] = category_ids[row["category_id"] - 1]
    write_text(Path(path), json.dumps(rows))


def format_table(metrics: Mapping[str, Any]) -> str:
    """What ``evaluate`` returned as plain text, in percent; ``-`` where there is no figure."""
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
    """Results rows of the finite detections; checks ids against the collections that are given."""
    rows: list[dict] = []
    dropped: list[int] = []
    for image, detection in {int(d["image_id"]): d for d in detections}.items():
        if images is not None and image not in images:
            raise UserError(
                f"detections of image id {image}, which the ground truth does not have; "
                "evaluate on the data set the detections were made from"
            )
        found, not_finite = _image_rows(image, detection)
        rows += found
        dropped += [image] * not_finite
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
    """The rows of one image, and how many detections were not finite."""
    boxes = _numbers(detection["boxes"]).reshape(-1, 4)
    scores = _numbers(detection["scores"])
    labels = _numbers(detection["labels"]).astype(int)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    xywh = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    columns = xywh[finite].tolist(), scores[finite].tolist(), labels[finite].tolist()
    rows = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for box, score, label in zip(*columns, strict=True)
    ]
    return rows, int((~finite).sum())


def _numbers(values: Any) -> np.ndarray:
    """A tensor of any device and precision, or an array, as float64."""
    return torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()


def _sanitised(ground_truth: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, list]:
    """A copy that both evaluators take: they miscount annotation id 0 and write into the dicts."""
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


def evaluator(backend: str) -> str:
    """The back end that ``evaluate`` takes: of those installed, where it is to choose.

    Raises:
        UserError: as ``evaluate``.
    """
    return _loaded(backend)[0]


def _loaded(backend: str) -> tuple[str, tuple[Any, Any]]:
    """A back end's name, and its index (``COCO``) and evaluator (``COCOeval``) classes."""
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"evaluation backend {backend!r}: choose auto, {' or '.join(BACKENDS)}")
    for name in BACKENDS if backend == "auto" else [backend]:
        with contextlib.suppress(ImportError):
            return name, _imported(name)
    package = "pycocotools" if backend == "auto" else backend.replace("_", "-")
    raise UserError(f"evaluation backend {backend}: not installed, run pip install {package}")


def _imported(name: str) -> tuple[Any, Any]:
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    from faster_coco_eval import COCO, COCOeval_faster

    # it tells its progress at level info, between the lines of the run's own log
    return COCO, partial(COCOeval_faster, print_function=log.debug)


def _indexed(index: Any, dataset: dict) -> Any:
    index.dataset = dataset
    index.createIndex()
    return index


def _overall(average: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """The twelve figures from precision [T, R, K, A] at the last limit and recall [T, K, A, M]."""
    # not summarize(): pycocotools looks for the limit 100 by value and else reports AP -1
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
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None
