"""The kinds of errors that a detector makes, and the AP50 that each kind costs.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors"
(https://arxiv.org/abs/2008.08115), section 2. A detection that COCO's matching at IoU 0.5 counts as
false has the first kind that fits. IoUs are with objects that are not ignored:

1. localisation: the best IoU with an object of its class is in [0.1, 0.5);
2. classification: IoU >= 0.5 with an object of another class;
3. duplicate: IoU >= 0.5 with an object of its class, which a higher score has found;
4. background: IoU <= 0.1 with every object;
5. both: all others: a wrong class at an IoU in (0.1, 0.5).

The sixth kind are the missed objects: no detection finds them, and none would with its class or box
corrected. The cost of a kind is the gain in AP50 when an oracle corrects this kind alone. It
corrects wrong classes and boxes; if several then find one object, or it is found already, only the
highest score stays. It removes other false detections, and missed objects are not counted. The sum
of the costs is not 100 % minus AP50.

Differs from the authors' code: the highest score is chosen among the errors of the corrected kind,
not among those of both; and a class whose objects are all missed has AP 1 without them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask

from experiments.report.matches import precision

FOREGROUND, BACKGROUND = 0.5, 0.1
TRUE, LOCALISATION, CLASSIFICATION, DUPLICATE, NOTHING, BOTH = range(6)
SUPPRESSED = {"both": BOTH, "duplicate": DUPLICATE, "background": NOTHING}
MENDED = {"classification": CLASSIFICATION, "localisation": LOCALISATION}


@dataclass(frozen=True)
class Judged:
    """The detections and objects that are not ignored, at IoU 0.5.

    Args:
        label, score: [D]; labels are indices of classes, from 0.
        true: bool [D].
        kind: int [D] of the error, ``TRUE`` where it is true.
        target: int [D], the object nearest to a detection with a wrong class or box.
        object_label: int [G].
        found: bool [G], whether a true detection finds the object.
    """

    label: np.ndarray
    score: np.ndarray
    true: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    object_label: np.ndarray
    found: np.ndarray


def costs(evaluator: Any) -> dict[str, float]:
    """By kind of error the AP50 that it costs, a fraction of at least 0.

    Args:
        evaluator: as ``experiments.report.matches.match`` left it, with at least one object.
    """
    seen = judged(evaluator)
    counts = np.bincount(seen.object_label, minlength=len(evaluator.params.catIds))
    missed = np.bincount(seen.object_label[_missed(seen)], minlength=len(counts))
    rows = np.arange(len(seen.label))
    usual = _ap50(seen, rows, counts, counts)
    gained = {name: _mended(seen, kind, counts) for name, kind in MENDED.items()}
    for name, kind in SUPPRESSED.items():
        gained[name] = _ap50(seen, rows[seen.kind != kind], counts, counts)
    gained["missed"] = _ap50(seen, rows, counts, counts - missed)
    return {name: max(0.0, ap - usual) for name, ap in gained.items()}  # rounding may give less


def judged(evaluator: Any) -> Judged:
    """All detections with their kinds of errors, image by image."""
    images = len(evaluator.params.imgIds)
    parts: list[Judged] = []
    objects = 0
    for image in range(images):
        entries = [(k, e) for k, e in enumerate(evaluator.evalImgs[image::images]) if e is not None]
        if entries:
            parts.append(_of_image(evaluator, entries, objects))
            objects += len(parts[-1].found)
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Judged(*(np.concatenate(column) for column in columns))


def _of_image(evaluator: Any, entries: list[tuple[int, dict[str, Any]]], first: int) -> Judged:
    """One image's detections, from its entries by class; objects are numbered from ``first``."""
    shown = [_rows(k, e["dtIds"], e["dtMatches"][0], e["dtIgnore"][0]) for k, e in entries]
    there = [_rows(k, e["gtIds"], e["gtMatches"][0], e["gtIgnore"]) for k, e in entries]
    (ids, label, true), (object_ids, object_label, found) = (
        np.concatenate(rows, axis=1) for rows in (shown, there)
    )
    detections = [evaluator.cocoDt.anns[number] for number in ids.tolist()]
    objects = [evaluator.cocoGt.anns[number] for number in object_ids.tolist()]
    ious = _ious(detections, objects)
    kind, nearest = _kinds(ious, label[:, None] == object_label, true > 0)
    score = np.array([row["score"] for row in detections], dtype=float)
    return Judged(label, score, true > 0, kind, first + nearest, object_label, found > 0)


def _rows(label: int, ids: list[int], matches: np.ndarray, ignored: Any) -> np.ndarray:
    """[3, N] ids, labels and matches, without the ignored ones."""
    rows = np.stack([ids, np.full(len(ids), label), matches]).astype(int)
    return rows[:, np.equal(ignored, 0)]


def _ious(detections: list[dict[str, Any]], objects: list[dict[str, Any]]) -> np.ndarray:
    """[D, G] IoUs of detections and objects."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    boxes = [np.array([row["bbox"] for row in rows]) for rows in (detections, objects)]
    return mask.iou(*boxes, [0] * len(objects))


def _kinds(
    ious: np.ndarray, same_class: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kind [D] of each detection's error, and the object [D] of a wrong class or box.

    Args:
        ious, same_class: [D, G].
        true: [D].
    """
    nobody = np.zeros((len(ious), 1))  # for an image without objects
    own, other = (np.hstack([ious * which, nobody]) for which in (same_class, ~same_class))
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    tests = {
        TRUE: true,
        LOCALISATION: (best_own >= BACKGROUND) & (best_own < FOREGROUND),
        CLASSIFICATION: best_other >= FOREGROUND,
        DUPLICATE: best_own >= FOREGROUND,
        NOTHING: np.maximum(best_own, best_other) <= BACKGROUND,
    }
    kind = np.select(list(tests.values()), list(tests), BOTH)
    wrong_class = kind == CLASSIFICATION
    return kind, np.where(wrong_class, other.argmax(axis=1), own.argmax(axis=1))


def _mendable(seen: Judged, kind: int) -> np.ndarray:
    """Rows of the errors that the oracle corrects: the highest score per object not found."""
    rows = np.flatnonzero(seen.kind == kind)
    rows = rows[~seen.found[seen.target[rows]]]
    rows = rows[np.argsort(-seen.score[rows], kind="stable")]
    return rows[np.unique(seen.target[rows], return_index=True)[1]]


def _missed(seen: Judged) -> np.ndarray:
    """[G] bool: no detection finds the object, and none would after a correction."""
    missed = ~seen.found
    for kind in MENDED.values():
        missed[seen.target[_mendable(seen, kind)]] = False
    return missed


def _mended(seen: Judged, kind: int, counts: np.ndarray) -> float:
    """AP50 with the errors of a kind corrected or removed."""
    right = _mendable(seen, kind)
    label, true = seen.label.copy(), seen.true.copy()
    label[right], true[right] = seen.object_label[seen.target[right]], True
    rows = np.flatnonzero((seen.kind != kind) | true)
    return _ap50(replace(seen, label=label, true=true), rows, counts, counts)


def _ap50(seen: Judged, rows: np.ndarray, counts: np.ndarray, left: np.ndarray) -> float:
    """The mean over classes with objects.

    Args:
        rows: of the detections that count.
        counts: [C], the objects of each class.
        left: [C], how many of them are to be found.
    """
    found = []
    for k in np.flatnonzero(counts):
        own = rows[seen.label[rows] == k]
        own = own[np.argsort(-seen.score[own], kind="stable")]
        true = seen.true[own][None]
        found.append(precision(true, ~true, left[k]).mean() if left[k] else 1.0)
    return float(np.mean(found))
