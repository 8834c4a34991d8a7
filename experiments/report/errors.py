"""What kinds of errors a detector makes, and the AP50 that each kind costs.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors"
(https://arxiv.org/abs/2008.08115), section 2. A detection that COCO's matching at IoU 0.5 counts as
false is of the first kind that fits, IoUs being with objects that are not ignored:

1. localisation: the best IoU with an object of its class is in [0.1, 0.5);
2. classification: IoU >= 0.5 with an object of another class;
3. duplicate: IoU >= 0.5 with an object of its class, which a better score has found;
4. background: IoU <= 0.1 with every object;
5. both: what remains, a wrong class at an IoU in (0.1, 0.5).

The sixth kind are the missed objects: those that no detection finds, nor would find if its class or
its box were right. A kind's cost is what AP50 gains where an oracle mends this kind alone:
wrong classes and boxes become right (where several would find one object, or it is found already,
all but the best score go), the other false detections go, and missed objects need not be found.
The costs do not add up to what AP50 lacks.

Differs from the authors' code: the best score is chosen among the errors of the kind that is
mended, not among those of both; and a class all of whose objects are missed has AP 1 without them.
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
    """All detections that are not ignored, and all objects, at IoU 0.5.

    Args:
        label, score: [D]; labels are indices of classes, from 0.
        true: bool [D].
        kind: int [D] of the error, ``TRUE`` where it is true.
        target: int [D], the object that a wrong class or box is nearest to.
        object_label: int [G].
        found: bool [G], by a true detection.
    """

    label: np.ndarray
    score: np.ndarray
    true: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    object_label: np.ndarray
    found: np.ndarray


def costs(evaluator: Any) -> dict[str, float]:
    """The AP50 as a fraction that each kind of error costs, 0 or more, by the kind's name.

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
    return {name: max(0.0, ap - usual) for name, ap in gained.items()}  # below by rounding only


def judged(evaluator: Any) -> Judged:
    """Every detection with its kind of error, in the order of images."""
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
    """One image's part, its objects numbered from ``first``, from its entries by class."""
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
    """Ids, labels and matches [3, N] of those that are not ignored."""
    rows = np.stack([ids, np.full(len(ids), label), matches]).astype(int)
    return rows[:, np.equal(ignored, 0)]


def _ious(detections: list[dict[str, Any]], objects: list[dict[str, Any]]) -> np.ndarray:
    """[D, G]."""
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
    nobody = np.zeros((len(ious), 1))  # where an image has no objects
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
    """Rows of the errors that an oracle makes true: the best score for each object not found."""
    rows = np.flatnonzero(seen.kind == kind)
    rows = rows[~seen.found[seen.target[rows]]]
    rows = rows[np.argsort(-seen.score[rows], kind="stable")]
    return rows[np.unique(seen.target[rows], return_index=True)[1]]


def _missed(seen: Judged) -> np.ndarray:
    """bool [G]."""
    missed = ~seen.found
    for kind in MENDED.values():
        missed[seen.target[_mendable(seen, kind)]] = False
    return missed


def _mended(seen: Judged, kind: int, counts: np.ndarray) -> float:
    """AP50 where errors of a wrong class or box are right, or gone."""
    right = _mendable(seen, kind)
    label, true = seen.label.copy(), seen.true.copy()
    label[right], true[right] = seen.object_label[seen.target[right]], True
    rows = np.flatnonzero((seen.kind != kind) | true)
    return _ap50(replace(seen, label=label, true=true), rows, counts, counts)


def _ap50(seen: Judged, rows: np.ndarray, counts: np.ndarray, left: np.ndarray) -> float:
    """The mean over classes with objects.

    Args:
        rows: of the detections that count.
        counts, left: [C], the objects of each class, and how many are to be found.
    """
    found = []
    for k in np.flatnonzero(counts):
        own = rows[seen.label[rows] == k]
        own = own[np.argsort(-seen.score[own], kind="stable")]
        true = seen.true[own][None]
        found.append(precision(true, ~true, left[k]).mean() if left[k] else 1.0)
    return float(np.mean(found))
